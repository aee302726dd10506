"""What every loop over a worker's iterations needs: the event log, the memory integrals, the 100 ms epoch."""

from __future__ import annotations

from numba import njit

from saga_rl.policies import chains as ch
from saga_rl.sim import cache as kv
from saga_rl.sim import state as st

EPOCH = 0.1
"""Seconds between two looks at fairness and expiry (SAGA section 7)."""


@njit(cache=True)
def log_event(world, kind, step, now, tokens, final):
    """Append to the reference string, if one is recorded."""
    if world.limits[st.LOGGING] == 0:
        return
    run = world.run
    at = run.count[st.LOGGED]
    if at >= run.log_t.shape[0]:
        run.count[st.OVERFLOW] = 1
        return
    run.log_i[at, 0], run.log_i[at, 1], run.log_i[at, 2], run.log_i[at, 3] = kind, step, tokens, final
    run.log_t[at] = now
    run.count[st.LOGGED] = at + 1


@njit(cache=True)
def account(world, w, now):
    """Integrate the worker's memory use up to now; call before its pool changes."""
    run, n = world.run, world.pool.n
    dt = now - run.wf[w, st.SEEN_S]
    run.total[st.IN_USE] += dt * (n[w, kv.RESIDENT] + n[w, kv.PRIVATE])
    run.total[st.BUSY_BLOCKS] += dt * (n[w, kv.PINNED] + n[w, kv.PRIVATE])
    run.wf[w, st.SEEN_S] = now


@njit(cache=True)
def new_epoch(world, w, now):
    """Every `EPOCH` seconds: presume long-idle chains ended. True when it was time."""
    run = world.run
    if now - run.wf[w, st.EPOCH_S] < EPOCH:
        return False
    run.wf[w, st.EPOCH_S] = now
    pool = world.pool
    for k in range(pool.n[w, kv.IDLE]):
        c = pool.owner[w, pool.idle[w, k]]
        if now - world.chains[c, ch.LAST] > world.real[st.EXPIRY]:
            ch.expire(world.chains, world.tables, w, c)
    return True


@njit(cache=True)
def blocks_for(tokens, block):
    return (tokens + block - 1) // block
