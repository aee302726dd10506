"""KV outside a worker's GPU: a CPU tier beside each worker, and other workers. All of it is off unless configured.

- **Store.** When a request lets go of its blocks, what of its context the worker's CPU tier lacks is written there
  (write-through, as vLLM's offloading connector does it; the copy out is not charged). The tier is a second `Pool` row
  for the worker, W + w, with its own capacity; it evicts tail blocks, oldest first ("lru": by last use, "fifo": by
  when they were first stored).
- **Load.** A request that finds more of its context in the tier, or on the worker that its chain comes from, than on
  its GPU gets blocks for that and waits for the copy, if copying is faster than computing. One copy at a time on a
  worker's PCIe link and one on its network link; the worker computes meanwhile.
- **Prefetch** (SAGA section 5; source and budget are ours). When a chain that went idle is expected back, by the
  latencies of the tool that it called, what the GPU lost of it is loaded from the tier, at most `prefetch_tokens` on
  their way at once.

A block counts as resident from the start of its copy: a *second* request that shares a prefix that is being copied
finds it at once.
"""

from __future__ import annotations

from saga_rl.njit import njit
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb
from saga_rl.sim.cache import evict as ev
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.admit import free_blocks_for, takeable
from saga_rl.sim.engine.fast_forward import catch_up
from saga_rl.sim.engine.heap import push
from saga_rl.sim.engine.offloading import found
from saga_rl.sim.engine.worker import account, first_landing, first_load, first_prefetch


@njit(cache=True)
def store(world, w, step, tokens, now):
    """Write the first `tokens` tokens of the step's context to worker w's tier, as much of them as fits."""
    limits, tree, pool = world.limits, world.tree, world.pool
    if limits[st.TIER] == 0 or limits[st.AS_VLLM] == 1:
        return
    tier, block = w + limits[st.WORKERS], limits[st.BLOCK]
    have = min(kv.resident_prefix(tree, pool, tier, step), tokens // block)
    stored_at = world.work.aged
    for at in range(tree.path_off[step], tree.path_off[step + 1]):
        stored_at[tree.path[at]] = pool.seq[kv.row(pool, tier, tree.path[at])]
    held = kv.pin(tree, pool, tier, step, 0, have)
    want = min(tokens // block, have + pool.n[tier, kv.FREE] + kv.evictable(pool, tier))
    ev.make_room_oldest_first(tree, pool, tier, want - have)
    held, _ = kv.grow(tree, pool, tier, step, held, have * block, want * block, block)
    world.run.count[st.STORED] += (want - have) * block
    kv.release(tree, pool, tier, step, held, want * block, 0, now, block)
    if limits[st.TIER_FIFO] == 1:  # what was there keeps its age
        for at in range(tree.path_off[step], tree.path_off[step] + held):
            if tree.start[tree.path[at]] < have:
                pool.seq[kv.row(pool, tier, tree.path[at])] = int(stored_at[tree.path[at]])


@njit(cache=True)
def _gain(world, blocks, cached, free_at, rate, now):
    """(seconds that copying saves against computing, when the copy would be there)."""
    tokens = (blocks - cached) * world.limits[st.BLOCK]
    ready = max(now, free_at) + tokens / rate
    return tokens / world.real[st.PREFILL_RATE] - (ready - now), ready


@njit(cache=True)
def find_source(world, w, step, cached, known, now):
    """(link, blocks, ready): 0 = nothing to wait for, 1 = CPU tier, 2 = another worker, 3 = a prefetch on its way;
    leading blocks that will be there, and when."""
    limits, tree, pool, run, real = world.limits, world.tree, world.pool, world.run, world.real
    c, most = tree.chain[step], (known - 1) // limits[st.BLOCK]
    link, best, blocks, ready = 0, 0.0, cached, now
    if limits[st.TIER] == 1:
        as_vllm = limits[st.AS_VLLM] == 1
        there = found(world, w, step, cached, most) if as_vllm else min(
            kv.resident_prefix(tree, pool, w + limits[st.WORKERS], step), most)
        gain, at = _gain(world, there, cached, run.wf[w, st.PCIE_FREE], real[st.PCIE_RATE], now)
        if there > cached and (gain > best or as_vllm):
            link, best, blocks, ready = 1, gain, there, at
    source = run.source[c]
    if real[st.LINK_RATE] > 0 and source >= 0 and source != w:
        catch_up(world, source, now)
        there = min(kv.resident_prefix(tree, pool, source, step), most)
        gain, at = _gain(world, there, cached, run.wf[w, st.LINK_FREE], real[st.LINK_RATE], now)
        if there > cached and gain > best:
            link, best, blocks, ready = 2, gain, there, at
    if run.landing[c] > now and run.landing_at[c] == w:
        ready = max(ready, run.landing[c])
        link = max(link, 3) if link == 0 else link
    return link, blocks, ready


@njit(cache=True)
def wait_for_copy(world, w, step, link, tokens, ready):
    """The step, started and with blocks for what is copied, leaves the running requests until the copy is there."""
    run = world.run
    run.w[w, st.N_RUNNING] -= 1
    run.w[w, st.N_LOADING] += 1
    run.i[step, st.STATE] = st.LOADING
    if link == 1:
        run.wf[w, st.PCIE_FREE] = ready
        run.count[st.LOADED] += tokens
    elif link == 2:
        run.wf[w, st.LINK_FREE] = ready
        run.count[st.MOVED_TOKENS] += tokens
    push(world.heap, ready, first_load(world) + step)


@njit(cache=True)
def copied(world, step, now):
    """The copy that the step waited for is there: it runs on from there. Returns its worker."""
    run = world.run
    w = run.i[step, st.WORKER]
    catch_up(world, w, now)
    if world.limits[st.AS_VLLM] == 1 and world.limits[st.ASYNC] == 1 and run.w[w, st.BUSY] == 1:
        run.loaded[w, run.w[w, st.N_LOADED]] = step
        run.w[w, st.N_LOADED] += 1
        return w
    runs_on(world, w, step)
    return w


@njit(cache=True)
def heard_of_copies(world, w):
    """An iteration ended: it says which copies were there when it was composed."""
    run, kept = world.run, 0
    for k in range(run.w[w, st.N_LOADED]):
        step = run.loaded[w, k]
        if run.i[step, st.SCHEDULED] == 2:
            run.i[step, st.SCHEDULED] = 0
            runs_on(world, w, step)
            continue
        if run.i[step, st.SCHEDULED] == 1:
            run.i[step, st.SCHEDULED] = 2
        run.loaded[w, kept] = step
        kept += 1
    run.w[w, st.N_LOADED] = kept


@njit(cache=True)
def mark_scheduled_copies(world, w, behind):
    """An iteration was composed (`behind` the one that runs): at its end it will say which copies are there now."""
    run = world.run
    for k in range(run.w[w, st.N_LOADED]):
        step = run.loaded[w, k]
        if run.i[step, st.SCHEDULED] == 0:
            run.i[step, st.SCHEDULED] = 1 if behind else 2


@njit(cache=True)
def runs_on(world, w, step):
    """The step whose copy is there runs from there."""
    run = world.run
    run.w[w, st.N_LOADING] -= 1
    run.running[w, run.w[w, st.N_RUNNING]] = step
    run.w[w, st.N_RUNNING] += 1
    run.i[step, st.STATE] = st.RUNNING


@njit(cache=True)
def plan_prefetch(world, w, step, now):
    """The step's tool starts: enter when to bring its chain's context back, to be there when the tool is done."""
    if world.real[st.PREFETCH_TOKENS] <= 0:
        return
    c = world.tree.chain[step]
    world.run.last_step[c] = step
    tokens = world.chains[c, ch.CONTEXT]
    lead = tokens / world.real[st.PCIE_RATE]
    expected = tb.residual_s(world.tables, w, int(world.chains[c, ch.TOOL]), 0.0)
    push(world.heap, now + max(expected - lead, 0.0), first_prefetch(world) + step)


@njit(cache=True)
def prefetch(world, step, now):
    """Time to bring back the context of the chain whose last step this was, if it still is and is still away."""
    run, tree, pool, limits = world.run, world.tree, world.pool, world.limits
    c, block = tree.chain[step], limits[st.BLOCK]
    row, w = world.chains[c], run.home[c]
    if run.last_step[c] != step or row[ch.WAITING] == 1 or row[ch.RUNNING] == 1 or row[ch.ENDED] > 0:
        return
    catch_up(world, w, now)
    account(world, w, now)
    have = kv.resident_prefix(tree, pool, w, step)
    there = kv.resident_prefix(tree, pool, w + limits[st.WORKERS], step)
    budget = int(world.real[st.PREFETCH_TOKENS] - run.wf[w, st.IN_PREFETCH]) // block
    want = min(there, have + budget)
    tenant = world.plan.tenant[world.plan.session[step]]
    room = pool.n[w, kv.FREE] + takeable(world, w, tenant) - kv.idle_hit_blocks(tree, pool, w, step, have)
    if want <= have or want - have > room:
        return
    held = kv.pin(tree, pool, w, step, 0, have)
    free_blocks_for(world, w, want - have, now, False, tenant)
    held, copies = kv.grow(tree, pool, w, step, held, have * block, want * block, block)
    tokens = (want - have) * block
    ready = max(now, run.wf[w, st.PCIE_FREE]) + tokens / world.real[st.PCIE_RATE]
    run.i[step, st.HELD], run.i[step, st.COPIES], run.i[step, st.COMPUTED] = held, copies, want * block
    run.i[step, st.SCHEDULED] = tokens
    run.wf[w, st.PCIE_FREE] = ready
    run.wf[w, st.IN_PREFETCH] += tokens
    run.count[st.PREFETCHED] += tokens
    run.landing[c], run.landing_at[c] = ready, w
    push(world.heap, ready, first_landing(world) + step)


@njit(cache=True)
def landed(world, step, now):
    """A prefetch is complete: what it brought is idle cache like any other. Returns its worker."""
    run = world.run
    i = run.i[step]
    w = i[st.WORKER]
    catch_up(world, w, now)
    account(world, w, now)
    run.wf[w, st.IN_PREFETCH] -= i[st.SCHEDULED]
    kv.release(world.tree, world.pool, w, step, i[st.HELD], i[st.COMPUTED], i[st.COPIES], now, world.limits[st.BLOCK])
    i[st.HELD], i[st.COPIES], i[st.SCHEDULED] = 0, 0, 0
    return w
