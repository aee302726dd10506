"""What one slot of an open-loop vector shows, as Python sees it; and a vector of one to step by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from saga_rl.policies.base import Policy
from saga_rl.policies.features import EV, LEARNED_EVICTION
from saga_rl.policies.parameters import EXPIRY_S
from saga_rl.policies.registry import make
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.openloop.replay import RECOMPUTED, Cursor, ReplayResult, result_of
from saga_rl.sim.openloop.script import prepare
from saga_rl.sim.reference import Reference
from saga_rl.sim.stepping import book as bk
from saga_rl.sim.stepping.replay_points import CANDIDATES, EVENT, OFFERED, Point
from saga_rl.sim.stepping.replay_vector import ReplayRunner, make_slots


class ReplayView:
    """Slot b of `runner`."""

    def __init__(self, runner: ReplayRunner, b: int = 0) -> None:
        self.runner, self.b = runner, b

    @property
    def cursor(self) -> Cursor:
        return self.runner.cursors[self.b]

    @property
    def point(self) -> Point:
        return self.runner.points[self.b]

    @property
    def n_rows(self) -> int:
        """Count candidates on offer; 0 = the replay is over."""
        return int(self.point.at[OFFERED])

    @property
    def candidates(self) -> int:
        """Count candidates at this decision, on offer or not."""
        return int(self.point.at[CANDIDATES])

    @property
    def victims(self) -> NDArray[np.float64]:
        """(n_rows, len(EVICTION)) a row for each candidate, in LRU's order; ORACLE is NaN."""
        return self.point.rows[self.point.offer[:self.n_rows]]

    @property
    def uses(self) -> NDArray[np.float64]:
        """(n_rows,) Belady's label: event index of the next use, infinity = never. It is the true future: for training
        labels only."""
        return self.cursor.work.future[self.point.offer[:self.n_rows]]

    @property
    def recomputed_tokens(self) -> int:
        """Count tokens computed again so far."""
        return int(self.cursor.work.tally[RECOMPUTED])

    @property
    def event(self) -> int:
        """Number the event that wants blocks; `uses` counts in the same unit."""
        return int(self.point.at[EVENT])

    @property
    def now_s(self) -> float:
        """Time of that event, s; of the last one when the replay is over."""
        times = self.runner.script(self.b).time
        return float(times[min(self.event, len(times) - 1)]) if len(times) else 0.0

    def result(self) -> ReplayResult:
        """Give the totals so far, as `replay` does."""
        return result_of(self.cursor)

    def belady_action(self) -> int:
        """Choose the candidate that is used farthest in the future; ties: released earliest."""
        return int(np.argmax(self.uses))

    def policy_action(self, policy: Policy) -> int:
        """Choose the candidate that `policy` would take; an oracle is shown the true next use."""
        scratch, rows = np.zeros(max(policy.scratch, 1)), self.victims.copy()
        if policy.oracle:
            rows[:, EV.oracle] = self.uses
        return int(np.argmax([policy.score(row, policy.params, scratch) for row in rows]))

    def text(self) -> str:
        """Draw where the replay stands, in two lines."""
        n, events = self.cursor.pool.n[0], len(self.runner.script(self.b).time)
        free, size = int(n[kv.FREE]), int(n[kv.POOL])
        used = round(20 * (size - free) / max(size, 1))
        wanted = f"to decide: whose blocks go, {self.candidates} candidates" if self.n_rows else "the string is over"
        return (f"{self.now_s:12.3f} s  event {self.event} of {events}; {wanted}; {self.recomputed_tokens} tokens "
                f"computed again\n  KV [{'#' * used}{'.' * (20 - used)}] {size - free} of {size} blocks")


class EvictionStepper(ReplayView):
    """Replay of `reference` on a pool of `kv_tokens` tokens, paused at every choice among two or more candidates.

    max_rows: candidates offered at most; when there are more, those that LRU would take first. end_hint, expiry_s: as
    for `replay`. Raises `UserError` if the pool cannot hold what the string runs at once.
    """

    def __init__(self, reference: Reference, kv_tokens: int, max_rows: int = 32, *, end_hint: bool = True,
                 expiry_s: float = EXPIRY_S) -> None:
        if max_rows < 2:
            raise ValueError(f"max_rows is {max_rows}: a choice needs 2")
        self.max_rows = max_rows
        slots = make_slots(1, max_rows, len(LEARNED_EVICTION), 1, bk.BY_HAND, 0, end_hint, expiry_s)
        super().__init__(ReplayRunner(slots, [prepare(reference, kv_tokens)],
                               replace(make("eviction", "lru"), informed=True)))  # whoever steps decides
        self.reset()

    def reset(self) -> bool:
        """Start over and run to the first decision; True if there is one."""
        self.runner.reset(np.ones(1, np.bool_))
        return self.n_rows > 0

    def advance(self, action: int) -> bool:
        """Take tail blocks from candidate `action`; True while a decision is pending."""
        if not 0 <= action < self.n_rows:
            raise ValueError(f"action {action} names none of the {self.n_rows} candidates")
        self.runner.step(np.array([action], np.int64))
        return self.n_rows > 0

    @property
    def rows(self) -> NDArray[np.float64]:
        """(max_rows, len(EVICTION)) `victims`, zero beyond."""
        return np.concatenate([self.victims, np.zeros((self.max_rows - self.n_rows, self.point.rows.shape[1]))])

    @property
    def next_use(self) -> NDArray[np.float64]:
        """(max_rows,) `uses`, NaN beyond."""
        return np.append(self.uses, np.full(self.max_rows - self.n_rows, np.nan))
