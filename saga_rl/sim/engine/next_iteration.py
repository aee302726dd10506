"""What the iteration that a worker is about to compose will take of its pool, for who chooses the victims beforehand.

Here is what `engine.schedule` would find: the running requests' growth within the token budget, then the first chunk of
the request that was let in. It is worked out before any of them grows. So it is too much, by the blocks in question,
where a running request computes in that iteration what the one let in shares; and too little where it takes over an
idle block that the one let in would have reused.
"""

from __future__ import annotations

from saga_rl.njit import njit
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.admit import blocks_wanted
from saga_rl.sim.engine.waiting import choose
from saga_rl.sim.engine.worker import blocks_for, scheduled_tokens


@njit(cache=True)
def _growth(world, w, room):
    """(blocks by which running requests grow, tokens left of the budget), up to the first that finds no room: then
    somebody is preempted, and the budget is given as 0, since nobody is let in."""
    run, block, need, budget = world.run, world.limits[st.BLOCK], 0, world.limits[st.BATCHED]
    for k in range(run.w[w, st.N_RUNNING]):
        if budget <= 0:
            break
        step = run.running[w, k]
        have = run.i[step, st.COMPUTED]
        n = scheduled_tokens(world.plan.prompt[step] + run.i[step, st.GENERATED], have, budget)
        more = blocks_for(have + n, block) - blocks_for(have, block)
        if need + more > room:
            return need, 0
        need += more
        budget -= n
    return need, budget


@njit(cache=True)
def wants_room(world, w, now):
    """Whether the worker has fewer free blocks than its next iteration will take, as far as it can have them: count[
    WANTED] blocks, for which all that is idle may go but count[SPARED], the end of what the request let in finds cached
    (-1 = none). Growth comes first; asked again when there is room for that, it is about the request let in.

    With floors, False always: who chooses among victims then is `evict.make_room_floored`.
    """
    tree, pool, run, limits = world.tree, world.pool, world.run, world.limits
    run.count[st.WANTED], run.count[st.SPARED] = 0, -1
    if limits[st.FLOORED] == 1:
        return False
    free, idle, block = pool.n[w, kv.FREE], kv.evictable(pool, w), limits[st.BLOCK]
    need, budget = _growth(world, w, free + idle)
    run.count[st.WANTED] = need
    if free < need:
        return True
    if budget <= 0 or run.w[w, st.LETS] != st.ONE or run.w[w, st.N_WAITING] == 0 or (
            run.w[w, st.N_RUNNING] + run.w[w, st.N_LOADING] >= limits[st.MAX_SEQS]):
        return False
    if limits[st.TIER] == 1 or world.real[st.LINK_RATE] > 0:
        return False  # whether it waits for a copy, and of how much, is for `tier.find_source` to say
    step = run.queue[w, choose(world, w, now)]
    known = world.plan.prompt[step] + run.i[step, st.GENERATED]
    cached = min(kv.resident_prefix(tree, pool, w, step), (known - 1) // block)
    own = kv.reusable(tree, pool, w, step, cached)
    have = cached * block
    first = blocks_for(have + scheduled_tokens(known, have, budget), block) - cached
    gate = max(first, blocks_wanted(world, cached, known, budget)) - own
    if free - need + idle - kv.idle_hit_blocks(tree, pool, w, step, cached + own) < gate:
        return False  # it stays out
    run.count[st.WANTED] = need + first - own
    for at in range(tree.path_off[step], tree.path_off[step + 1]):
        if tree.start[tree.path[at]] >= cached + own:
            break
        run.count[st.SPARED] = tree.path[at]
    return free < run.count[st.WANTED]
