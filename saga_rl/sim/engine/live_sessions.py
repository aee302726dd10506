"""Which chains a worker counts as its own: homed there, served there, live at all, as far as anyone can know.

A chain leaves the count when its end was hinted or when nobody heard of it for longer than the expiry; it is counted
again when it comes back. Silence is looked at lazily, by whoever reads a count, at the time of reading.
"""

from __future__ import annotations

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.state import chains as ch
from saga_rl.sim.engine import state as st

AT_HOME, SERVED = 0, 1


@njit(cache=True)
def _count(world, c, what, column, w):
    """Count chain c at worker w (-1: nowhere)."""
    run = world.run
    old = run.counted[c, what]
    if old == w:
        return
    if old >= 0:
        run.w[old, column] -= 1
    if w >= 0:
        run.w[w, column] += 1
    run.counted[c, what] = w


@njit(cache=True)
def heard(world, w, c):
    """A request of chain c was sent to worker w."""
    run = world.run
    _count(world, c, AT_HOME, st.HOMED, w)
    if world.chains[c, ch.STEPS] > 0 or run.counted[c, SERVED] >= 0:
        _count(world, c, SERVED, st.ACTIVE, w)
    if run.live_at[c] == 0:
        run.live[0] += 1
        run.live[run.live[0]] = c
        run.live_at[c] = run.live[0]


@njit(cache=True)
def served(world, w, c):
    """A request of chain c got its first blocks on worker w."""
    _count(world, c, SERVED, st.ACTIVE, w)


@njit(cache=True)
def gone(world, c):
    """Chain c is known or presumed to have ended."""
    run = world.run
    _count(world, c, AT_HOME, st.HOMED, -1)
    _count(world, c, SERVED, st.ACTIVE, -1)
    k = run.live_at[c]
    if k > 0:
        last = run.live[run.live[0]]
        run.live[k] = last
        run.live_at[last] = k
        run.live_at[c] = 0
        run.live[0] -= 1


@njit(cache=True)
def finished(world, step, ended):
    """The step is done; `ended`: the client said that it was its chain's last."""
    run = world.run
    if ended:
        gone(world, world.tree.chain[step])
        return
    run.quiet[run.count[st.N_QUIET]] = step
    run.count[st.N_QUIET] += 1


@njit(cache=True)
def expire_silent(world, now):
    """Stop counting the chains that nobody heard of for longer than the expiry."""
    run, chains = world.run, world.chains
    while run.count[st.FIRST_QUIET] < run.count[st.N_QUIET]:
        step = run.quiet[run.count[st.FIRST_QUIET]]
        since = run.f[step, st.DONE_S]
        row = chains[world.tree.chain[step]]
        mine = row[ch.WAITING] == 0 and row[ch.RUNNING] == 0 and row[ch.LAST] == since
        if mine and not now - since > world.real[st.EXPIRY]:
            return
        if mine:
            gone(world, world.tree.chain[step])
        run.count[st.FIRST_QUIET] += 1


@njit(cache=True)
def next_silence(world, now):
    """Until when no count changes by time alone."""
    expire_silent(world, now)
    run = world.run
    if run.count[st.FIRST_QUIET] == run.count[st.N_QUIET]:
        return np.inf
    return run.f[run.quiet[run.count[st.FIRST_QUIET]], st.DONE_S] + world.real[st.EXPIRY]
