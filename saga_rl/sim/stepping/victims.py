"""Whose idle blocks go in a closed-loop run that was paused for it (`loop.EVICT`): candidates, their rows, and taking.

Rows are made once for an iteration that a worker composes, and for what becomes a candidate meanwhile when it does, as
`admit.free_blocks_for` ranks them. They show the pool as it is before that iteration. `stepper` does the same in open
loop, where a segment is its own row and there is one worker.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saga_rl.njit import njit
from saga_rl.policies.state import chains as ch
from saga_rl.sim.cache import evict as ev
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.engine import state as st

# Victims.at
OFFERED, CANDIDATES, WORKER, SEQ = range(4)


class Victims(NamedTuple):
    """What one choice shows; R candidates at most."""

    at: NDArray[np.int64]
    """OFFERED: candidates on offer; CANDIDATES: on offer or not; WORKER, SEQ (`Pool.n`): of which `rows` are."""
    when: NDArray[np.float64]
    """(1,) and of which time, s."""
    offer: NDArray[np.int32]
    """(R,) the first OFFERED: segments, released earliest first."""
    rows: NDArray[np.float64]
    """(segments, eviction features or the first of them)"""


def make_victims(segments: int, max_rows: int, columns: int) -> Victims:
    """Before the first choice; `columns` of each row are kept."""
    return Victims(np.zeros(4, np.int64), np.full(1, np.nan), np.zeros(max_rows, np.int32),
                   np.zeros((segments, columns)))


@njit(cache=True)
def evict_chosen(world, victims, chosen, least):
    """Evict offer[chosen] (-1: begin) until worker count[ASKED] has count[WANTED] blocks free. True if a choice is
    pending, False when they are. least: blocks taken at a time if there are so many, though fewer are wanted."""
    run, p, t, at = world.run, world.pool, world.tree, victims.at
    w, need, spared = run.count[st.ASKED], run.count[st.WANTED], run.count[st.SPARED]
    if chosen < 0:
        _refresh_rows(world, victims, w)
    while p.n[w, kv.FREE] < need:
        if chosen < 0:
            _offer(p, w, spared, at, victims.offer)
            if at[CANDIDATES] > 1:
                return True
            if at[CANDIDATES] == 0:
                raise RuntimeError("blocks are wanted that nobody can give up")
            chosen = np.int64(0)
        free = p.n[w, kv.FREE]
        up = _evict_run(t, p, victims.rows, w, spared, victims.offer[chosen], max(need, free + least))
        run.count[st.ASKED_BLOCKS] += p.n[w, kv.FREE] - free
        chosen = np.int64(-1)
        if up >= 0:
            _make_row(world, victims, w, up)
    at[OFFERED] = 0
    return False


@njit(cache=True)
def unasked(world):
    """Blocks that were evicted so far without `evict_chosen`, on all workers."""
    total = -world.run.count[st.ASKED_BLOCKS]
    for w in range(world.limits[st.WORKERS]):
        total += world.pool.n[w, kv.EVICTED]
    return total


@njit(cache=True)
def _refresh_rows(world, victims, w):
    """Make the rows of all candidates, unless those at hand are of this very iteration."""
    run, p, at, now = world.run, world.pool, victims.at, world.run.total[st.NOW]
    if victims.when[0] == now and at[WORKER] == w and at[SEQ] == p.n[w, kv.SEQ]:
        return
    victims.when[0], at[WORKER], at[SEQ] = now, w, p.n[w, kv.SEQ]
    for k in range(run.w[w, st.N_WAITING]):
        world.chains[world.tree.chain[run.queue[w, k]], ch.QPOS] = k
    ev.refresh(p, world.chains, world.tables, world.g, w, now)
    for k in range(p.n[w, kv.IDLE]):
        seg = p.idle[w, k]
        if p.kids[kv.row(p, w, seg)] == 0:
            _make_row(world, victims, w, seg)


@njit(cache=True)
def _make_row(world, victims, w, seg):
    """Make the segment's row and keep its first columns."""
    row = world.work.evict
    ev.row_of(world.pool, world.chains, world.tables, world.g, w, seg, world.run.total[st.NOW], world.work.next_use,
              row)
    for k in range(victims.rows.shape[1]):
        victims.rows[seg, k] = row[k]


@njit(cache=True)
def _offer(p, w, spared, at, offer):
    """List the candidates, released earliest first, as many as `offer` holds."""
    at[OFFERED], at[CANDIDATES] = 0, 0
    for m in range(p.n[w, kv.IDLE]):
        seg = p.idle[w, m]
        r = kv.row(p, w, seg)
        if p.kids[r] > 0 or seg == spared:
            continue
        at[CANDIDATES] += 1
        place = at[OFFERED]
        if place == len(offer):
            if p.seq[r] > p.seq[kv.row(p, w, offer[place - 1])]:
                continue
            place -= 1
        else:
            at[OFFERED] += 1
        while place > 0 and p.seq[kv.row(p, w, offer[place - 1])] > p.seq[r]:
            offer[place] = offer[place - 1]
            place -= 1
        offer[place] = seg


@njit(cache=True)
def _evict_run(t, p, rows, w, spared, seg, need):
    """Take tail blocks of `seg`, and of what was released in one run with it, until `need` are free, as
    `evict.make_room` does. Returns the parent that has become a candidate and has no row yet, or -1."""
    while True:
        r = kv.row(p, w, seg)
        shared = p.user[r] == -2
        kv.evict_blocks(t, p, w, seg, min(np.int64(p.res[r]), need - p.n[w, kv.FREE]))
        up = ev.freed_parent(t, p, w, seg)
        if up < 0 or up == spared or not ev.same_run(p, r, shared, kv.row(p, w, up)):
            return up
        rows[up] = rows[seg]
        if p.n[w, kv.FREE] >= need:
            return np.int32(-1)
        seg = up
