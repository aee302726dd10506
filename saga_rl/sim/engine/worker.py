"""What every loop over a worker's iterations needs: the event log, the memory integrals, the 100 ms epoch."""

from __future__ import annotations

from saga_rl.njit import njit
from saga_rl.policies.state import chains as ch
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.engine import state as st

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
def log_part(world, step, tokens):
    """Note that the iteration under way schedules `tokens` tokens of the step (-1: preempts it), if that is logged."""
    run = world.run
    if len(run.it_part) == 0:
        return
    at = run.count[st.N_PARTS]
    if at >= len(run.it_part):
        run.count[st.OVERFLOW] = 1
        return
    run.it_part[at, 0], run.it_part[at, 1] = step, tokens
    run.count[st.N_PARTS] = at + 1


@njit(cache=True)
def log_iteration(world, w, first_part, now, seconds):
    """Note the iteration whose parts begin at `first_part`."""
    run = world.run
    if len(run.it_i) == 0:
        return
    at = run.count[st.N_ITERATIONS]
    if at >= len(run.it_i):
        run.count[st.OVERFLOW] = 1
        return
    run.it_i[at, 0], run.it_i[at, 1] = w, first_part
    run.it_f[at, 0], run.it_f[at, 1] = now, seconds
    run.count[st.N_ITERATIONS] = at + 1


@njit(cache=True)
def account(world, w, now):
    """Integrate the worker's memory use up to now; call before its pool changes."""
    run, n = world.run, world.pool.n
    dt = now - run.wf[w, st.SEEN_S]
    run.wf[w, st.IN_USE] += dt * (n[w, kv.RESIDENT] + n[w, kv.PRIVATE])
    run.wf[w, st.BUSY_BLOCKS] += dt * (n[w, kv.PINNED] + n[w, kv.PRIVATE])
    run.wf[w, st.SEEN_S] = now


@njit(cache=True)
def new_epoch(world, w, now):
    """Every `EPOCH` seconds: presume long-idle chains ended. True when it was time."""
    run = world.run
    if now - run.wf[w, st.EPOCH_S] < EPOCH:
        return False
    run.wf[w, st.EPOCH_S] = now
    if now > run.wf[w, st.NEXT_EXPIRY]:
        pool, chains = world.pool, world.chains
        expiry = world.real[st.EXPIRY]
        due = now + expiry  # whatever becomes idle later expires later
        for k in range(pool.n[w, kv.IDLE]):
            r = kv.row(pool, w, pool.idle[w, k])
            c = pool.owner[r]
            patience = ch.patience(chains, world.tables, w, c, expiry)
            if now - chains[c, ch.LAST] > patience:
                ch.expire(chains, world.tables, w, c)
            if chains[c, ch.ENDED] == 0 and chains[c, ch.STEPS] > 0 and (
                    chains[c, ch.WAITING] == 0 and chains[c, ch.RUNNING] == 0):
                due = min(due, chains[c, ch.LAST] + patience)
            if now - pool.last[r] <= expiry:  # admission goes by when the blocks were released
                due = min(due, pool.last[r] + expiry)
        run.wf[w, st.NEXT_EXPIRY] = due
    return True


@njit(cache=True)
def blocks_for(tokens, block):
    return (tokens + block - 1) // block


@njit(cache=True)
def scheduled_tokens(known, have, budget):
    """Return how many tokens the next iteration computes of a request that has computed `have` of `known` tokens, where
    `budget` tokens are left to the batch: one of a decode, a chunk of a prefill."""
    return min(known - have, budget)


@njit(cache=True)
def first_load(world):
    """Events on the heap: steps that are ready, ends of workers' iterations, sessions that begin, and from here on
    steps whose copy is there."""
    return len(world.plan.session) + world.limits[st.WORKERS] + len(world.run.left)


@njit(cache=True)
def first_prefetch(world):
    """Then: steps after which it is time to prefetch."""
    return first_load(world) + len(world.plan.session)


@njit(cache=True)
def first_landing(world):
    """Then: steps whose context has been prefetched."""
    return first_prefetch(world) + len(world.plan.session)


@njit(cache=True)
def tick(world):
    """Then: time to look for idle workers (`state.first_tick`)."""
    return first_landing(world) + len(world.plan.session)


@njit(cache=True)
def touch(world, w):
    """Something happened to worker w: look at it before time goes on."""
    run = world.run
    if run.w[w, st.TOUCHED] == 0:
        run.w[w, st.TOUCHED] = 1
        run.touched[run.count[st.N_TOUCHED]] = w
        run.count[st.N_TOUCHED] += 1
