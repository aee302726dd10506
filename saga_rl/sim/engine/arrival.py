"""A request comes: the router books it, the worker's engine hears of it, at once or (asynchronous scheduling) when it
composes its next iteration."""

from __future__ import annotations

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies import features as ft
from saga_rl.policies.state import chains as ch
from saga_rl.sim.cache import evict as ev
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.batching import foretell
from saga_rl.sim.engine.fast_forward import catch_up, catch_up_others, undisturbed
from saga_rl.sim.engine.live_sessions import heard
from saga_rl.sim.engine.waiting import enqueue, goes_before, key_of
from saga_rl.sim.engine.worker import account, log_event, touch
from saga_rl.sim.reference import READY

TAKE_IN_S = 1e-5
"""Between two requests of which an engine hears in one round: who came first is never lost."""


@njit(cache=True)
def arrive(world, w, step, since, now):
    """The request was placed on worker w: queue it and book it in the router's view. since: when it came to the
    cluster, which is earlier if another worker gave it up."""
    run, c = world.run, world.tree.chain[step]
    home = run.home[c]
    if home >= 0 and home != w:
        run.moved[c] = 1
    if world.limits[st.ASYNC] == 1:  # the engine looks at what came when it composes
        run.f[step, st.SENT] = since
        run.i[step, st.WORKER] = w
        _book(world, w, step, home)
        run.inbox[w, run.w[w, st.N_INBOX]] = step
        run.w[w, st.N_INBOX] += 1
        touch(world, w)
        return
    catch_up_others(world, w, c, now)
    run.f[step, st.READY] = since
    run.f[step, st.SINCE] = now
    if world.limits[st.CLAIRVOYANT] == 1:
        foretell(world, step, now)
    # a shorter prompt than its context sets room free that the chain was believed to need: a refusal may end with it
    frees = world.plan.prompt[step] < world.chains[c, ch.CONTEXT]
    if not undisturbed(world, w, frees or _would_be_first(world, w, step, now)):
        catch_up(world, w, now)
    if world.literal:  # a timer would have fired before the request came back
        account(world, w, now)
        ev.drop_expired(world.tree, world.pool, world.chains, world.tables, world.g, w, now, world.work.next_use,
                        world.work.evict)
    log_event(world, READY, step, now, world.plan.prompt[step], 0)
    run.i[step, st.WORKER] = w
    ch.arrive(world.chains, world.tables, w, c, now, float(world.plan.prompt[step]))
    _book(world, w, step, home)
    enqueue(world, w, step, now)
    touch(world, w)


@njit(cache=True)
def take_in(world, w, now):
    """Under asynchronous scheduling: the worker's engine hears of the requests that were sent to it."""
    run = world.run
    for k in range(run.w[w, st.N_INBOX]):
        step = run.inbox[w, k]
        c, s, when = world.tree.chain[step], world.plan.session[step], now + k * TAKE_IN_S
        if np.isnan(run.told_s[w, s]):
            run.told_s[w, s] = when
            run.told_late_s[w, s] = when - run.f[step, st.SENT]
        world.chains[c, ch.SESSION_S] = run.told_s[w, s]
        world.chains[c, ch.DEADLINE] = run.begin_s[s] + world.plan.slack[s] + run.told_late_s[w, s]
        run.f[step, st.READY] = run.f[step, st.SINCE] = when
        if world.limits[st.CLAIRVOYANT] == 1:
            foretell(world, step, now)
        if world.literal:  # a timer would have fired before the request came back
            account(world, w, now)
            ev.drop_expired(world.tree, world.pool, world.chains, world.tables, world.g, w, now, world.work.next_use,
                            world.work.evict)
        log_event(world, READY, step, now, world.plan.prompt[step], 0)
        ch.arrive(world.chains, world.tables, w, c, when, float(world.plan.prompt[step]))
        enqueue(world, w, step, when)
    run.w[w, st.N_INBOX] = 0


@njit(cache=True)
def _book(world, w, step, home):
    """The router's view of a request that it sends to worker w. home: where its chain was."""
    run, c = world.run, world.tree.chain[step]
    run.i[step, st.BOOKED] = int(ft.uncached_tokens(world.chains, c, float(world.plan.prompt[step]), home == w))
    if home != w:
        if home >= 0:
            run.count[st.MIGRATIONS] += 1
            run.source[c] = home
        run.home[c] = w
    heard(world, w, c)
    run.w[w, st.IN_FLIGHT] += 1
    run.wf[w, st.FLIGHT_TOKENS] += world.plan.prompt[step]
    run.wf[w, st.QUEUED_TOKENS] += run.i[step, st.BOOKED]


@njit(cache=True)
def _would_be_first(world, w, step, now):
    """Whether the request would go to the head of the worker's queue; its key does not depend on what `arrive` does."""
    run = world.run
    if run.w[w, st.N_WAITING] == 0:
        return True
    run.f[step, st.KEY] = key_of(world, w, step, now)
    return goes_before(run, step, run.queue[w, 0])
