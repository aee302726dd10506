"""vLLM's own CPU tier (`OffloadingConnector`, LRU), block by block, for `SimConfig.offloading = "vllm"`.

A request's prompt is offered to the tier chunk by chunk, as it is scheduled: what the tier lacks is stored, in place of
what was used longest ago. When the request has finished, all that it offered or loaded counts as used just now, its
first block last. Blocks that it found on the GPU in front of what it loaded are neither offered nor used: they age, and
once they are gone what follows them is of use only while the GPU holds them. (That is vLLM's order, and a reason why
its tier is worth less than its size.) What is found is always loaded. Copies to the tier are not waited for.
"""

from __future__ import annotations

from saga_rl.njit import njit
from saga_rl.sim.cache.block_ring import ABSENT, leave, use
from saga_rl.sim.engine import state as st


@njit(cache=True)
def found(world, w, step, begin, most):
    """Blocks of the step's context, from the first, that are there if its first `begin` are: those that follow in
    worker w's tier, `most` in all."""
    tree, run = world.tree, world.run
    after = run.tier_after[w]
    for at in range(tree.path_off[step], tree.path_off[step + 1]):
        seg = tree.path[at]
        start = tree.start[seg]
        for k in range(max(begin, start), min(start + tree.blocks[seg], most)):
            if after[run.tier_base[seg] + k - start] == ABSENT:
                return k
    return most


@njit(cache=True)
def put(world, w, b):
    """Store block b, which worker w's tier lacks, in place of what was used longest ago if there is no room."""
    run = world.run
    after, before = run.tier_after[w], run.tier_before[w]
    if run.w[w, st.N_TIER] == int(world.real[st.TIER_BLOCKS]):
        leave(after, before, after[len(after) - 1])
    else:
        run.w[w, st.N_TIER] += 1
    use(after, before, b)
    run.count[st.STORED] += world.limits[st.BLOCK]


@njit(cache=True)
def offer(world, w, step, tokens):
    """The step's first `tokens` tokens are scheduled: store what worker w's tier lacks of its prompt up to there."""
    tree, run, i = world.tree, world.run, world.run.i[step]
    upto = min(tokens, world.plan.prompt[step]) // world.limits[st.BLOCK]
    begin = i[st.OFFERED]
    if upto <= begin:
        return
    i[st.OFFERED] = upto
    after = run.tier_after[w]
    for at in range(tree.path_off[step], tree.path_off[step + 1]):
        seg = tree.path[at]
        start = tree.start[seg]
        for k in range(max(begin, start), min(start + tree.blocks[seg], upto)):
            b = run.tier_base[seg] + k - start
            if after[b] == ABSENT:
                put(world, w, b)


@njit(cache=True)
def loads(world, step, begin, upto):
    """The step loads blocks `begin` .. `upto` of its context."""
    i = world.run.i[step]
    i[st.SEEN_FROM] = begin if i[st.OFFERED] == 0 else min(i[st.SEEN_FROM], begin)
    i[st.OFFERED] = upto


@njit(cache=True)
def finished_with(world, w, step):
    """The step is done: what it offered and loaded counts as used now, its first block last."""
    tree, run, i = world.tree, world.run, world.run.i[step]
    after, before = run.tier_after[w], run.tier_before[w]
    for at in range(tree.path_off[step + 1] - 1, tree.path_off[step] - 1, -1):
        seg = tree.path[at]
        start = tree.start[seg]
        for k in range(min(start + tree.blocks[seg], i[st.OFFERED]) - 1, max(start, i[st.SEEN_FROM]) - 1, -1):
            b = run.tier_base[seg] + k - start
            if after[b] != ABSENT:
                leave(after, before, b)
                use(after, before, b)
