"""Scores of the evictable chains: the pool as rows of `features.eviction_row`, scored by the policy under its guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from saga_rl.policies import chains as ch
from saga_rl.policies import tables as tb
from saga_rl.policies.base import Policy
from saga_rl.policies.features import (
    E_TTL_LEFT,
    EVICTION,
    G_LIVE,
    G_SIZE_MAX,
    G_USED,
    eviction_row,
)
from saga_rl.policies.guard import Guard
from saga_rl.policies.registry import make
from saga_rl.runtime.tracker import Tracker, W

# columns of a candidate, one row a run of blocks that was released at once
CHAIN, LAST_S, BLOCKS, SHARED = range(4)


@njit(cache=True)
def fill_rows(chains, tables, g, w, now, held, pool, free, owned, out):
    """Rows of the candidates held[n, 4], after bringing the worker's G columns up to date.

    pool: blocks in all; free: blocks that hold nothing; owned: (chains,) zeros, work space, zero again afterwards.
    """
    n = held.shape[0]
    used = (pool - free) / pool
    pressure = min(max((used - 0.7) / 0.2, 0.0), 1.0)
    idle, live, largest = 0.0, 0.0, 0.0
    for i in range(n):
        c, blocks = int(held[i, CHAIN]), held[i, BLOCKS]
        idle += blocks
        owned[c] += blocks
        largest = max(largest, owned[c])
        ttl = tb.ttl(tables, w, int(chains[c, ch.TOOL]), pressure)
        if chains[c, ch.WAITING] == 1 or (chains[c, ch.ENDED] == 0 and now - held[i, LAST_S] <= ttl):
            live += blocks
    g[w, G_USED] = used
    g[w, G_LIVE] = (pool - free - idle + live) / pool
    g[w, G_SIZE_MAX] = largest
    for i in range(n):
        c = int(held[i, CHAIN])
        eviction_row(chains, tables, g, w, c, now, held[i, LAST_S], owned[c], held[i, SHARED], np.nan, out[i])
    for i in range(n):
        owned[int(held[i, CHAIN])] = 0.0


class Victims:
    """Scores candidates for the block queue. `before` is called ahead of each scoring (queue positions)."""

    def __init__(self, tracker: Tracker, policy: Policy, pool_blocks: int, budget_s: float,
                 before: Callable[[], None] = lambda: None) -> None:
        self.tracker, self.policy, self.pool_blocks, self.before = tracker, policy, pool_blocks, before
        self.guard = Guard(policy, make("eviction", "lru"), budget_s)
        self._held = np.zeros((64, 4))
        self._rows = np.zeros((64, len(EVICTION)))
        self._owned = np.zeros(len(tracker.chains))

    def rows(self, held: Sequence[tuple[int, float, int, float]], free: int, now: float) -> NDArray[np.float64]:
        """(n, len(EVICTION)) for candidates (chain row, last use s, blocks, shared); reused by the next call."""
        n, t = len(held), self.tracker
        if n > len(self._held):
            self._held, self._rows = np.zeros((2 * n, 4)), np.zeros((2 * n, len(EVICTION)))
        if len(self._owned) != len(t.chains):
            self._owned = np.zeros(len(t.chains))
        self._held[:n] = held
        self.before()
        fill_rows(t.chains, t.tables, t.g, W, now, self._held[:n], float(self.pool_blocks), float(free), self._owned,
                  self._rows)
        return self._rows[:n]

    def scores(self, held: Sequence[tuple[int, float, int, float]], free: int, now: float) -> NDArray[np.float64]:
        """One score a candidate; the highest goes first. Reused by the next call."""
        self.rows(held, free, now)
        return self.guard.scores(self._rows, len(held))

    def past_ttl(self, held: Sequence[tuple[int, float, int, float]], free: int, now: float) -> list[bool]:
        """Which candidates' TTL has run out; a chain whose request waits is spared."""
        left = self.rows(held, free, now)[:, E_TTL_LEFT]
        waiting = self.tracker.chains[[int(h[CHAIN]) for h in held], ch.WAITING]
        return ((left < 0.0) & (waiting == 0)).tolist()
