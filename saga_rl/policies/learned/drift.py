"""Has a learned policy begun to err more than it should? A detector for streams of errors, and a guard that falls back.

`Detector` watches errors x_t in [0, 1] (say, 1 = a pair of chains came back in another order than was predicted) and
asks whether their mean is still at most `expected`. It is the CUSUM of betting martingales (Shin, Ramdas, Rinaldo,
"E-detectors", 2023): for each of a few stakes s

    M_t = max(M_t-1, 1) x (1 + s (x_t - expected)),        alarm when the mean of the M_t reaches `patience`

As long as each error, given all before it, is expected to be at most `expected`, the mean number of errors until a
false alarm is at least `patience`, and an alarm within n errors has a chance of at most n / patience. Nothing is
assumed of their distribution or independence. After a rise to mu > expected an alarm comes after about
ln(patience) / KL(mu, expected) errors, if a stake is near the best one.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np
from numba import types

from saga_rl.errors import UserError
from saga_rl.njit import njit

STAKES = (0.125, 0.25, 0.5, 1.0, 2.0)
MOST = 0.9
"""A stake is at most this over `expected`, so that no factor comes near 0."""
_ROW = types.Array(types.float64, 1, "C")


@njit(types.boolean(_ROW, types.float64, types.float64, _ROW, types.float64), cache=True)
def step(logs, x, expected, stakes, log_patience):
    """One error x; logs: (stakes,) ln M, changed in place. True = alarm."""
    top = -np.inf
    for k in range(len(stakes)):
        logs[k] = max(logs[k], 0.0) + np.log1p(stakes[k] * (x - expected))
        top = max(top, logs[k])
    total = 0.0
    for k in range(len(stakes)):
        total += np.exp(logs[k] - top)
    return top + np.log(total / len(stakes)) >= log_patience


class Detector:
    """expected: mean error that is still fine, in (0, 1): the policy's own on held-out data and a margin. patience: at
    least so many errors pass, on average, between false alarms. Raises `UserError` for values out of range."""

    def __init__(self, expected: float, patience: float = 100_000.0) -> None:
        if not 0 < expected < 1:
            raise UserError("expected", f"is {expected}", "give the mean error that is still fine, between 0 and 1")
        if not (math.isfinite(patience) and patience > 1):
            raise UserError("patience", f"is {patience}", "give a number of errors above 1")
        self.expected, self.patience = float(expected), float(patience)
        self._stakes = np.unique(np.minimum(STAKES, MOST / expected))
        self._logs = np.full(len(self._stakes), -np.inf)
        self.seen = 0
        """Errors since the start or the last `reset`."""
        self.alarms = 0

    def add(self, x: float) -> bool:
        """One error in [0, 1]; True if it raises the alarm, after which the detector starts anew."""
        if not 0.0 <= x <= 1.0:
            raise ValueError(f"error {x} is outside [0, 1]")
        self.seen += 1
        if not step(self._logs, float(x), self.expected, self._stakes, math.log(self.patience)):
            return False
        self.alarms += 1
        self.reset()
        return True

    def reset(self) -> None:
        self._logs[:] = -np.inf
        self.seen = 0


class DriftGuard:
    """Falls back when evictions turn out worse than a heuristic's would have been.

    `evicted(victim, kept)`: the policy took from chain `victim` and left `kept` alone, and the heuristic would have had
    it the other way round. `returned(chain)` when a chain comes back: of the two, whoever does so first decides. The
    victim: an error. Pairs of which neither returns decide nothing. After an alarm `fallen_back` is True until
    `restore`; errors are watched on.

    A wait of a chain, from one request to the next, belongs to one pair at most (`fresh`). A chain that loses blocks in
    twenty allocations, or one that stays away while twenty others lose theirs, would else make twenty errors of one
    cause; `Detector` asks that each is expected to be right *given those before it*.
    """

    def __init__(self, detector: Detector, pending: int = 4096) -> None:
        self.detector = detector
        self.fallen_back = False
        self.fallbacks = 0
        """How often it fell back."""
        self.pairs, self.errors = 0, 0
        self._pending = pending
        self._next = 0
        self._open: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._of: dict[int, int] = {}
        self._spent: set[int] = set()

    def fresh(self, chain: int) -> bool:
        """Whether its wait may still be part of a pair."""
        return chain not in self._spent

    def spend(self, chain: int) -> None:
        """Its wait shall be part of no pair any more."""
        self._spent.add(chain)

    def evicted(self, victim: int, kept: int) -> None:
        """Chains by number, both `fresh`. Beyond `pending` undecided pairs the oldest is forgotten."""
        if victim == kept or victim in self._spent or kept in self._spent:
            return
        if len(self._open) >= self._pending:
            self._close(next(iter(self._open)))
        self._open[self._next] = (victim, kept)
        for chain in (victim, kept):
            self._of[chain] = self._next
            self._spent.add(chain)
        self._next += 1

    def returned(self, chain: int) -> None:
        """Its wait is over."""
        pair = self._of.get(chain)
        if pair is not None:
            wrong = self._open[pair][0] == chain
            self._close(pair)
            self.pairs += 1
            self.errors += wrong
            if self.detector.add(float(wrong)) and not self.fallen_back:
                self.fallen_back = True
                self.fallbacks += 1
        self._spent.discard(chain)

    def forget(self, chain: int) -> None:
        """The number is another chain's from now on: what the old one was part of is void."""
        if chain in self._of:
            self._close(self._of[chain])
        self._spent.discard(chain)

    def restore(self) -> None:
        """Trust the policy again, say after it was trained anew."""
        self.fallen_back = False
        self.detector.reset()

    def _close(self, pair: int) -> None:
        for chain in self._open.pop(pair):
            del self._of[chain]
