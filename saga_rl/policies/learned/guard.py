"""A learned policy in service: every decision within its time budget, or the heuristic's, loudly and counted."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from saga_rl.errors import UserError
from saga_rl.policies.base import Policy
from saga_rl.policies.features import COLUMNS
from saga_rl.policies.learned.native import row_scorer

log = logging.getLogger(__name__)

CHUNK = 64
"""Rows between two looks at the clock: about 30 us of a small network."""
LOG_EVERY_S = 60.0


class Guard:
    """Scores rows with `policy`; a decision in which that fails is scored by `fallback` alone.

    Causes, counted in `fallbacks`: "over budget" (not done after `budget_s` seconds; checked every `CHUNK` rows, so a
    late policy stops early), "non-finite score", and "drift" while `drifted` is set; then `heuristic` decides, where
    there is one. Each is logged at once and then at most once a minute.
    A decision never mixes the two policies' scores: their scales differ.
    """

    def __init__(self, policy: Policy, fallback: Policy, budget_s: float,
                 clock: Callable[[], float] = time.perf_counter, heuristic: Policy | None = None) -> None:
        heuristic = heuristic or fallback
        for p in (policy, fallback, heuristic):
            if p.oracle:
                raise UserError(f"policy {p.name!r}", "needs to know the future", "serve an online policy")
            if policy.decision != p.decision:
                raise UserError(f"policy {policy.name!r}", f"is of {policy.decision}, its fallback of {p.decision}",
                                "name two policies of one decision")
        if not budget_s > 0:
            raise UserError("budget_s", f"is {budget_s}", "give a decision more than 0 seconds")
        self.policy, self.fallback, self.heuristic, self.budget_s = policy, fallback, heuristic, budget_s
        self.drifted = False
        """The policy errs more than the heuristic would (`policies.learned.drift`), which decides."""
        self.fallbacks: Counter[str] = Counter()
        self.decisions = 0
        self._clock = clock
        self._logged: dict[str, float] = {}
        self._out = np.empty(256)
        self._scratch = np.empty(max(policy.scratch, fallback.scratch, heuristic.scratch, 1))
        self._score, self._fallback_score, self._heuristic_score = (
            row_scorer(p.score) for p in (policy, fallback, heuristic))
        for p, score in ((policy, self._score), (fallback, self._fallback_score), (heuristic, self._heuristic_score)):
            # a policy's first call links its code, which no decision should pay for
            score(np.zeros((1, COLUMNS[p.decision])), 0, 1, p.params, self._scratch, self._out)

    def scores(self, rows: NDArray[np.float64], n: int) -> NDArray[np.float64]:
        """(n,) scores of rows[:n]; rows: (>= n, features) float64, C order. The result is reused by the next call."""
        if n > len(self._out):
            self._out = np.empty(max(n, 2 * len(self._out)))
        out = self._out[:n]
        self.decisions += 1
        cause = "drift" if self.drifted else self._try(rows, n, out)
        if cause is not None:
            p, score = ((self.heuristic, self._heuristic_score) if cause == "drift"
                        else (self.fallback, self._fallback_score))
            self._report(cause, p)
            score(rows, 0, n, p.params, self._scratch, out)
        return out

    def _try(self, rows: NDArray[np.float64], n: int, out: NDArray[np.float64]) -> str | None:
        deadline = self._clock() + self.budget_s
        for start in range(0, n, CHUNK):
            self._score(rows, start, min(start + CHUNK, n), self.policy.params, self._scratch, out)
            if self._clock() > deadline:
                return "over budget"
        return None if np.isfinite(out).all() else "non-finite score"

    def _report(self, cause: str, instead: Policy) -> None:
        self.fallbacks[cause] += 1
        now = self._clock()
        if now - self._logged.get(cause, -np.inf) >= LOG_EVERY_S:
            self._logged[cause] = now
            log.error("%s policy %r: %s; %r decides instead (%d of %d decisions so far)", self.policy.decision,
                      self.policy.name, cause, instead.name, self.fallbacks[cause], self.decisions)
