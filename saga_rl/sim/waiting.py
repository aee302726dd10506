"""A worker's waiting queue, in the order of the ordering policy's keys."""

from __future__ import annotations

from numba import njit

from saga_rl.policies import features as ft
from saga_rl.policies.fairness import afs
from saga_rl.sim import state as st
from saga_rl.sim.worker import EPOCH, new_epoch


@njit(cache=True)
def key_of(world, step, now, order_score, order_params, order_scratch):
    run, row = world.run, world.work.order
    c = world.tree.chain[step]
    preempted = 1.0 if run.i[step, st.PREEMPTIONS] > 0 else 0.0
    ft.ordering_row(world.chains, c, now, run.f[step, st.READY], float(world.plan.prompt[step]), preempted,
                    run.afs[world.plan.tenant[world.plan.session[step]]], row)
    return order_score(row, order_params, order_scratch)


@njit(cache=True)
def goes_before(run, a, b):
    if run.f[a, st.KEY] != run.f[b, st.KEY]:
        return run.f[a, st.KEY] < run.f[b, st.KEY]
    if run.f[a, st.READY] != run.f[b, st.READY]:
        return run.f[a, st.READY] < run.f[b, st.READY]
    return a < b


@njit(cache=True)
def _sink(run, w, at):
    """Move the entry at `at` of the worker's queue forward to its place among those before it."""
    q, f = run.queue, run.f
    step = q[w, at]
    key, ready = f[step, st.KEY], f[step, st.READY]
    while at > 0:
        other = q[w, at - 1]
        if f[other, st.KEY] < key or (f[other, st.KEY] == key and (
                f[other, st.READY] < ready or (f[other, st.READY] == ready and other < step))):
            break
        q[w, at] = other
        at -= 1
    q[w, at] = step


@njit(cache=True)
def enqueue(world, w, step, now, order_score, order_params, order_scratch):
    """Put a step into the worker's queue at the place that its key gives it."""
    run = world.run
    run.f[step, st.KEY] = key_of(world, step, now, order_score, order_params, order_scratch)
    run.i[step, st.STATE] = st.WAITING
    n = run.w[w, st.N_WAITING]
    run.queue[w, n] = step
    run.w[w, st.N_WAITING] = n + 1
    _sink(run, w, n)


@njit(cache=True)
def dequeue(run, w):
    q, n = run.queue, run.w[w, st.N_WAITING] - 1
    for k in range(n):
        q[w, k] = q[w, k + 1]
    run.w[w, st.N_WAITING] = n


@njit(cache=True)
def epoch(world, w, now, order_score, order_params, order_scratch):
    """With each new epoch recompute shares and sort the queue anew."""
    run = world.run
    n = run.w[w, st.N_WAITING]
    if not new_epoch(world, w, now) or n == 0:
        return
    if world.limits[st.ORDER_STEADY] == 1:  # its keys are what they were
        return
    afs(world.chains, world.tables, w, run.live[1:], run.live[0], now, EPOCH, run.afs)
    for k in range(n):
        step = run.queue[w, k]
        run.f[step, st.KEY] = key_of(world, step, now, order_score, order_params, order_scratch)
        _sink(run, w, k)
