"""Open-loop replays stepped in one compiled call: the loops of the eviction environment.

Every slot plays an episode from a common pool; a single environment is one slot with a pool of one. A slot's memory is
made once, for the largest episode of the pool, and wiped when an episode begins; script and tree belong to the episode.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.experimental import structref
from numba.typed import List
from numpy.typing import NDArray

from saga_rl.njit import njit
from saga_rl.policies.base import Policy
from saga_rl.policies.features import EVICTION
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cache.pool import Tree
from saga_rl.sim.compiled.jit import compiled, entry_point
from saga_rl.sim.compiled.refs import by_name, pool_ref, tables_ref, tree_ref, unowned
from saga_rl.sim.engine.loop import ENDED, EVICT
from saga_rl.sim.openloop import script as sc
from saga_rl.sim.openloop.replay import RECOMPUTED, Cursor, Work, make_cursor
from saga_rl.sim.openloop.script import Prepared, Script
from saga_rl.sim.stepping import replay_points as sp
from saga_rl.sim.stepping.book import (
    BEGIN,
    BOOK,
    COSTS,
    DECISION,
    DECISIONS,
    DONE,
    EPISODE,
    INVALID,
    LEAVE,
    MAX_DECISIONS,
    MODE,
    OVER,
    PLAYED,
    RECOMPUTED_TOKENS,
    ROWS,
    RULES,
    SAME_STEP,
    STEP,
    TOKENS,
)
from saga_rl.sim.stepping.threads import SlotThreads, cuts

# Slots.rules, after those of `sim.stepping.book`
END_HINT = RULES
TOKENS_UNIT = 1000.0
"""Tokens computed again that cost one unit of reward."""


@structref.register
class ScriptType(types.StructRef):
    pass


@structref.register
class ReplayWorkType(types.StructRef):
    pass


@structref.register
class PointType(types.StructRef):
    pass


@structref.register
class CursorType(types.StructRef):
    pass


class ScriptRef(structref.StructRefProxy):
    pass


class ReplayWorkRef(structref.StructRefProxy):
    pass


class PointRef(structref.StructRefProxy):
    pass


class CursorRef(structref.StructRefProxy):
    pass


structref.define_proxy(ScriptRef, ScriptType, list(Script._fields))
structref.define_proxy(ReplayWorkRef, ReplayWorkType, list(Work._fields))
structref.define_proxy(PointRef, PointType, list(sp.Point._fields))
structref.define_proxy(CursorRef, CursorType, [*Cursor._fields, "point"])
_script_ref, _work_ref, _turn_ref = (by_name(ref, record._fields, "t") for ref, record in (
    (ScriptRef, Script), (ReplayWorkRef, Work), (PointRef, sp.Point)))


class Slots(NamedTuple):
    """What a step reads and writes; B slots, R rows, F features."""

    book: NDArray[np.int64]
    """(B, BOOK) see `sim.stepping.book`; ROWS: candidates on offer."""
    order: NDArray[np.int64]
    """(B, episodes) the order in which a slot plays the pool, round and round."""
    costs: NDArray[np.float64]
    """(B, COSTS) since the decision before; only tokens are known here."""
    obs: NDArray[np.float32]
    """(B, R, F)"""
    mask: NDArray[np.bool_]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    final_obs: NDArray[np.float32]
    """(B, R, F) the last observation of episodes that ended in this step, SAME_STEP only."""
    final_mask: NDArray[np.bool_]
    final_book: NDArray[np.int64]
    final_costs: NDArray[np.float64]
    rules: NDArray[np.int64]
    """See `sim.stepping.book`, and END_HINT."""
    real: NDArray[np.float64]
    """(1,) expiry, s."""


STATE = ("book", "costs", "obs", "mask", "reward", "terminated", "truncated")
"""The fields that say, with a slot's play and point, where it is."""


def make_slots(slots: int, rows: int, features: int, episodes: int, mode: int, max_decisions: int, end_hint: bool,
               expiry_s: float) -> Slots:
    """Make them for observations of (rows, features); mode, max_decisions: see `sim.stepping.book`."""
    def of(kind: type, *shape: int) -> NDArray[Any]:
        return np.zeros((slots, *shape), kind)

    return Slots(
        book=of(np.int64, BOOK), order=of(np.int64, episodes), costs=of(np.float64, COSTS),
        obs=of(np.float32, rows, features), mask=of(np.bool_, rows), reward=of(np.float64), terminated=of(np.bool_),
        truncated=of(np.bool_), final_obs=of(np.float32, rows, features), final_mask=of(np.bool_, rows),
        final_book=of(np.int64, BOOK), final_costs=of(np.float64, COSTS),
        rules=np.array([mode, max_decisions, end_hint], np.int64), real=np.array([expiry_s]))


def part_of(slots: Slots, first: int, stop: int) -> Slots:
    """Give one of several threads its slots, first..stop - 1."""
    return Slots(**{name: getattr(slots, name) if name in ("rules", "real") else getattr(slots, name)[first:stop]
                    for name in Slots._fields})


def _ref(cursor, point):
    """Put a slot or an episode under one pointer; the caller keeps the arrays."""
    p, x = unowned(cursor), unowned(point)
    return CursorRef(_script_ref(p.script), tree_ref(p.tree), pool_ref(p.pool), p.chains, tables_ref(p.tables), p.g,
                   _work_ref(p.work), p.next_use, _turn_ref(x))


@njit(cache=True)
def _begin(cursor, episode, fresh):
    """Wipe what the slot's last episode left, and take the episode's script and tree."""
    s, t, p, old, w = episode.script, episode.tree, cursor.pool, fresh.pool, cursor.work
    cursor.script, cursor.tree = s, t
    segs, ids, chains = len(t.parent), episode.pool.meta[kv.IDS], len(episode.chains)
    p.n[:] = episode.pool.n
    p.meta[:] = episode.pool.meta
    p.res[:ids] = old.res[:ids]
    p.ref[:ids] = old.ref[:ids]
    p.kids[:ids] = old.kids[:ids]
    p.last[:ids] = old.last[:ids]
    p.seq[:ids] = old.seq[:ids]
    p.owner[:ids] = old.owner[:ids]
    p.user[:ids] = old.user[:ids]
    p.slot[:ids] = old.slot[:ids]
    p.owned[:ids] = old.owned[:ids]
    p.ever[:segs] = 0
    cursor.chains[:chains] = fresh.chains[:chains]
    a, b = cursor.tables, fresh.tables
    a.hist[:] = b.hist
    a.above[:] = b.above
    a.seconds_above[:] = b.seconds_above
    a.ring[:] = b.ring
    a.returns[:] = b.returns
    a.ends[:] = b.ends
    a.obs[:] = b.obs
    a.p95[:] = b.p95
    a.types[:] = b.types
    a.calls[:] = b.calls
    cursor.g[:] = fresh.g
    w.run[:len(s.info)] = 0
    w.begin[:len(s.who)] = np.nan
    w.tally[:] = 0
    w.future[:segs] = np.inf
    cursor.point.at[:] = fresh.point.at


@njit(cache=True)
def _restart(cursor, episodes, fresh, z, b, row):
    """Slot b begins the next episode of its order and comes to its first decision."""
    mine = z.book[b]
    mine[EPISODE] = z.order[b, mine[PLAYED] % z.order.shape[1]]
    mine[PLAYED] += 1
    _begin(cursor, episodes[mine[EPISODE]], fresh)
    sp.play_on(cursor, cursor.point, np.int64(-1), z.rules[END_HINT] == 1, z.real[0], row)
    mine[OVER], mine[DECISIONS], mine[INVALID] = cursor.point.at[sp.OFFERED] == 0, 0, 0
    mine[TOKENS] = cursor.work.tally[RECOMPUTED]
    z.costs[b] = 0.0


@njit(cache=True)
def _show(cursor, obs, mask, mine):
    """Write the rows on offer, and wipe those that are left of the decision before."""
    n, offer, rows = cursor.point.at[sp.OFFERED], cursor.point.offer, cursor.point.rows
    for i in range(n):
        seg = offer[i]
        for k in range(obs.shape[1]):
            obs[i, k] = rows[seg, k]
        mask[i] = True
    for i in range(n, mine[ROWS]):
        obs[i, :] = 0.0
        mask[i] = False
    mine[ROWS], mine[DECISION] = n, EVICT if n > 0 else ENDED
    k = cursor.point.at[sp.EVENT]
    mine[DONE] = cursor.script.event[k - 1, sc.DONE] if k > 0 else 0


def _step(cursors, episodes, fresh, slots, actions, what, row):
    """Each slot, as `what` says, takes its action and plays on to its next decision, or begins an episode, or is left
    alone; then it writes what it sees."""
    z = unowned(slots)
    mode, limit = z.rules[MODE], z.rules[MAX_DECISIONS]
    for b in range(len(actions)):
        if what[b] == LEAVE:
            continue
        cursor, mine = cursors[b], z.book[b]
        z.reward[b] = 0.0
        z.terminated[b] = z.truncated[b] = False
        if what[b] == BEGIN or mine[OVER] == 1:
            _restart(cursor, episodes, fresh, z, b, row)
            _show(cursor, z.obs[b], z.mask[b], mine)
            continue
        action = actions[b]
        if not 0 <= action < mine[ROWS]:
            action = np.int64(0)  # LRU's choice: rows are in its order
            mine[INVALID] += 1
        pending = sp.play_on(cursor, cursor.point, action, z.rules[END_HINT] == 1, z.real[0], row)
        mine[DECISIONS] += 1
        tokens = cursor.work.tally[RECOMPUTED]
        z.reward[b] = (mine[TOKENS] - tokens) / TOKENS_UNIT
        z.costs[b, RECOMPUTED_TOKENS] = tokens - mine[TOKENS]
        mine[TOKENS] = tokens
        z.terminated[b] = not pending
        z.truncated[b] = pending and 0 < limit <= mine[DECISIONS]
        over = z.terminated[b] or z.truncated[b]
        if over and mode == SAME_STEP:
            before = mine[ROWS]
            z.final_obs[b] = 0.0
            z.final_mask[b] = False
            mine[ROWS] = 0
            _show(cursor, z.final_obs[b], z.final_mask[b], mine)
            z.final_book[b] = mine
            z.final_costs[b] = z.costs[b]
            mine[ROWS] = before
            _restart(cursor, episodes, fresh, z, b, row)
        elif over:
            mine[OVER] = 1
        _show(cursor, z.obs[b], z.mask[b], mine)


def _bind(cursor, episode):
    """Give a slot the script and tree of an episode."""
    cursor.script, cursor.tree = episode.script, episode.tree


class ReplayState(NamedTuple):
    """Where a slot was when it was cloned."""

    runner: Any
    episode: int
    memory: tuple[NDArray[Any], ...]
    rows: tuple[NDArray[Any], ...]
    """Of the fields `STATE`."""


class ReplayRunner:
    """B slots over a pool of prepared episodes, which share pool size, tools and agent types.

    policy: its traits say which columns are made (`features.make_g`). `slots` holds what `step` and `reset` write.
    threads share the slots; what happens does not depend on their number.
    """

    def __init__(self, slots: Slots, pool: list[Prepared], policy: Policy, threads: int = 1) -> None:
        self.slots, rows, n = slots, slots.obs.shape[1], len(pool)
        largest, self._pool = largest_of(pool), pool
        points = [sp.make_point(0 if i < n else len(largest.tree.parent), rows) for i in range(n + len(slots.book) + 1)]
        cursors = [make_cursor(p, policy) for p in (*pool, *[largest] * (len(slots.book) + 1))]
        self._kept = (cursors, points)  # compiled code owns none of their arrays
        self.cursors, self.points = cursors[n:-1], points[n:-1]
        """Of the slots. Their script and tree are no episode's: see `script`."""
        refs = []
        for cursor, point in zip(cursors, points, strict=True):
            refs.append(compiled(_ref, (cursor, point))(cursor, point))
        self._episodes, self._refs, self._threads = List(refs[:n]), refs, SlotThreads()
        self._cuts = cuts(len(slots.book), threads)
        self._parts = [(List(refs[n + a:n + b]), self._episodes, refs[-1], part_of(slots, a, b))
                       for a, b in self._cuts]
        self._rows = [np.zeros(len(EVICTION)) for _ in self._cuts]
        self._all, self._none = np.full(len(slots.book), STEP), np.zeros(len(slots.book), np.int64)
        self._step = entry_point(compiled(_step, (*self._parts[0], self._none, self._all, self._rows[0]), nogil=True))
        self._bind = compiled(_bind, (refs[0], refs[0]))

    def step(self, actions: NDArray[np.int64]) -> None:
        """Take actions, (B,) rows; a row that is not on offer counts as invalid and becomes LRU's."""
        self._play(actions, self._all)

    def reset(self, which: NDArray[np.bool_]) -> None:
        """Begin the next episode in the slots that `which` (B,) marks."""
        self._play(self._none, np.where(which, BEGIN, LEAVE))

    def _play(self, actions: NDArray[np.int64], what: NDArray[np.int64]) -> None:
        if len(self._parts) == 1:
            self._step(*self._parts[0], actions, what, self._rows[0])
            return
        self._threads.run([partial(self._step, *part, actions[a:b], what[a:b], row)
                           for part, row, (a, b) in zip(self._parts, self._rows, self._cuts, strict=True)])

    def script(self, b: int) -> Script:
        """The script that slot b plays."""
        return self._pool[int(self.slots.book[b, EPISODE])].script

    def clone(self, b: int) -> ReplayState:
        """Copy slot b: what its play has written, and what it shows."""
        return ReplayState(self, int(self.slots.book[b, EPISODE]), tuple(a.copy() for a in self._arrays(b)),
                           tuple(getattr(self.slots, name)[b].copy() for name in STATE))

    def restore(self, b: int, state: ReplayState) -> None:
        """Put slot b where the one was that was cloned, of this runner; it plays the pool on in its own order."""
        played = self.slots.book[b, PLAYED]
        for array, kept in zip(self._arrays(b), state.memory, strict=True):
            array[...] = kept
        for name, kept in zip(STATE, state.rows, strict=True):
            getattr(self.slots, name)[b] = kept
        self.slots.book[b, PLAYED] = played
        self._bind(self._refs[len(self._pool) + b], self._refs[state.episode])

    def _arrays(self, b: int) -> list[NDArray[Any]]:
        cursor, point = self.cursors[b], self.points[b]
        return [*cursor.pool, cursor.chains, *cursor.tables, cursor.g, *cursor.work, *point]


def largest_of(pool: list[Prepared]) -> Prepared:
    """An empty episode as large as the largest of the pool in every respect."""
    first = pool[0]
    segments = max(len(p.tree.parent) for p in pool)
    events, steps, sessions = (max(len(getattr(p.script, name)) for p in pool) for name in ("time", "info", "who"))
    script = Script(
        event=np.zeros((events, sc.COLUMNS), np.int64), time=np.zeros(events), after=np.zeros(1),
        info=np.zeros((steps, 5), np.int64), who=np.zeros((sessions, 2), np.int64), slack=np.zeros(sessions),
        block=first.script.block)
    tree = Tree(*(np.zeros(segments, a.dtype) for a in first.tree))
    return replace(first, script=script, tree=tree, n_chains=max(p.n_chains for p in pool))
