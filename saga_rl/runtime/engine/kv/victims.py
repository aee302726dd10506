"""Scores of the evictable chains: runs as rows of `features.eviction_row`, scored by the policy under its guard, and
what a policy with memory is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from saga_rl.njit import njit
from saga_rl.policies.base import Policy
from saga_rl.policies.features import (
    BEGIN,
    EV,
    EVICTION,
    G_BLOCK,
    G_LIVE,
    G_SIZE_MAX,
    G_TAU_MAX,
    G_USED,
    eviction_row,
    make_g,
    remember,
)
from saga_rl.policies.learned.drift import Detector, DriftGuard
from saga_rl.policies.registry import make
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb
from saga_rl.runtime.config.safe import SafeGuard
from saga_rl.runtime.engine.kv.runs import BLOCKS, CHAIN, LAST_S, SHARED, STALE, Run, Runs
from saga_rl.runtime.sessions.tracker import NOBODY, Tracker, W
from saga_rl.sim.compiled.jit import compiled

log = logging.getLogger(__name__)
HEURISTIC = "bayes-tables"
"""What a learned eviction policy has to be no worse than, and what decides once it is."""
DRIFT_MARGIN = 0.05
"""Share of wrong pairs beyond a half, of those that the two rank differently, that is still fine."""
_SCORE = 12
"""Place of the policy's `score` among `_notify`'s arguments."""


@njit(cache=True)
def refresh(chains, tables, g, w, now, table, slots, owned, pool, free):
    """Bring the worker's G columns up to date before rows are made: the sums that the simulator takes over its pool.

    table, slots: the runs; owned: (chains,) evictable blocks; pool: blocks in all; free: blocks that hold nothing.
    """
    used = (pool - free) / pool
    pressure = min(max((used - 0.7) / 0.2, 0.0), 1.0)
    idle_blocks, live, largest = 0.0, 0.0, 0.0
    oldest = g[w, G_TAU_MAX]
    for slot in slots:
        c, blocks = int(table[slot, CHAIN]), table[slot, BLOCKS]
        idle_blocks += blocks
        largest = max(largest, owned[c])
        idle = now - table[slot, LAST_S]
        oldest = max(oldest, idle)
        if table[slot, STALE] == 0 and (ch.waits(chains, c, w) or (
                chains[c, ch.ENDED] == 0 and idle <= tb.ttl(tables, w, int(chains[c, ch.TOOL]), pressure))):
            live += blocks
    g[w, G_USED] = used
    g[w, G_LIVE] = (pool - free - idle_blocks + live) / pool
    g[w, G_SIZE_MAX] = largest
    g[w, G_TAU_MAX] = oldest


@njit(cache=True)
def fill_rows(chains, tables, g, w, now, table, slots, owned, out):
    """The rows of the runs in `slots`."""
    for k in range(len(slots)):
        run = table[slots[k]]
        c = int(run[CHAIN])
        eviction_row(chains, tables, g, w, c, now, run[LAST_S], owned[c], run[SHARED], np.nan, out[k])


def _notify(chains, tables, g, w, c, now, last_s, owned, event, blocks, total, victim_score, score, params, scratch,
            row):
    eviction_row(chains, tables, g, w, c, now, last_s, owned, 0.0, np.nan, row)
    remember(chains, g, w, c, row, event, blocks, total, victim_score, score, params, scratch)


def watch(policy: Policy) -> DriftGuard | None:
    """What notices that a learned policy errs more often than the heuristic where the two disagree, by more than
    `DRIFT_MARGIN`; None where the policy was not trained to say who returns last (its checkpoint then says how often it
    was wrong in that)."""
    return None if policy.doc.get("pair_error") is None else DriftGuard(Detector(0.5 + DRIFT_MARGIN))


class Victims:
    """Scores runs for the block queue. `before` is called ahead of each scoring (queue positions); `g` are the columns
    that the policies read and remember of this engine. tiered: there is memory below the pool."""

    def __init__(self, tracker: Tracker, policy: Policy, block_tokens: int, pool_blocks: int, budget_s: float,
                 before: Callable[[], None] = lambda: None, admission: Policy | None = None,
                 tiered: bool = False) -> None:
        self.tracker, self.policy, self.pool_blocks, self.before = tracker, policy, pool_blocks, before
        self.g = make_g(1, block_tokens, pool_blocks, policy, admission, tiered)
        self.drift = watch(policy)
        self.guard = SafeGuard(policy, make("eviction", "lru"), budget_s,
                               heuristic=None if self.drift is None else make("eviction", HEURISTIC))
        self._rows = np.zeros((64, len(EVICTION)))
        self._scratch = np.zeros(policy.scratch)
        self._notify = None
        if policy.memory:
            args = self._notify_args(NOBODY, 0.0, 0.0, 0.0, BEGIN, 0.0, 0.0, 0.0)
            self._notify = compiled(_notify, args, (_SCORE,))

    def rows(self, runs: Runs, slots: NDArray[np.int64], now: float) -> NDArray[np.float64]:
        """(n, len(EVICTION)) of the runs in `slots`, as the pool was at the last `refresh`; reused by the next call."""
        t, n = self.tracker, len(slots)
        if n > len(self._rows):
            self._rows = np.zeros((2 * n, len(EVICTION)))
        fill_rows(t.chains, t.tables, self.g, W, now, runs.table, slots, runs.owned, self._rows)
        return self._rows[:n]

    def refresh(self, runs: Runs, slots: NDArray[np.int64], free: int, now: float) -> None:
        """Look at the pool. slots: of all runs; free: blocks that hold nothing."""
        t = self.tracker
        self.before()
        refresh(t.chains, t.tables, self.g, W, now, runs.table, slots, runs.owned, float(self.pool_blocks), float(free))

    def scores(self, runs: Runs, slots: NDArray[np.int64], now: float) -> NDArray[np.float64]:
        """One score a run; the highest goes first, and ahead of all what its chain has left behind. Reused by the next
        call."""
        self.rows(runs, slots, now)
        out = self.guard.scores(self._rows, len(slots))
        if runs.leaves and not self.policy.oldest_first:
            out[runs.table[slots, STALE] > 0] = np.inf
        return out

    def undecided(self, chain: int, owned: float) -> bool:
        """Whether a learned policy ranks the chain, which has `owned` evictable blocks: who ended, who waits and who
        holds more than it can use is settled outside the network, and no choice of its."""
        row = self.tracker.chains[chain]
        return bool(row[ch.ENDED] == 0 and row[ch.WAITING] == 0
                    and ch.useful_tokens(row) >= owned * self.g[W, G_BLOCK])

    def watches(self, chain: int, owned: float) -> bool:
        """Whether something can be learned from how the network ranks the chain, see `drift`."""
        return self.drift is not None and self.drift.fresh(chain) and self.undecided(chain, owned)

    def chose(self, victim: Run, kept: Run | None, runs: Runs, now: float) -> None:
        """The network takes from the chain of `victim` and leaves that of `kept` alone, both of which it `watches`
        (None: there is no such chain)."""
        if self.drift is None:
            return
        if kept is not None:
            h, rows = self.guard.heuristic, self.rows(runs, np.array([victim.slot, kept.slot]), now)
            if h.score(rows[0], h.params, self._scratch) < h.score(rows[1], h.params, self._scratch):
                return self.drift.evicted(victim.chain, kept.chain)
        self.drift.spend(victim.chain)  # who agrees shows nothing; and it is looked at once, not at every block

    def returned(self, chain: int) -> None:
        """A request of the chain came."""
        d = self.drift
        if d is None:
            return
        if self.tracker.chains[chain, ch.STEPS] == 0:
            return d.forget(chain)
        d.returned(chain)
        if d.fallen_back and not self.guard.drifted:
            self.guard.drifted = True
            other = self.guard.heuristic.name
            log.error("eviction policy %r: of %d pairs of chains that %r ranks the other way round it was wrong in %d; "
                      "%r decides from now on", self.policy.name, d.pairs, other, d.errors, other)

    def past_ttl(self, runs: Runs, slots: NDArray[np.int64], now: float) -> NDArray[np.bool_]:
        """Which runs' TTL has run out; a chain whose request waits is spared."""
        left = self.rows(runs, slots, now)[:, EV.ttl_left]
        waiting = self.tracker.chains[runs.table[slots, CHAIN].astype(np.int64), ch.WAITING]
        return (left < 0.0) & (waiting == 0)

    def notify(self, c: int, now: float, last_s: float, owned: float, event: int, blocks: float, total: float,
             victim_score: float = 0.0) -> None:
        """Notify a policy with memory of what happened to chain c, see `features.remember`. One that is paused
        (`safe.SafeGuard`) gets no notice, and one that raises or is late twice in a row is paused."""
        if self._notify is None or self.guard.paused:
            return
        started = time.perf_counter()
        try:
            self._notify(*self._notify_args(c, now, last_s, owned, event, blocks, total, victim_score))
        except Exception:
            self.guard.fallbacks["raised"] += 1
            self.guard.pause()
            return
        if time.perf_counter() - started > self.guard.budget_s:
            self.guard.was_late()

    def _notify_args(self, c: int, now: float, last_s: float, owned: float, event: int, blocks: float, total: float,
              victim_score: float) -> tuple:
        t, p = self.tracker, self.policy
        return (t.chains, t.tables, self.g, W, c, now, last_s, float(owned), event, float(blocks), float(total),
                float(victim_score), p.score, p.params, self._scratch, self._rows[0])
