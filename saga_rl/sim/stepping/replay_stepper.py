"""A replay that stops wherever an eviction policy would choose, so that an environment or a data collector can choose.

One decision is which candidate to take tail blocks from: as many as are needed from that candidate; if that is not
enough, another decision follows. Rows are made once for each allocation, when a segment is or becomes a candidate, and
a single candidate is taken without asking: to play a policy's own choice at every decision is to `replay` it. Bélády
apart: what one release freed goes as one here, as in vLLM, where a replay lets who knows the future tell parts apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from saga_rl.policies.base import Policy
from saga_rl.policies.features import E_ORACLE, EVICTION
from saga_rl.policies.parameters import EXPIRY_S
from saga_rl.policies.registry import make
from saga_rl.sim.cache import evict as ev
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.compiled.jit import compiled
from saga_rl.sim.compiled.refs import unowned
from saga_rl.sim.openloop.replay import RECOMPUTED, ReplayResult, close_event, make_play, open_event, result_of
from saga_rl.sim.openloop.script import prepare
from saga_rl.sim.reference import Reference

# columns of Turn.at
EVENT, NEED, OFFERED, CANDIDATES = range(4)


class Turn(NamedTuple):
    """Where a paused replay stands."""

    at: NDArray[np.int64]
    """EVENT being played; NEED: blocks that must be free, -1 = the event has not been opened; OFFERED: candidates on
    offer; CANDIDATES: on offer or not."""
    offer: NDArray[np.int64]
    """The first OFFERED: segments, released earliest first."""
    rows: NDArray[np.floating]
    """(segments, features or the first of them) as made in this allocation."""


def make_turn(segments: int, max_rows: int, kind: type, columns: int) -> Turn:
    """Before the first event; `columns` of each row are kept."""
    return Turn(np.array([0, -1, 0, 0], np.int64), np.zeros(max_rows, np.int64), np.zeros((segments, columns), kind))


def entry_point(dispatcher: Any) -> Callable[..., Any]:
    """The code that was compiled last, without the dispatcher, which looks at the types of all arguments at each call:
    for calls in great number whose arguments are always the same objects."""
    return next(iter(dispatcher.overloads.values())).entry_point


def _advance(game, turn, chosen, end_hint, expiry_s, row):
    return play_on(unowned(game), unowned(turn), chosen, end_hint, expiry_s, row)


@njit(cache=True)
def play_on(game, turn, chosen, end_hint, expiry_s, row):
    """Take from offer[chosen] (-1: begin), then play on. True if a decision is pending, False at the end. game, turn: a
    `Play` and a `Turn`, or refs with the same fields; row: scratch, (features,)."""
    at, p, t, n = turn.at, game.pool, game.tree, game.pool.n
    while at[EVENT] < len(game.script.time):
        k = at[EVENT]
        now = game.script.time[k]
        if at[NEED] < 0:
            at[NEED] = open_event(game, k, False, expiry_s, row)
            if n[0, kv.FREE] < at[NEED]:
                ev.refresh(p, game.chains, game.tables, game.g, 0, now)
                for m in range(n[0, kv.IDLE]):
                    seg = p.idle[0, m]
                    if p.kids[seg] == 0:
                        _note(game, turn, seg, now, row)
        while n[0, kv.FREE] < at[NEED]:
            if chosen < 0:
                _offer(p, at, turn.offer)
                if at[CANDIDATES] > 1:
                    return True
                chosen = 0
            up = _take_run(t, p, turn.offer[chosen], at[NEED])
            chosen = -1
            if up >= 0:
                _note(game, turn, up, now, row)
        close_event(game, k, end_hint)
        at[EVENT], at[NEED] = k + 1, -1
    at[OFFERED] = 0
    return False


@njit(cache=True)
def _note(game, turn, seg, now, row):
    """Make the segment's row and keep its first columns."""
    ev.row_of(game.pool, game.chains, game.tables, game.g, 0, seg, now, game.next_use, row)
    for k in range(turn.rows.shape[1]):
        turn.rows[seg, k] = row[k]


@njit(cache=True)
def _take_run(t, p, seg, need):
    """Take tail blocks of `seg`, and of what was released in one run with it, until `need` are free, as
    `evict.make_room` does. Returns the parent that has become a candidate, or -1."""
    while True:
        shared = p.user[seg] == -2
        kv.take(t, p, 0, seg, min(p.res[seg], need - p.n[0, kv.FREE]))
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


class EvictionStepper:
    """Replay of `reference` on a pool of `kv_tokens` tokens, paused at every choice among two or more candidates.

    max_rows: candidates offered at most; when there are more, those that LRU would take first. end_hint, expiry_s: as
    for `replay`. Raises `UserError` if the pool cannot hold what the string runs at once.
    """

    def __init__(self, reference: Reference, kv_tokens: int, max_rows: int = 32, *, end_hint: bool = True,
                 expiry_s: float = EXPIRY_S) -> None:
        if max_rows < 2:
            raise ValueError(f"max_rows is {max_rows}: a choice needs 2")
        self.max_rows, self._hint, self._expiry = max_rows, end_hint, expiry_s
        self._prepared = prepare(reference, kv_tokens)
        self.rows = np.zeros((max_rows, len(EVICTION)))
        """(max_rows, features) a row for each candidate, in LRU's order; zero beyond `n_rows`; ORACLE is NaN."""
        self.next_use = np.full(max_rows, np.nan)
        """(max_rows,) Bélády's label: event index of the next use, infinity = never; NaN beyond `n_rows`. It is the
        true future: for training labels only."""
        self.n_rows = 0
        """Candidates on offer; 0 = the replay is over."""
        self.reset()

    def reset(self) -> bool:
        """Start over and run to the first decision; True if there is one."""
        self._game = make_play(self._prepared, replace(make("eviction", "lru"), informed=True))  # whoever steps decides
        self._turn = make_turn(len(self._prepared.tree.parent), self.max_rows, np.float64, len(EVICTION))
        self._args = (self._game, self._turn)
        self._rest = (bool(self._hint), float(self._expiry), np.zeros(len(EVICTION)))
        self._run = entry_point(compiled(_advance, (*self._args, -1, *self._rest)))
        return self._go(-1)

    def advance(self, action: int) -> bool:
        """Take tail blocks from candidate `action`; True while a decision is pending."""
        if not 0 <= action < self.n_rows:
            raise ValueError(f"action {action} names none of the {self.n_rows} candidates")
        return self._go(int(action))

    def _go(self, chosen: int) -> bool:
        pending = bool(self._run(*self._args, chosen, *self._rest))
        self.n_rows = n = int(self._turn.at[OFFERED])
        offer = self._turn.offer[:n]
        self.rows[:n], self.rows[n:] = self._turn.rows[offer], 0.0
        self.next_use[:n], self.next_use[n:] = self._game.work.future[offer], np.nan
        return pending

    @property
    def recomputed_tokens(self) -> int:
        """Tokens computed again so far."""
        return int(self._game.work.tally[RECOMPUTED])

    @property
    def event(self) -> int:
        """Index of the event that wants blocks; `next_use` counts in the same unit."""
        return int(self._turn.at[EVENT])

    @property
    def now_s(self) -> float:
        """Time of that event, s; of the last one when the replay is over."""
        times = self._prepared.script.time
        return float(times[min(self.event, len(times) - 1)]) if len(times) else 0.0

    @property
    def candidates(self) -> int:
        """Candidates at this decision, on offer or not."""
        return int(self._turn.at[CANDIDATES])

    def result(self) -> ReplayResult:
        """The totals so far, as `replay` reports them."""
        return result_of(self._game)

    def belady_action(self) -> int:
        """The offered candidate that is used farthest in the future; ties: released earliest."""
        return int(np.argmax(self.next_use[:self.n_rows]))

    def policy_action(self, policy: Policy) -> int:
        """The offered candidate that `policy` would take; an oracle is shown the true next use."""
        scratch = np.zeros(max(policy.scratch, 1))
        rows = self.rows[:self.n_rows].copy()
        if policy.oracle:
            rows[:, E_ORACLE] = self.next_use[:self.n_rows]
        return int(np.argmax([policy.score(row, policy.params, scratch) for row in rows]))
