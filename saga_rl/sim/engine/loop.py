"""The event loop of the closed loop, compiled.

Deterministic: events of equal time come out in a fixed order; all that happens at one instant is known before an idle
worker composes its next iteration.
"""

from __future__ import annotations

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies import features as ft
from saga_rl.policies.state import chains as ch
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.arrival import TAKE_IN_S, arrive, take_in
from saga_rl.sim.engine.batching import begin_iteration, composed, finish_iteration, schedule
from saga_rl.sim.engine.fast_forward import catch_up, fast_forward
from saga_rl.sim.engine.heap import pop, push
from saga_rl.sim.engine.live_sessions import expire_silent
from saga_rl.sim.engine.next_iteration import wants_room
from saga_rl.sim.engine.stealing import LOOK_S, steal
from saga_rl.sim.engine.tier import copied, heard_of_copies, landed, mark_scheduled_copies, prefetch
from saga_rl.sim.engine.worker import first_load, tick, touch

ENDED, PLACE, CHOOSE, EVICT = 0, 1, 2, 3
"""Why `run_on` returned."""
NO_PAUSE, PLACEMENTS, QUEUE, ALL = 0, 1, 2, 3
"""Where it pauses."""
HOLD = -2
"""`chosen` in answer to CHOOSE: nobody enters now."""
NEVER = 1e9
"""Placements since a worker's last one, if there was none."""
NAP_S = 1e-3
"""vLLM's engine loop sleeps so long after a round that ran nothing although requests are left."""


@njit(cache=True)
def _begin_session(world, s, now):
    plan, run = world.plan, world.run
    run.begin_s[s] = now
    for at in range(plan.root_off[s], plan.root_off[s + 1]):
        push(world.heap, now, plan.root[at])


@njit(cache=True)
def _describe(world, step, now):
    """First sight of a chain."""
    plan, run = world.plan, world.run
    c, s = world.tree.chain[step], plan.session[step]
    ch.describe(world.chains, c, plan.first[s], s, run.begin_s[s], plan.tenant[s], plan.agent_type[s],
                run.begin_s[s] + plan.slack[s])


@njit(cache=True)
def _rows(world, step, now):
    """The placement rows of every worker for this request."""
    run, limits, real = world.run, world.limits, world.real
    c = world.tree.chain[step]
    expire_silent(world, now)
    mean = 0.0
    for w in range(limits[st.WORKERS]):
        mean += run.w[w, st.IN_FLIGHT]
    mean /= limits[st.WORKERS]
    for w in range(limits[st.WORKERS]):
        before = run.w[w, st.PLACED_AT]
        turn = float(run.count[st.PLACED] - before) if before >= 0 else NEVER
        ft.placement_row(world.chains, c, now, float(world.plan.prompt[step]), run.home[c] == w,
                         float(run.w[w, st.IN_FLIGHT]), float(limits[st.MAX_SEQS]), run.wf[w, st.FLIGHT_TOKENS],
                         real[st.POOL_TOKENS], run.wf[w, st.QUEUED_TOKENS], real[st.PREFILL_RATE],
                         float(run.w[w, st.HOMED]), turn, mean, world.work.place[w])
    if limits[st.DRAWS] == 1:
        session = int(world.chains[c, ch.SESSION])
        ft.draw_places(session, 1 + int(world.chains[c, ch.STEPS]), ft.PL.draw, world.work.place)
        ft.draw_places(session, 0, ft.PL.ring, world.work.place)


@njit(cache=True)
def _sample(world, now):
    """Blocks by session, held or cached, over all workers; rows thin out by half whenever they are used up."""
    run = world.run
    if len(run.occupancy_t) == 0 or now < run.total[st.NEXT_SAMPLE]:
        return
    for w in range(world.limits[st.WORKERS]):
        catch_up(world, w, now)
    n = run.count[st.SAMPLES]
    if n == len(run.occupancy_t):
        for k in range(n // 2):
            run.occupancy[k] = run.occupancy[2 * k]
            run.occupancy_t[k] = run.occupancy_t[2 * k]
        n = n // 2
        run.total[st.SAMPLE_EVERY] *= 2.0
    row = run.occupancy[n]
    row[:] = 0
    for w in range(world.limits[st.WORKERS]):
        for k in range(world.pool.n[w, kv.IDLE]):
            seg = world.pool.idle[w, k]
            r = kv.row(world.pool, w, seg)
            row[int(world.chains[world.pool.owner[r], ch.SESSION])] += world.pool.res[r]
        for k in range(run.w[w, st.N_RUNNING]):
            step = run.running[w, k]
            row[world.plan.session[step]] += run.i[step, st.COMPUTED] // world.limits[st.BLOCK]
    run.occupancy_t[n] = now
    run.count[st.SAMPLES] = n + 1
    run.total[st.NEXT_SAMPLE] = now + run.total[st.SAMPLE_EVERY]


@njit(cache=True)
def _place(world, w, step, now):
    """The router sends the step's request to worker w."""
    world.run.w[w, st.PLACED_AT] = world.run.count[st.PLACED]
    world.run.count[st.PLACED] += 1
    arrive(world, w, step, now, now)


@njit(cache=True)
def _drop_stale(world):
    """Ends of runs that were cut short stay on the heap until their time; clear them out when they fill it."""
    heap, run, n_steps, n_workers = world.heap, world.run, len(world.plan.session), world.limits[st.WORKERS]
    if heap.n[0] + 2 * n_workers + 64 < len(heap.time) // 2:
        return
    kept, n = 0, heap.n[0]
    heap.n[0] = 0
    while kept < n:
        time, what = heap.time[kept], heap.what[kept]
        kept += 1
        w = what - n_steps
        if w < 0 or w >= n_workers or time == (run.wf[w, st.DUE] if run.w[w, st.BUSY] == 1 else
                                               run.wf[w, st.NAPS_UNTIL]):
            push(heap, time, what)  # never beyond what was read already


@njit(cache=True)
def _ask(world, w):
    """Whether somebody has to choose from the worker's queue: it changed, or nothing runs and somebody must enter."""
    run = world.run
    if run.w[w, st.N_WAITING] == 0:
        run.w[w, st.URGENT], run.w[w, st.LETS] = 0, st.NOBODY  # who comes meanwhile is asked about at once
        return False
    if run.w[w, st.CHANGED] == 1 or run.w[w, st.N_RUNNING] + run.w[w, st.N_LOADING] == 0:
        run.w[w, st.URGENT], run.w[w, st.LETS] = 0, st.NOBODY
        return True
    if run.w[w, st.URGENT] == 0:  # else the chosen one found no tokens or blocks so far, and may still enter
        run.w[w, st.LETS] = st.NOBODY
    return False


@njit(cache=True)
def _answer(world, chosen):
    """The worker that was asked about lets in the request at place `chosen` of its queue, or (`HOLD`) nobody. One on
    which nothing runs then lets in whom its policies choose."""
    run, w = world.run, world.run.count[st.ASKED]
    run.w[w, st.CHANGED] = 0
    if chosen >= 0:
        run.w[w, st.URGENT] = run.queue[w, chosen] + 1
        run.w[w, st.LETS] = st.ONE
    elif run.w[w, st.N_RUNNING] + run.w[w, st.N_LOADING] == 0:
        run.w[w, st.LETS] = st.AS_POLICY


@njit(cache=True)
def _compose(world, now, pause, answered):
    """All that happens at this instant is known: idle workers among the touched compose their next iteration. `CHOOSE`
    or `EVICT` if somebody has to choose from a worker's queue, or whose blocks go, first, else `ENDED`; answered: the
    former is done for the one asked about."""
    run, n = world.run, world.run.count[st.N_TOUCHED]
    touched = run.touched[:n]
    if n > 1:
        touched.sort()
    # runs of iterations evict on their own
    single = world.literal or world.whole or world.limits[st.SINGLE_STEPS] == 1 or pause == ALL
    chooses = pause in (QUEUE, ALL)
    for k in range(run.count[st.COMPOSING], n):
        w = touched[k]
        run.w[w, st.TOUCHED] = 0
        if world.limits[st.ASYNC] == 1:
            _compose_ahead(world, w, now)
            continue
        if run.w[w, st.BUSY] == 1 or run.w[w, st.N_RUNNING] + run.w[w, st.N_WAITING] == 0:
            continue
        if answered:
            answered = False
        elif chooses and _ask(world, w):
            run.count[st.ASKED], run.count[st.COMPOSING] = w, k
            return CHOOSE
        if pause == ALL:
            begin_iteration(world, w, now)
            if wants_room(world, w, now):
                run.count[st.ASKED], run.count[st.COMPOSING] = w, k
                return EVICT
        held = chooses and run.w[w, st.N_WAITING] > 0
        asked_anew = held and run.w[w, st.LETS] == st.AS_POLICY
        if not single and not asked_anew and fast_forward(world, w, now):
            continue
        length = schedule(world, w, now)
        if held and run.w[w, st.LETS] == st.ONE and run.w[w, st.URGENT] == 0:
            run.w[w, st.CHANGED] = 1  # it entered: another one may
        if length > 0.0:
            _runs(world, w, now + length)
    run.count[st.COMPOSING] = run.count[st.N_TOUCHED] = 0
    return ENDED


@njit(cache=True)
def _compose_ahead(world, w, now):
    """Asynchronous scheduling: while one iteration runs the next is composed, at once if nothing runs, else when one
    ends. Nothing more is composed behind one that had nothing to do."""
    run = world.run
    if now < run.wf[w, st.NAPS_UNTIL] or (run.w[w, st.BUSY] == 1 and run.w[w, st.MAY_COMPOSE] == 0):
        return
    run.w[w, st.MAY_COMPOSE] = 0
    then = now
    while run.w[w, st.AHEAD] == 0:
        then += run.w[w, st.N_INBOX] * TAKE_IN_S
        take_in(world, w, now)
        if run.w[w, st.N_RUNNING] + run.w[w, st.N_WAITING] == 0:
            return
        world.work.ranked[w, 0] = np.nan  # ranked anew in each iteration, also in two of one instant
        length = schedule(world, w, then)
        composed(world, w)
        mark_scheduled_copies(world, w, run.w[w, st.BUSY] == 1)
        if length <= 0.0:
            if run.w[w, st.BUSY] == 1 or run.w[w, st.N_LOADED] == 0:
                return
            heard_of_copies(world, w)  # an iteration that runs nothing says so at once
            continue
        if run.w[w, st.BUSY] == 1:
            run.w[w, st.AHEAD] = 1
            run.wf[w, st.AHEAD_DUE] = run.wf[w, st.DUE] + length
        else:
            _runs(world, w, now + length)


@njit(cache=True)
def _runs(world, w, due):
    """The worker's next iteration runs, until `due`."""
    world.run.w[w, st.BUSY] = 1
    world.run.wf[w, st.DUE] = due
    push(world.heap, due, len(world.plan.session) + w)


@njit(cache=True)
def run_on(world, pause, chosen):
    """Run `world`, a ref (`sim.compiled.refs`), until the end (`ENDED`) or until a decision is wanted. pause =
    PLACEMENTS: `PLACE`, which worker serves the request count[AWAITING] (its rows are in `work.place`). QUEUE:
    `CHOOSE`, who of worker count[ASKED]'s queue enters in the iteration that it is about to compose; asked when the
    queue changed or a request ended since it was last asked, or nothing runs there. ALL: both, and `EVICT`, worker
    count[ASKED] wants count[WANTED] blocks free before it composes one (`victims.evict_chosen` takes them). chosen: the
    answer: a worker, a place in the queue, or `HOLD`; to EVICT, when they are free, 0; -1 = none was asked."""
    plan, run, heap = world.plan, world.run, world.heap
    n_steps, n_workers, loads, ticks = len(plan.session), world.limits[st.WORKERS], first_load(world), tick(world)
    asked = run.count[st.PAUSED]
    answered = chosen != -1 and asked != PLACE
    if answered and asked == CHOOSE:
        _answer(world, chosen)
    elif chosen >= 0 and asked == PLACE:
        _place(world, chosen, run.count[st.AWAITING], run.total[st.NOW])
    while True:
        now = run.total[st.NOW]
        if heap.n[0] == 0 or heap.time[0] > now:
            asked = _compose(world, now, pause, answered)
            if asked != ENDED:
                run.count[st.PAUSED] = asked
                return asked
            answered = False
            _sample(world, now)
        if heap.n[0] == 0 or heap.time[0] > world.real[st.HORIZON]:
            for w in range(n_workers):
                catch_up(world, w, world.real[st.HORIZON])
            return ENDED
        _drop_stale(world)
        now, what = pop(heap)
        if what >= loads:
            run.total[st.NOW] = now
            if what >= ticks:
                if heap.n[0] > 0:  # else nothing is left that could happen
                    steal(world, now)
                    push(heap, now + LOOK_S, ticks)
            elif what >= loads + 2 * n_steps:
                touch(world, landed(world, what - loads - 2 * n_steps, now))
            elif what >= loads + n_steps:
                prefetch(world, what - loads - n_steps, now)
            else:
                touch(world, copied(world, what - loads, now))
        elif what >= n_steps + n_workers:
            run.total[st.NOW] = now
            _begin_session(world, what - n_steps - n_workers, now)
        elif what >= n_steps:
            w = what - n_steps
            if run.w[w, st.BUSY] == 0 and now == run.wf[w, st.NAPS_UNTIL]:
                run.total[st.NOW] = now
                touch(world, w)
                continue
            if run.w[w, st.BUSY] == 0 or now != run.wf[w, st.DUE]:
                continue  # an arrival cut that run of iterations short
            run.total[st.NOW] = now
            catch_up(world, w, now)
            run.w[w, st.BUSY] = 0
            finish_iteration(world, w, now)
            run.w[w, st.MAY_COMPOSE] = 1
            if run.w[w, st.N_LOADED] > 0:
                heard_of_copies(world, w)
            if run.w[w, st.AHEAD] == 1:
                run.w[w, st.AHEAD] = 0
                _runs(world, w, run.wf[w, st.AHEAD_DUE])
            elif world.limits[st.ASYNC] == 1:
                run.wf[w, st.NAPS_UNTIL] = now + NAP_S
                push(heap, now + NAP_S, what)
            touch(world, w)
        else:
            run.total[st.NOW] = now
            c = world.tree.chain[what]
            if np.isnan(world.chains[c, ch.QUEUED]):
                _describe(world, what, now)
            if n_workers == 1:
                _place(world, 0, what, now)
                continue
            _rows(world, what, now)
            if pause in (PLACEMENTS, ALL):
                run.count[st.AWAITING], run.count[st.PAUSED] = what, PLACE
                return PLACE
            best, best_score = 0, -np.inf
            for w in range(n_workers):
                score = world.place_score(world.work.place[w], world.place_params, world.place_scratch)
                if score > best_score or (score == best_score and run.w[w, st.HOMED] < run.w[best, st.HOMED]):
                    best, best_score = w, score
            _place(world, best, what, now)
        run.count[st.EVENTS] += 1
