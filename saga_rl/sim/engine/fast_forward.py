"""Runs of iterations whose composition is known in advance, taken in one go and exactly.

Two kinds. *Decode*: every running request decodes, and nobody can join: the queue is empty, all slots are taken, who
chooses from it (`loop.QUEUE`) lets nobody in, or the request that is next is kept out by what can only change when
something arrives, ends or expires. *Prefill*: beside the
decoding requests one long prompt takes the rest of the token budget, so the queue is not even looked at. Such a run is
entered on the heap as one event; it ends before an answer ends, a prompt is complete, a preemption or an expiry.

`catch_up` brings a worker to the iteration that is in flight at a given time, evicting at the times and in the order in
which iteration by iteration would have. Times are summed in the same order and with the same terms, so they are the
same numbers. Whoever reads or changes what the run depends on makes the worker catch up first.

Why a head that lacks blocks stays out during a run: its lookup loses a block only if one was evicted, which happens
only for a block that the run allocated; so what is free or evictable beside its hits never grows against what it needs.
"""

from __future__ import annotations

import numpy as np

from saga_rl.njit import njit
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cost.iteration import ATTENTION, CONTEXT, KV, steady_seconds
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.admit import blocks_wanted, fill_admission, free_blocks_for, lets_in
from saga_rl.sim.engine.heap import push
from saga_rl.sim.engine.live_sessions import next_silence
from saga_rl.sim.engine.waiting import charge, starves_from
from saga_rl.sim.engine.worker import EPOCH, account, blocks_for, scheduled_tokens

FREELY, NO_EVICTION, NOT_AT_ALL = range(3)


@njit(cache=True)
def _kept_out(world, w, budget, now):
    """Whether who is next in the worker's queue stays out while the running requests decode, with `budget` tokens left.
    That is its head, or whom who chooses let in: nobody, or one that may find no room yet."""
    run, pool, tree = world.run, world.pool, world.tree
    if run.w[w, st.N_WAITING] == 0 or run.w[w, st.LETS] == st.NOBODY or budget <= 0 or (
            run.w[w, st.N_RUNNING] + run.w[w, st.N_LOADING] >= world.limits[st.MAX_SEQS]):
        return FREELY
    if world.limits[st.TIER] == 1 or world.real[st.LINK_RATE] > 0 or world.limits[st.FRESH] == 1 or (
            starves_from(world, w) < now):
        return NOT_AT_ALL  # what it would wait for, or who is first, depends on when it is asked
    block, step = world.limits[st.BLOCK], run.queue[w, 0]
    if run.w[w, st.LETS] == st.ONE:
        step = run.w[w, st.URGENT] - 1
        if step < 0 or run.i[step, st.STATE] != st.WAITING or run.i[step, st.WORKER] != w:
            return NOT_AT_ALL  # it was taken away
    known = world.plan.prompt[step] + run.i[step, st.GENERATED]
    cached = min(kv.resident_prefix(tree, pool, w, step), (known - 1) // block)
    own = kv.reusable(tree, pool, w, step, cached)
    need = blocks_wanted(world, cached, known, budget) - own
    if pool.n[w, kv.FREE] + kv.evictable(pool, w) - kv.idle_hit_blocks(tree, pool, w, step, cached + own) < need:
        return FREELY
    if world.limits[st.ADMIT_STEADY] == 0 or run.w[w, st.LETS] == st.ONE:
        return NOT_AT_ALL
    for at in range(tree.path_off[step], tree.path_off[step + 1]):  # does somebody compute its prefix just now?
        r = kv.row(pool, w, tree.path[at])
        if pool.res[r] < tree.blocks[tree.path[at]]:
            if pool.ref[r] > 0:
                return NOT_AT_ALL
            break
    fill_admission(world, w, step, cached, known, now)
    if lets_in(world, world.work.admit):
        return NOT_AT_ALL
    return NO_EVICTION


@njit(cache=True)
def _count_residues(world, w, decoding):
    """Fill `work.residue`; returns the KV tokens that the decoding requests read."""
    steps, running, residue, block = world.run.i, world.run.running, world.work.residue, world.limits[st.BLOCK]
    for k in range(block):
        residue[k] = 0
    total = 0
    for k in range(decoding):
        computed = steps[running[w, k], st.COMPUTED]
        total += computed
        residue[computed % block] += 1
    return total


@njit(cache=True)
def _extra(cost, have, chunk):
    """Seconds by which an iteration is longer because it computes `chunk` prompt tokens at context `have`."""
    return cost[ATTENTION] * (chunk * (have + 0.5 * chunk)) + cost[CONTEXT] * have


@njit(cache=True)
def _private_prefix(world, step, have, upto):
    """Whether nobody else's context holds what the step computes between `have` and `upto` tokens, or all know it."""
    tree, block = world.tree, world.limits[st.BLOCK]
    for at in range(tree.path_off[step], tree.path_off[step + 1]):
        seg = tree.path[at]
        if tree.start[seg] >= upto // block:
            break
        if world.plan.shared[seg] == 1 and world.pool.ever[seg] < tree.blocks[seg] and (
                tree.start[seg] + tree.blocks[seg] > have // block):
            return False
    return True


@njit(cache=True)
def _steady_until(world, w, now):
    """When the order of victims may change by time alone."""
    run, pool, idle_s = world.run, world.pool, world.real[st.STEADY_IDLE]
    if idle_s == np.inf or world.limits[st.EVICT_STEADY] == 0:
        return np.inf
    if now > run.wf[w, st.NEXT_IDLE]:
        soonest = now  # whatever becomes idle later gets there later
        for k in range(pool.n[w, kv.IDLE]):
            last = pool.last[kv.row(pool, w, pool.idle[w, k])]
            if last + idle_s >= now:
                soonest = min(soonest, last)
        run.wf[w, st.NEXT_IDLE] = soonest + idle_s
    return run.wf[w, st.NEXT_IDLE]


@njit(cache=True)
def fast_forward(world, w, now):
    """Enter the worker's next run of iterations as one event; False if there is none of two or more."""
    plan, run, pool = world.plan, world.run, world.pool
    running = run.w[w, st.N_RUNNING]
    if running == 0 or now > run.wf[w, st.NEXT_EXPIRY]:
        return False
    most, decoding = 1 << 40, running
    order, steps, output = run.running, run.i, plan.output
    for k in range(running):
        step = order[w, k]
        if steps[step, st.COMPUTED] < steps[step, st.TARGET]:
            if k < running - 1:
                return False
            decoding -= 1
        else:
            most = min(most, output[step] - steps[step, st.GENERATED])
    budget = world.limits[st.BATCHED] - decoding
    have, chunk, rule = 0, 0, FREELY
    if budget < 0:
        return False
    if decoding < running:
        step = run.running[w, running - 1]
        have = run.i[step, st.COMPUTED]
        chunk = scheduled_tokens(run.i[step, st.TARGET], have, budget)
        if chunk == 0:
            return False
        most = min(most, (run.i[step, st.TARGET] - have - 1) // chunk)
        if most < 2 or not _private_prefix(world, step, have, run.i[step, st.TARGET]):
            return False
    elif most < 2:
        return False
    else:
        rule = _kept_out(world, w, budget, now)
        if rule == NOT_AT_ALL:
            return False
    last_start = min(run.wf[w, st.NEXT_EXPIRY], _steady_until(world, w, now))
    if rule == NO_EVICTION:
        last_start = min(last_start, next_silence(world, now))
    last_start = min(last_start, starves_from(world, w))
    if run.w[w, st.N_WAITING] > 0 and world.limits[st.ORDER_STEADY] == 0:
        last_start = min(last_start, run.wf[w, st.EPOCH_S] + EPOCH)  # the queue is sorted anew then
    free = pool.n[w, kv.FREE] + (kv.evictable(pool, w) if rule == FREELY else 0)
    kv_read, t, n = _count_residues(world, w, decoding), now, 0
    block, residue, cost = world.limits[st.BLOCK], world.work.residue, world.cost
    steady, per_kv, extra, at = steady_seconds(cost, chunk, decoding), cost[KV], 0.0, 0
    while n < most and t < last_start:
        free -= residue[at]  # who has computed so many tokens modulo the block needs a new one now
        at = at - 1 if at > 0 else block - 1
        if chunk > 0:
            free -= blocks_for(have + chunk, block) - blocks_for(have, block)
            extra = _extra(cost, have, chunk)
            have += chunk
        if free < 0:
            break
        t += (steady + per_kv * kv_read) + extra
        kv_read += decoding
        n += 1
    if n < 2:
        return False
    run.w[w, st.FORWARD] = n
    run.w[w, st.CHUNK] = chunk
    run.wf[w, st.FORWARD_FROM] = now
    run.wf[w, st.DUE] = t
    run.w[w, st.BUSY] = 1
    push(world.heap, t, len(plan.session) + w)
    return True


@njit(cache=True)
def catch_up(world, w, now):
    """Bring a worker that was fast-forwarded to the iteration in flight at `now`, and enter that one's end."""
    run, pool = world.run, world.pool
    n = run.w[w, st.FORWARD]
    if n == 0:
        return
    run.w[w, st.FORWARD] = 0
    account(world, w, run.wf[w, st.FORWARD_FROM])
    running, chunk = run.w[w, st.N_RUNNING], run.w[w, st.CHUNK]
    decoding, have = running, 0
    if chunk > 0:
        decoding -= 1
        have = run.i[run.running[w, decoding], st.COMPUTED]
    kv_read, t, end, k = _count_residues(world, w, decoding), run.wf[w, st.FORWARD_FROM], 0.0, 0
    at_once = world.limits[st.EVICT_STEADY] == 1  # the order of victims does not depend on the time
    busy = pool.n[w, kv.PINNED] + pool.n[w, kv.PRIVATE]
    idle = pool.n[w, kv.RESIDENT] - pool.n[w, kv.PINNED]
    free, taken, lump = pool.n[w, kv.FREE], 0, 0
    block, residue, cost = world.limits[st.BLOCK], world.work.residue, world.cost
    steady, per_kv, extra, at = steady_seconds(cost, chunk, decoding), cost[KV], 0.0, 0
    wf, counts = run.wf, pool.n
    in_use, busy_blocks, epoch_s = wf[w, st.IN_USE], wf[w, st.BUSY_BLOCKS], wf[w, st.EPOCH_S]
    while True:
        if t - epoch_s >= EPOCH:
            epoch_s = t  # `fast_forward` ended the run before anything could expire
        need, more = residue[at], 0
        at = at - 1 if at > 0 else block - 1
        if chunk > 0:
            more = blocks_for(have + chunk, block) - blocks_for(have, block)
            extra = _extra(cost, have, chunk)
        if not at_once:  # held as a lump until it is known how far the run got
            for part in range(need + 1):  # request by request, as they would ask for room
                size = 1 if part < need else more
                free_blocks_for(world, w, size, t, False, -1)
                counts[w, kv.FREE] -= size
                counts[w, kv.PRIVATE] += size
                lump += size
        need += more
        if need > free:
            if at_once:
                taken += need - free
            idle -= need - free
            free = need
        free -= need
        busy += need
        end = t + ((steady + per_kv * kv_read) + extra)
        if end >= now or k == n - 1:
            break
        in_use += (end - t) * (busy + idle)
        busy_blocks += (end - t) * busy
        t = end
        k += 1
        kv_read += decoding
        have += chunk
    wf[w, st.IN_USE], wf[w, st.BUSY_BLOCKS], wf[w, st.EPOCH_S] = in_use, busy_blocks, epoch_s
    pool.n[w, kv.FREE] += lump
    pool.n[w, kv.PRIVATE] -= lump
    if taken > 0:
        free_blocks_for(world, w, pool.n[w, kv.FREE] + taken, t, False, -1)
    run.wf[w, st.SEEN_S] = t
    run.count[st.ITERATIONS] += k + 1
    run.count[st.FORWARDED] += k + 1
    run.count[st.PREFILLED] += (k + 1) * chunk
    seen(world, chunk, have, decoding, kv_read)
    order, steps, tree = run.running, run.i, world.tree
    for at in range(running):
        step = order[w, at]
        have = steps[step, st.COMPUTED]
        each = 1 if at < decoding else chunk
        want = have + (k + 1) * each
        if want > (have + block - 1) // block * block or want // block > have // block:
            held, copies = kv.grow(tree, pool, w, step, steps[step, st.HELD], have, want, block)
            steps[step, st.HELD] = held
            steps[step, st.COPIES] += copies
        steps[step, st.COMPUTED] = have + k * each
        if at < decoding:
            steps[step, st.GENERATED] += k
            charge(world, w, step, 0, k)
        else:
            run.count[st.RECOMPUTED] += max(min(want, steps[step, st.KNOWN]) - have, 0)
        steps[step, st.SCHEDULED] = each
    if end != run.wf[w, st.DUE]:
        run.wf[w, st.DUE] = end
        push(world.heap, end, len(world.plan.session) + w)


@njit(cache=True)
def seen(world, prefill, context, decoding, kv_read):
    """Remember the largest iteration, to know whether the cost model was asked beyond what it was fitted on."""
    total = world.run.total
    total[st.MOST_PREFILL] = max(total[st.MOST_PREFILL], prefill)
    total[st.MOST_CONTEXT] = max(total[st.MOST_CONTEXT], context)
    total[st.MOST_SEQS] = max(total[st.MOST_SEQS], decoding)
    total[st.MOST_KV] = max(total[st.MOST_KV], kv_read)


@njit(cache=True)
def catch_up_others(world, w, c, now):
    """Chain c is about to change: workers other than w that hold idle blocks of it have to be where time is."""
    run, pool = world.run, world.pool
    if run.moved[c] == 0:
        return
    for other in range(world.limits[st.WORKERS]):
        if other != w and run.w[other, st.FORWARD] > 0:
            r = kv.find(pool, other, pool.meta[kv.SEGMENTS] + c)
            if r >= 0 and pool.owned[r] > 0:
                catch_up(world, other, now)


@njit(cache=True)
def undisturbed(world, w, moves):
    """Whether an arrival leaves the worker's run as it is: the queue is not looked at, or its head stays where it is
    unless the arrival `moves` it (goes before it, or sets room free). Not where somebody chooses, who is to be asked
    again."""
    run = world.run
    limits = world.limits
    if limits[st.TENANTS] > 0 or limits[st.OLDEST_FIRST] == 0 or limits[st.ORDER_STEADY] == 0 or (
            run.w[w, st.LETS] != st.AS_POLICY):
        return False
    return run.w[w, st.FORWARD] > 0 and (
        run.w[w, st.CHUNK] > 0 or run.w[w, st.N_RUNNING] + run.w[w, st.N_LOADING] >= world.limits[st.MAX_SEQS]
        or (run.w[w, st.N_WAITING] > 0 and not moves))

