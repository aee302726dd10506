"""Work stealing (SAGA section 6): an idle worker takes a queued session from an overloaded one.

Guards, in this order: the thief has been idle for `IDLE_S`; the victim's load (`features.load`) is above `RATIO` times
the smallest of all workers, the smallest counting as at least `LEAST_LOAD` (an idle worker's load is 0, so without a
floor any queue would do); the request has not been stolen `MOST` times yet; and it has waited for as long as the thief
would spend on having its context (computed again, or copied where a link is configured, whichever is less), so a move
costs at most what was lost already. Victim: drawn uniformly among the overloaded workers; its oldest waiting session
whose request has not begun to run. Everyone looks every `LOOK_S`, so a worker is idle for at most one look longer than
it has to be.
"""

from __future__ import annotations

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies import features as ft
from saga_rl.policies.state import chains as ch
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.arrival import arrive
from saga_rl.sim.engine.fast_forward import catch_up
from saga_rl.sim.engine.waiting import dequeue

LOOK_S = 0.1
IDLE_S = 0.1
RATIO = 2.0
LEAST_LOAD = 0.5
MOST = 5


@njit(cache=True)
def _load(world, w):
    run, limits, real = world.run, world.limits, world.real
    return ft.load(run.w[w, st.IN_FLIGHT] / limits[st.MAX_SEQS],
                   min(run.wf[w, st.FLIGHT_TOKENS] / real[st.POOL_TOKENS], 1.0),
                   run.wf[w, st.QUEUED_TOKENS] / real[st.PREFILL_RATE])


@njit(cache=True)
def _idle(world, w):
    run = world.run
    return run.w[w, st.N_RUNNING] + run.w[w, st.N_WAITING] + run.w[w, st.N_LOADING] == 0


@njit(cache=True)
def _oldest(world, w, now):
    """Place in worker w's queue of the oldest session that may be taken, -1 = none."""
    run, real = world.run, world.real
    best, best_s = -1, np.inf
    for k in range(run.w[w, st.N_WAITING]):
        step = run.queue[w, k]
        c = world.tree.chain[step]
        if not np.isnan(run.f[step, st.START_S]) or run.i[step, st.STOLEN] >= MOST:
            continue
        prompt, context = world.plan.prompt[step], world.chains[c, ch.CONTEXT]
        cost = prompt / real[st.PREFILL_RATE]
        if real[st.LINK_RATE] > 0:
            cost = min(cost, (prompt - min(context, prompt)) / real[st.PREFILL_RATE] + context / real[st.LINK_RATE])
        if cost <= now - world.chains[c, ch.QUEUED] and world.chains[c, ch.SESSION_S] < best_s:
            best, best_s = k, world.chains[c, ch.SESSION_S]
    return best


@njit(cache=True)
def steal(world, now):
    """Let every worker that has been idle for long enough take one session."""
    run, n = world.run, world.limits[st.WORKERS]
    for w in range(n):
        if not _idle(world, w):
            run.wf[w, st.IDLE_SINCE] = np.nan
            continue
        if np.isnan(run.wf[w, st.IDLE_SINCE]):
            run.wf[w, st.IDLE_SINCE] = now
        if now - run.wf[w, st.IDLE_SINCE] < IDLE_S:
            continue
        low, over = np.inf, 0
        for v in range(n):
            low = min(low, _load(world, v))
        floor = RATIO * max(low, LEAST_LOAD)
        for v in range(n):
            over += 1 if v != w and _load(world, v) > floor else 0
        if over == 0:
            return
        pick = int(ft.draw(run.count[st.PLACED], run.count[st.STEALS], w) * over)
        for v in range(n):
            if v != w and _load(world, v) > floor:
                pick -= 1
                if pick < 0:
                    _move(world, v, w, now)
                    break


@njit(cache=True)
def _move(world, victim, thief, now):
    run = world.run
    at = _oldest(world, victim, now)
    if at < 0:
        return
    catch_up(world, victim, now)
    step = run.queue[victim, at]
    dequeue(world, victim, at, False)
    if run.w[victim, st.URGENT] == step + 1:
        run.w[victim, st.URGENT] = 0
    run.w[victim, st.IN_FLIGHT] -= 1
    run.wf[victim, st.FLIGHT_TOKENS] -= world.plan.prompt[step]
    run.wf[victim, st.QUEUED_TOKENS] -= run.i[step, st.BOOKED]
    run.i[step, st.STOLEN] += 1
    run.count[st.STEALS] += 1
    run.wf[thief, st.IDLE_SINCE] = np.nan
    arrive(world, thief, step, run.f[step, st.READY], now)
