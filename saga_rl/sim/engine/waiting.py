"""A worker's waiting queue, in the order of the ordering policy's keys."""

from __future__ import annotations

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies import features as ft
from saga_rl.policies.state import service as sv
from saga_rl.policies.state.agent_fair_share import afs
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.live_sessions import expire_silent
from saga_rl.sim.engine.worker import EPOCH, new_epoch


@njit(cache=True)
def key_of(world, w, step, now):
    run, row = world.run, world.work.order
    c = world.tree.chain[step]
    preempted = 1.0 if run.i[step, st.PREEMPTIONS] > run.i[step, st.YIELDED] else 0.0
    tenant = world.plan.tenant[world.plan.session[step]]
    r = kv.find(world.pool, w, world.pool.meta[kv.SEGMENTS] + c)
    cached = world.pool.owned[r] * world.limits[st.BLOCK] if r >= 0 else 0
    service, least = 0.0, 0.0
    if world.limits[st.TENANTS] > 0:
        service, least = run.service[w, tenant, sv.COUNTER], sv.least(run.service, w)
    ft.ordering_row(world.chains, world.tables, w, c, now, run.f[step, st.READY], float(world.plan.prompt[step]),
                    preempted, run.afs[w, tenant], float(cached), service, least, row)
    return world.order_score(row, world.order_params, world.order_scratch)


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
def enqueue(world, w, step, now):
    """Put a step into the worker's queue at the place that its key gives it."""
    run = world.run
    if world.limits[st.TENANTS] > 0:
        tenant = world.plan.tenant[world.plan.session[step]]
        _note_spread(world, w)
        sv.queued(run.service, w, tenant)
        _note_spread(world, w)
    run.f[step, st.KEY] = key_of(world, w, step, now)
    run.i[step, st.STATE] = st.WAITING
    n = run.w[w, st.N_WAITING]
    run.queue[w, n] = step
    run.w[w, st.N_WAITING] = n + 1
    run.w[w, st.CHANGED] = 1
    _sink(run, w, n)


@njit(cache=True)
def dequeue(world, w, at, served):
    """Take the entry at `at` out of the worker's queue: it is `served`, or goes elsewhere."""
    run = world.run
    q, n = run.queue, run.w[w, st.N_WAITING] - 1
    if world.limits[st.TENANTS] > 0:
        _note_spread(world, w)
        sv.left(run.service, w, world.plan.tenant[world.plan.session[q[w, at]]], served)
    for k in range(at, n):
        q[w, k] = q[w, k + 1]
    run.w[w, st.N_WAITING] = n
    if not served:
        run.w[w, st.CHANGED] = 1


@njit(cache=True)
def _note_spread(world, w):
    world.run.total[st.SPREAD] = max(world.run.total[st.SPREAD], sv.spread(world.run.service, w))


@njit(cache=True)
def charge(world, w, step, computed, generated):
    """Book service of the step's tenant; nothing to book where there is one tenant."""
    if world.limits[st.TENANTS] > 0:
        tenant = world.plan.tenant[world.plan.session[step]]
        sv.charge(world.run.service, w, tenant, float(computed), float(generated))
        if computed > 0:
            _note_spread(world, w)


@njit(cache=True)
def may_be_served(world, w, step):
    """Whether the service gap lets the worker's waiting step be scheduled."""
    if world.limits[st.TENANTS] == 0:
        return True
    return sv.allowed(world.run.service, w, world.plan.tenant[world.plan.session[step]], world.real[st.GAP])


@njit(cache=True)
def choose(world, w, now):
    """Place in the worker's queue of the request that is next: the first by the policy's order whose tenant may be
    served (the tenant with least service always may), or the one for which another was made to yield."""
    run, limits, n = world.run, world.limits, world.run.w[w, st.N_WAITING]
    if limits[st.FRESH] == 1 and n > 1:
        _sort(world, w, now)
    gap, urgent, first = world.real[st.GAP], run.w[w, st.URGENT] - 1, -1
    if urgent < 0 and world.real[st.STARVE] < np.inf:
        first = _starving(world, w)
        if first >= 0:
            return first
    if gap == np.inf and urgent < 0:
        return 0
    for k in range(n):
        step = run.queue[w, k]
        if not may_be_served(world, w, step):
            continue
        if step == urgent:
            return k
        if first < 0:
            first = k
    return first


@njit(cache=True)
def _starving(world, w):
    """Place in the worker's queue of the request that has waited longest of those that had waited for too long when its
    epoch began, -1 = none."""
    run, first, since = world.run, -1, np.inf
    for k in range(run.w[w, st.N_WAITING]):
        step = run.queue[w, k]
        mine = run.f[step, st.SINCE]
        if run.wf[w, st.EPOCH_S] - mine > world.real[st.STARVE] and (
                mine < since or (mine == since and step < run.queue[w, first])) and may_be_served(world, w, step):
            first, since = k, mine
    return first


@njit(cache=True)
def starves_from(world, w):
    """From when on the first of those who wait has waited for too long."""
    run, since = world.run, np.inf
    if world.real[st.STARVE] == np.inf:
        return np.inf
    for k in range(run.w[w, st.N_WAITING]):
        since = min(since, run.f[run.queue[w, k], st.SINCE])
    return since + world.real[st.STARVE]


@njit(cache=True)
def _sort(world, w, now):
    run = world.run
    for k in range(run.w[w, st.N_WAITING]):
        step = run.queue[w, k]
        run.f[step, st.KEY] = key_of(world, w, step, now)
        _sink(run, w, k)


@njit(cache=True)
def epoch(world, w, now):
    """With each new epoch recompute shares and sort the queue anew. True if there was one and somebody waits."""
    run = world.run
    if not new_epoch(world, w, now) or run.w[w, st.N_WAITING] == 0:
        return False
    steady = world.limits[st.ORDER_STEADY] == 1  # then its keys are what they were
    if not steady or world.real[st.AFS_PREEMPT] < np.inf:
        expire_silent(world, now)
        afs(world.chains, world.tables, w, run.live[1:], run.live[0], now, EPOCH, run.afs[w])
    if not steady:
        _sort(world, w, now)
    return True
