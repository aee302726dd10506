"""One worker: iteration-level continuous batching as vLLM v1 schedules it.

An iteration first serves what runs (a decode takes one token, an unfinished prefill a chunk), preempting the
request that was scheduled last when blocks run out, and then, unless it preempted, takes in waiting requests in queue
order until the token budget, the slots, the blocks or the admission policy say stop. Preemption is by recomputation.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from saga_rl.policies import chains as ch
from saga_rl.policies import features as ft
from saga_rl.policies.fairness import afs
from saga_rl.sim import cache as kv
from saga_rl.sim import state as st
from saga_rl.sim.coast import settle
from saga_rl.sim.heap import push
from saga_rl.sim.reference import END, READY, START
from saga_rl.sim.worker import EPOCH, account, blocks_for, log_event, new_epoch


# ---------------------------------------------------------------- the waiting queue
@njit(cache=True)
def _key(world, step, now, order_score, order_params, order_scratch):
    run, row = world.run, world.work.order
    c = world.tree.chain[step]
    preempted = 1.0 if run.i[step, st.PREEMPTIONS] > 0 else 0.0
    ft.ordering_row(world.chains, c, now, run.f[step, st.READY], float(world.plan.prompt[step]), preempted,
                    run.afs[world.plan.tenant[world.plan.session[step]]], row)
    return order_score(row, order_params, order_scratch)


@njit(cache=True)
def _goes_before(run, a, b):
    if run.f[a, st.KEY] != run.f[b, st.KEY]:
        return run.f[a, st.KEY] < run.f[b, st.KEY]
    if run.f[a, st.READY] != run.f[b, st.READY]:
        return run.f[a, st.READY] < run.f[b, st.READY]
    return a < b


@njit(cache=True)
def _sink(run, w, at):
    """Move the entry at `at` of the worker's queue forward to its place among those before it."""
    q = run.queue[w]
    step = q[at]
    while at > 0 and _goes_before(run, step, q[at - 1]):
        q[at] = q[at - 1]
        at -= 1
    q[at] = step


@njit(cache=True)
def enqueue(world, w, step, now, order_score, order_params, order_scratch):
    """Put a step into the worker's queue at the place that its key gives it."""
    run = world.run
    run.f[step, st.KEY] = _key(world, step, now, order_score, order_params, order_scratch)
    run.i[step, st.STATE] = st.WAITING
    n = run.w[w, st.N_WAITING]
    run.queue[w, n] = step
    run.w[w, st.N_WAITING] = n + 1
    _sink(run, w, n)


@njit(cache=True)
def _dequeue(run, w):
    q, n = run.queue[w], run.w[w, st.N_WAITING] - 1
    for k in range(n):
        q[k] = q[k + 1]
    run.w[w, st.N_WAITING] = n


@njit(cache=True)
def epoch(world, w, now, order_score, order_params, order_scratch):
    """With each new epoch recompute shares and sort the queue anew."""
    run = world.run
    n = run.w[w, st.N_WAITING]
    if not new_epoch(world, w, now) or n == 0:
        return
    afs(world.chains, world.tables, w, run.live[1:], run.live[0], now, EPOCH, run.afs)
    for k in range(n):
        step = run.queue[w, k]
        run.f[step, st.KEY] = _key(world, step, now, order_score, order_params, order_scratch)
        _sink(run, w, k)


# ---------------------------------------------------------------- blocks
@njit(cache=True)
def _make_room(world, w, need, now, evict_score, evict_params, evict_scratch, whole):
    run = world.run
    for k in range(run.w[w, st.N_WAITING]):
        world.chains[world.tree.chain[run.queue[w, k]], ch.QPOS] = k
    kv.make_room(world.tree, world.pool, world.chains, world.tables, world.g, w, need, now, world.work.next_use,
                 evict_score, evict_params, evict_scratch, whole, world.work.evict, world.work.scores)


@njit(cache=True)
def drop(world, w, step, now):
    """Release what the step holds: it is done or preempted."""
    run = world.run
    i = run.i[step]
    kv.release(world.tree, world.pool, w, step, i[st.HELD], i[st.COMPUTED], i[st.COPIES], now, world.limits[st.BLOCK])
    i[st.HELD] = 0
    i[st.COPIES] = 0


@njit(cache=True)
def _preempt_last(world, w, now, order_score, order_params, order_scratch):
    run = world.run
    run.w[w, st.N_RUNNING] -= 1
    step = run.running[w, run.w[w, st.N_RUNNING]]
    log_event(world, END, step, now, run.i[step, st.COMPUTED], 0)
    drop(world, w, step, now)
    run.i[step, st.COMPUTED] = 0
    run.i[step, st.PREEMPTIONS] += 1
    run.count[st.PREEMPTED] += 1
    ch.preempt(world.chains, world.tree.chain[step], now)
    enqueue(world, w, step, now, order_score, order_params, order_scratch)
    return step


# ---------------------------------------------------------------- admission
@njit(cache=True)
def fill_admission(world, w, step, cached, known, now):
    """The admission row of the request at the head of worker w's queue. cached: its resident prefix, blocks."""
    run, pool, chains, tables = world.run, world.pool, world.chains, world.tables
    block = world.limits[st.BLOCK]
    c = world.tree.chain[step]
    mine = world.chains[c]
    e = ft.expected_output(tables, w, int(mine[ch.TYPE]), 0.0)
    need = blocks_for(known + int(max(e - run.i[step, st.GENERATED], 1.0)), block) - cached
    growth, session_growth = 0.0, 0.0
    for k in range(run.w[w, st.N_RUNNING]):
        r = run.running[w, k]
        rc = world.tree.chain[r]
        i = run.i[r]
        more = max(ft.expected_output(tables, w, int(chains[rc, ch.TYPE]), 0.0) - i[st.GENERATED], 1.0)
        then = world.plan.prompt[r] + i[st.GENERATED] + int(more)
        growth += blocks_for(then, block) - blocks_for(i[st.COMPUTED], block)
        session_growth += ft.expected_growth(chains, tables, w, rc) / block
    older, live = 0.0, float(pool.n[w, kv.PINNED] + pool.n[w, kv.PRIVATE])
    tick = world.work.stamp[-1] + 1
    world.work.stamp[-1] = tick
    for k in range(pool.n[w, kv.IDLE]):
        seg = pool.idle[w, k]
        o = pool.owner[w, seg]
        row = chains[o]
        if row[ch.ENDED] > 0 or (row[ch.WAITING] == 0 and now - pool.last[w, seg] > world.real[st.EXPIRY]):
            continue
        live += pool.res[w, seg]
        if world.work.stamp[o] != tick:
            world.work.stamp[o] = tick
            session_growth += ft.expected_growth(chains, tables, w, o) / block
        older_session = row[ch.SESSION_S] < mine[ch.SESSION_S] or (
            row[ch.SESSION_S] == mine[ch.SESSION_S] and row[ch.SESSION] < mine[ch.SESSION])
        if older_session:
            older += pool.res[w, seg]
    new = 1.0 if mine[ch.STEPS] == 0 else 0.0
    ft.admission_row(float(need), float(pool.n[w, kv.FREE]), float(kv.evictable(pool, w)), older, growth,
                     float(pool.n[w, kv.POOL]), float(pool.n[w, kv.PINNED] + pool.n[w, kv.PRIVATE]), new, live,
                     session_growth, float(run.w[w, st.N_RUNNING]), now - run.f[step, st.READY], world.work.admit)


# ---------------------------------------------------------------- one iteration
@njit(cache=True)
def schedule(world, w, now, order_score, order_params, order_scratch, admit_score, admit_params, admit_scratch,
             evict_score, evict_params, evict_scratch, whole, literal):
    """Compose the worker's next iteration. Returns its seconds, 0 when there is nothing to run."""
    tree, pool, plan, run, real = world.tree, world.pool, world.plan, world.run, world.real
    block = world.limits[st.BLOCK]
    account(world, w, now)
    epoch(world, w, now, order_score, order_params, order_scratch)
    if literal:
        kv.drop_expired(tree, pool, world.chains, world.tables, world.g, w, now, world.work.next_use, world.work.evict)
    budget = world.limits[st.BATCHED]
    prefill, pairs, kv_read, decoding = 0, 0.0, 0.0, 0
    preempted = False
    k = 0
    while k < run.w[w, st.N_RUNNING] and budget > 0:
        step = run.running[w, k]
        i = run.i[step]
        have = i[st.COMPUTED]
        n = min(plan.prompt[step] + i[st.GENERATED] - have, budget)
        need = blocks_for(have + n, block) - blocks_for(have, block)
        gone = False
        while pool.n[w, kv.FREE] + kv.evictable(pool, w) < need:
            preempted = True
            if _preempt_last(world, w, now, order_score, order_params, order_scratch) == step:
                gone = True
                break
        if gone:
            break
        _make_room(world, w, need, now, evict_score, evict_params, evict_scratch, whole)
        i[st.HELD], copies = kv.grow(tree, pool, w, step, i[st.HELD], have, have + n, block)
        i[st.COPIES] += copies
        i[st.SCHEDULED] = n
        if have < i[st.TARGET]:
            prefill += n
            pairs += n * (have + 0.5 * n)
            run.count[st.RECOMPUTED] += max(min(have + n, i[st.KNOWN]) - have, 0)
        else:
            decoding += 1
            kv_read += have
        budget -= n
        k += 1
    while not preempted and run.w[w, st.N_WAITING] > 0 and budget > 0 and run.w[w, st.N_RUNNING] < world.limits[
            st.MAX_SEQS]:
        step = run.queue[w, 0]
        i = run.i[step]
        known = plan.prompt[step] + i[st.GENERATED]
        cached = min(kv.resident_prefix(tree, pool, w, step), (known - 1) // block)
        if run.w[w, st.N_RUNNING] > 0:
            fill_admission(world, w, step, cached, known, now)
            if not admit_score(world.work.admit, admit_params, admit_scratch) > 0.0:
                break
        have = cached * block
        n = min(known - have, budget)
        need = blocks_for(have + n, block) - cached
        if pool.n[w, kv.FREE] + kv.evictable(pool, w) - kv.idle_hit_blocks(tree, pool, w, step, cached) < need:
            break
        log_event(world, START, step, now, known, 0)
        _start(world, w, step, cached, known, now)
        _make_room(world, w, need, now, evict_score, evict_params, evict_scratch, whole)
        i[st.HELD], copies = kv.grow(tree, pool, w, step, i[st.HELD], have, have + n, block)
        i[st.COPIES] += copies
        i[st.SCHEDULED] = n
        prefill += n
        pairs += n * (have + 0.5 * n)
        run.count[st.RECOMPUTED] += max(min(have + n, i[st.KNOWN]) - have, 0)
        budget -= n
    run.count[st.PREFILLED] += prefill
    if prefill == 0 and decoding == 0:
        return 0.0
    run.count[st.ITERATIONS] += 1
    return real[0] + real[1] * prefill + real[2] * kv_read + real[3] * decoding + real[4] * pairs


@njit(cache=True)
def _start(world, w, step, cached, known, now):
    """The step at the head of the queue leaves it and pins its cached prefix."""
    tree, pool, run = world.tree, world.pool, world.run
    i, f = run.i[step], run.f[step]
    block = world.limits[st.BLOCK]
    _dequeue(run, w)
    run.running[w, run.w[w, st.N_RUNNING]] = step
    run.w[w, st.N_RUNNING] += 1
    i[st.KNOWN] = min(kv.known_prefix(tree, pool, step), (known - 1) // block) * block
    for at in range(tree.path_off[step], tree.path_off[step + 1]):
        seg = tree.path[at]
        if tree.start[seg] >= cached:
            break
        if pool.ref[w, seg] == 0:
            hit = min(pool.res[w, seg], cached - tree.start[seg])
            run.total[st.USEFUL_IDLE] += hit * (now - pool.last[w, seg])
    i[st.HELD] = kv.pin(tree, pool, w, step, 0, cached)
    i[st.COPIES] = 0
    i[st.COMPUTED] = cached * block
    i[st.TARGET] = known
    i[st.STATE] = st.RUNNING
    if np.isnan(f[st.START_S]):
        f[st.START_S] = now
        i[st.CACHED] = cached * block
        run.count[st.HIT] += cached * block
        run.count[st.PROMPT] += world.plan.prompt[step]
    ch.schedule(world.chains, tree.chain[step], now)


@njit(cache=True)
def finish_iteration(world, w, now):
    """What the iteration computed is there: tokens advance, answers end, children are born."""
    plan, run = world.plan, world.run
    account(world, w, now)
    kept = 0
    for k in range(run.w[w, st.N_RUNNING]):
        step = run.running[w, k]
        i = run.i[step]
        i[st.COMPUTED] += i[st.SCHEDULED]
        i[st.SCHEDULED] = 0
        if i[st.COMPUTED] == plan.prompt[step] + i[st.GENERATED]:
            i[st.GENERATED] += 1
            if np.isnan(run.f[step, st.FIRST_S]):
                run.f[step, st.FIRST_S] = now
                run.wf[w, st.QUEUED_TOKENS] -= i[st.BOOKED]
            if i[st.GENERATED] >= plan.output[step]:
                _finish_step(world, w, step, now)
                continue
        run.running[w, kept] = step
        kept += 1
    run.w[w, st.N_RUNNING] = kept


@njit(cache=True)
def _finish_step(world, w, step, now):
    plan, run = world.plan, world.run
    i, c, s = run.i[step], world.tree.chain[step], plan.session[step]
    log_event(world, END, step, now, i[st.COMPUTED], 1)
    drop(world, w, step, now)
    i[st.STATE] = st.DONE
    run.f[step, st.DONE_S] = now
    run.count[st.STEPS_DONE] += 1
    run.w[w, st.IN_FLIGHT] -= 1
    run.wf[w, st.FLIGHT_TOKENS] -= plan.prompt[step]
    final = plan.final[step] == 1
    ch.finish(world.chains, world.tables, w, c, now, float(plan.prompt[step]), float(plan.output[step]),
              plan.tool[step], final and world.limits[st.END_HINT] == 1)
    if final:
        run.w[w, st.HOMED] -= 1
        for k in range(1, run.live[0] + 1):
            if run.live[k] == c:
                run.live[k] = run.live[run.live[0]]
                run.live[0] -= 1
                break
    for at in range(plan.child_off[step], plan.child_off[step + 1]):
        kid = plan.child[at]
        same = world.tree.chain[kid] == c
        run.f[kid, st.READY_AT] = max(run.f[kid, st.READY_AT], now + (plan.gap[step] if same else 0.0))
        run.i[kid, st.PENDING] -= 1
        if run.i[kid, st.PENDING] == 0:
            push(world.heap, run.f[kid, st.READY_AT], kid)
    run.left[s] -= 1
    if run.left[s] == 0:
        run.done_s[s] = now
        run.count[st.SESSIONS_DONE] += 1
        nxt = run.count[st.NEXT_SESSION]
        if world.limits[st.POPULATION] > 0 and nxt < len(run.left):
            run.count[st.NEXT_SESSION] += 1
            push(world.heap, now, len(plan.session) + world.limits[st.WORKERS] + nxt)


@njit(cache=True)
def arrive(world, w, step, now, order_score, order_params, order_scratch, literal):
    """The request was placed on worker w: queue it and book it in the router's view."""
    run, c = world.run, world.tree.chain[step]
    settle(world, w, now)
    if run.home[c] >= 0:
        settle(world, run.home[c], now)
    account(world, w, now)
    if literal:  # a timer would have fired before the request came back
        kv.drop_expired(world.tree, world.pool, world.chains, world.tables, world.g, w, now, world.work.next_use,
                        world.work.evict)
    log_event(world, READY, step, now, world.plan.prompt[step], 0)
    run.i[step, st.WORKER] = w
    run.f[step, st.READY] = now
    ch.arrive(world.chains, world.tables, w, c, now, float(world.plan.prompt[step]))
    home = run.home[c]
    run.i[step, st.BOOKED] = int(ft.uncached_tokens(world.chains, c, float(world.plan.prompt[step]), home == w))
    if home != w:
        if home >= 0:
            run.w[home, st.HOMED] -= 1
            run.count[st.MIGRATIONS] += 1
        run.w[w, st.HOMED] += 1
        run.home[c] = w
    run.w[w, st.IN_FLIGHT] += 1
    run.wf[w, st.FLIGHT_TOKENS] += world.plan.prompt[step]
    run.wf[w, st.QUEUED_TOKENS] += run.i[step, st.BOOKED]
    enqueue(world, w, step, now, order_score, order_params, order_scratch)
