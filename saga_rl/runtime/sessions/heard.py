"""Which chains were heard of when, so that neither the living nor the old are looked for among all that are remembered:
an hour of single prompts is a hundred thousand rows, of which a few hundred live."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from saga_rl.policies.state import chains as ch


class Heard:
    """All rows by their last event, and those that may live as one array. Every change costs the same, whatever is
    remembered."""

    def __init__(self) -> None:
        self.looks = 0
        """Rows that were looked at one by one, for tests."""
        self._by_age: dict[int, None] = {}
        self._alive = np.zeros(64, np.int64)
        self._at: dict[int, int] = {}
        """Place in `_alive`."""

    def event(self, c: int, alive: bool = True) -> None:
        """Chain c was heard of just now; `alive`: it has not ended, as far as is known."""
        self._by_age.pop(c, None)
        self._by_age[c] = None
        if not alive:
            return self.ended(c)
        if c in self._at:
            return
        n = len(self._at)
        if n == len(self._alive):
            self._alive = np.concatenate([self._alive, np.zeros(n, np.int64)])
        self._alive[n] = c
        self._at[c] = n

    def ended(self, c: int) -> None:
        """Chain c has ended, or is presumed to have."""
        at = self._at.pop(c, None)
        if at is None:
            return
        last = int(self._alive[len(self._at)])
        if last != c:
            self._alive[at] = last
            self._at[last] = at

    def forgotten(self, c: int) -> None:
        self.ended(c)
        self._by_age.pop(c, None)

    def living(self) -> NDArray[np.int64]:
        """Rows that may live, in no order. Not to be written to or kept."""
        return self._alive[:len(self._at)]

    def leave_silent(self, chains: NDArray[np.float64], now: float, patience_s: float) -> None:
        """Take idle rows that were unheard of for longer than `patience_s` out of the living."""
        rows = self.living()
        silent = (chains[rows, ch.WAITING] == 0) & (chains[rows, ch.RUNNING] == 0) & (
            now - np.maximum(chains[rows, ch.LAST], chains[rows, ch.QUEUED]) > patience_s)
        for c in rows[silent].tolist():
            self.ended(c)

    def oldest(self) -> Iterator[int]:
        """Rows, longest unheard of first."""
        for c in self._by_age:
            self.looks += 1
            yield c
