"""A replay that stops wherever an eviction policy would choose, so that an environment or a data collector can choose.

One decision is which candidate to take tail blocks from: as many as are needed from that candidate; if that is not
enough, another decision follows. Rows are made once for each allocation, when a segment is or becomes a candidate, and
a single candidate is taken without asking: to play a policy's own choice at every decision is to `replay` it. Bélády
apart: what one release freed goes as one here, as in vLLM, where a replay lets who knows the future tell parts apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saga_rl.njit import njit
from saga_rl.policies.features import EVICTION
from saga_rl.sim.cache import evict as ev
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.openloop.replay import close_event, open_event

# columns of Point.at
EVENT, NEED, OFFERED, CANDIDATES = range(4)


class Point(NamedTuple):
    """Where a paused replay stands."""

    at: NDArray[np.int64]
    """EVENT being played; NEED: blocks that must be free, -1 = the event has not been opened; OFFERED: candidates on
    offer; CANDIDATES: on offer or not."""
    offer: NDArray[np.int64]
    """The first OFFERED: segments, released earliest first."""
    rows: NDArray[np.float64]
    """(segments, len(EVICTION)) as made in this allocation."""


def make_point(segments: int, max_rows: int) -> Point:
    """Make one before the first event."""
    return Point(np.array([0, -1, 0, 0], np.int64), np.zeros(max_rows, np.int64), np.zeros((segments, len(EVICTION))))


@njit(cache=True)
def play_on(cursor, point, chosen, end_hint, expiry_s, row):
    """Take from offer[chosen] (-1: begin), then play on. True if a decision is pending, False at the end. cursor,
    point: refs with the fields of a `Cursor` and a `Point`; row: scratch, (features,)."""
    at, p, t, n = point.at, cursor.pool, cursor.tree, cursor.pool.n
    while at[EVENT] < len(cursor.script.time):
        k = at[EVENT]
        now = cursor.script.time[k]
        if at[NEED] < 0:
            at[NEED] = open_event(cursor, k, False, expiry_s, row)
            if n[0, kv.FREE] < at[NEED]:
                ev.refresh(p, cursor.chains, cursor.tables, cursor.g, 0, now)
                for m in range(n[0, kv.IDLE]):
                    seg = p.idle[0, m]
                    if p.kids[seg] == 0:
                        _note(cursor, point, seg, now, row)
        while n[0, kv.FREE] < at[NEED]:
            if chosen < 0:
                _offer(p, at, point.offer)
                if at[CANDIDATES] > 1:
                    return True
                chosen = 0
            up = _take_run(t, p, point.offer[chosen], at[NEED])
            chosen = -1
            if up >= 0:
                _note(cursor, point, up, now, row)
        close_event(cursor, k, end_hint)
        at[EVENT], at[NEED] = k + 1, -1
    at[OFFERED] = 0
    return False


@njit(cache=True)
def _note(cursor, point, seg, now, row):
    """Make the segment's row and keep it."""
    ev.row_of(cursor.pool, cursor.chains, cursor.tables, cursor.g, 0, seg, now, cursor.next_use, row)
    for k in range(point.rows.shape[1]):
        point.rows[seg, k] = row[k]


@njit(cache=True)
def _take_run(t, p, seg, need):
    """Take tail blocks of `seg`, and of what was released in one run with it, until `need` are free, as
    `evict.make_room` does. Returns the parent that has become a candidate, or -1."""
    while True:
        shared = p.user[seg] == -2
        kv.evict_blocks(t, p, 0, seg, min(p.res[seg], need - p.n[0, kv.FREE]))
        up = ev.freed_parent(t, p, 0, seg)
        if up < 0 or not ev.same_run(p, seg, shared, up):
            return up
        if p.n[0, kv.FREE] >= need:
            return -1
        seg = np.int64(up)


@njit(cache=True)
def _offer(p, at, offer):
    """List the candidates, released earliest first, as many as `offer` holds."""
    at[OFFERED], at[CANDIDATES] = 0, 0
    for m in range(p.n[0, kv.IDLE]):
        seg = p.idle[0, m]
        if p.kids[seg] > 0:
            continue
        at[CANDIDATES] += 1
        place = at[OFFERED]
        if place == len(offer):
            if p.seq[seg] > p.seq[offer[place - 1]]:
                continue
            place -= 1
        else:
            at[OFFERED] += 1
        while place > 0 and p.seq[offer[place - 1]] > p.seq[seg]:
            offer[place] = offer[place - 1]
            place -= 1
        offer[place] = seg
