"""A CPU tier that holds what its GPU lost, `SimConfig.offloading = "lazy"`: an exclusive cache below the pool.

What is evicted from the GPU goes to the tier, in place of what came there longest ago; nothing else is stored. What is
loaded back stays there only until its place is wanted: it is the next to go, since the GPU has it now and will hand it
down again. So a context is held once, and a tier of n pools is worth n pools (vLLM's `OffloadingConnector` stores all
that is computed, and holds what lies on the GPU a second time). Chains whose client said that they have ended are not
stored. Copies to the tier are not waited for: `runtime.engine.offload` makes them ahead of the eviction.
"""

from __future__ import annotations

from saga_rl.njit import njit
from saga_rl.policies.state import chains as ch
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cache.block_ring import ABSENT, leave, use, use_first
from saga_rl.sim.engine.offloading import put


@njit(cache=True)
def note_idle(world, w):
    """Note how many blocks of each idle segment worker w's GPU holds. Returns the number of segments."""
    pool, were = world.pool, world.work.were
    n = pool.n[w, kv.IDLE]
    for k in range(n):
        seg = pool.idle[w, k]
        were[k, 0], were[k, 1] = seg, pool.res[kv.row(pool, w, seg)]
        were[k, 2] = pool.owner[kv.row(pool, w, seg)]
    return n


@njit(cache=True)
def demote(world, w, n):
    """Blocks were evicted from worker w's GPU since `note_idle`: they go to its tier, tail first."""
    run, pool, were = world.run, world.pool, world.work.were
    after, before = run.tier_after[w], run.tier_before[w]
    for k in range(n):
        seg, had = were[k, 0], were[k, 1]
        r = kv.row(pool, w, seg)
        has = pool.res[r] if pool.slot[r] >= 0 else 0
        if has >= had or (world.chains[were[k, 2], ch.ENDED] == 1 and world.plan.shared[seg] == 0):
            continue
        for at in range(had - 1, has - 1, -1):
            b = run.tier_base[seg] + at
            if after[b] == ABSENT:
                put(world, w, b)
            else:  # it was loaded from there, or never overwritten
                leave(after, before, b)
                use(after, before, b)


@njit(cache=True)
def loaded(world, w, step, begin, upto):
    """The step loads blocks `begin` .. `upto` of its context: the GPU has them, so they are the tier's next to go."""
    tree, run = world.tree, world.run
    after, before = run.tier_after[w], run.tier_before[w]
    for at in range(tree.path_off[step], tree.path_off[step + 1]):
        seg = tree.path[at]
        start = tree.start[seg]
        for k in range(max(begin, start), min(start + tree.blocks[seg], upto)):
            b = run.tier_base[seg] + k - start
            if after[b] != ABSENT:
                leave(after, before, b)
                use_first(after, before, b)
