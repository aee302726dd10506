"""What a slot of the native closed-loop vectors shows: the rows of the decision at hand, clipped."""

from __future__ import annotations

from saga_rl.njit import njit
from saga_rl.policies.features import LEARNED_ADMISSION, LEARNED_EVICTION, LEARNED_ORDERING, LEARNED_PLACEMENT
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.loop import CHOOSE, EVICT, PLACE
from saga_rl.sim.stepping import book as bk
from saga_rl.sim.stepping import closed_slots as cs
from saga_rl.sim.stepping.victims import OFFERED as CANDIDATES_OFFERED
from saga_rl.sim.stepping.victims import Victims
from saga_rl.sim.stepping.waiting_rows import IDLE, OFFERED, Queue, fill_admission_row

WIDTH, ADMISSION_WIDTH = len(LEARNED_ORDERING), len(LEARNED_ADMISSION)
PLACEMENT_WIDTH, EVICTION_WIDTH = len(LEARNED_PLACEMENT), len(LEARNED_EVICTION)
KINDS = 3
"""Columns that say which decision it is."""


@njit(cache=True)
def queue_of(vector, b):
    """What the slot's decision shows of a queue; rows are work space."""
    return Queue(vector.shown[b], vector.place[b], vector.key, vector.order_rows, vector.admit_rows)


@njit(cache=True)
def victims_of(vector, b):
    """What it shows of a worker's idle blocks."""
    return Victims(vector.victims_at[b], vector.victims_when[b], vector.offer[b], vector.victim_rows[b])


@njit(cache=True)
def _write(source, target, low, high):
    """Clipped; what is no number stays so."""
    for k in range(len(target)):
        x = source[k]
        target[k] = low if x < low else high if x > high else x


@njit(cache=True)
def show(vector, world, b, over, obs, mask):
    """Write the rows of the decision to which `_go` came last, none if the episode is over, and wipe those that are
    left of the one before."""
    kind, mine, low, high = vector.rules[cs.KIND], vector.book[b], vector.real[cs.LOW], vector.real[cs.HIGH]
    if kind == cs.SCHEDULER:
        _show_any(vector, world, b, over, obs, mask)
        return
    n, rows = 0, obs.shape[0]
    if not over:
        n = rows if kind == cs.PLACEMENT else vector.shown[b, OFFERED]
    for i in range(n):
        if kind == cs.PLACEMENT:
            _write(world.work.place[i], obs[i], low, high)
            continue
        if kind != cs.ORDER:
            fill_admission_row(world, queue_of(vector, b), i)
        if kind == cs.ADMIT:
            _write(vector.admit_rows[i], obs[i], low, high)
        else:
            _write(vector.order_rows[i], obs[i, :WIDTH], low, high)
        if kind == cs.JOINT:
            _write(vector.admit_rows[i], obs[i, WIDTH:], low, high)
    for i in range(n, mine[bk.ROWS]):
        obs[i] = 0.0
    mine[bk.ROWS] = n
    for i in range(rows):
        mask[i] = i < n or kind == cs.PLACEMENT
    if kind == cs.ADMIT or kind == cs.JOINT:
        mask[rows - 1] = not over and vector.shown[b, IDLE] == 0


@njit(cache=True)
def _show_any(vector, world, b, over, obs, mask):
    """`show` where decisions differ in kind: all of the observation is written."""
    low, high, decision, rows = vector.real[cs.LOW], vector.real[cs.HIGH], vector.book[b, bk.DECISION], obs.shape[0]
    n = 0
    obs[:] = 0.0
    if not over:
        n = world.limits[st.WORKERS] if decision == PLACE else vector.shown[b, OFFERED]
        n = vector.victims_at[b, CANDIDATES_OFFERED] if decision == EVICT else n
    for i in range(rows):
        mask[i] = i < n
    if decision == CHOOSE and not over and vector.shown[b, IDLE] == 0:
        mask[rows - 1] = True
    for i in range(rows):
        if mask[i]:
            obs[i, decision - PLACE] = 1.0
    for i in range(n):
        row = obs[i, KINDS:]
        if decision == PLACE:
            _write(world.work.place[i], row[:PLACEMENT_WIDTH], 0.0, high)
        elif decision == EVICT:
            _write(vector.victim_rows[b, vector.offer[b, i]], row[:EVICTION_WIDTH], low, -low)
        else:
            fill_admission_row(world, queue_of(vector, b), i)
            _write(vector.order_rows[i], row[:WIDTH], low, -low)
            _write(vector.admit_rows[i], row[WIDTH:WIDTH + ADMISSION_WIDTH], low, -low)
