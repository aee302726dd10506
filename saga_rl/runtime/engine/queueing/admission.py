"""Whether the request at the head of the queue may start beside what runs: the admission row of a real engine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from vllm.v1.request import Request

from saga_rl.njit import njit
from saga_rl.policies.base import Policy
from saga_rl.policies.features import (
    AD,
    ADMISSION,
    G_ADMIT_INFORMED,
    G_TIERED,
    add_expected_older,
    admission_row,
    expected_growth,
    expected_output,
    lost_blocks,
    note_found,
    remember_admission,
    useful_share,
)
from saga_rl.policies.registry import make
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.config.safe import SafeGuard
from saga_rl.runtime.engine.kv.block_queue import PolicyBlockQueue
from saga_rl.runtime.engine.kv.groups import blocks_for
from saga_rl.runtime.engine.kv.runs import BLOCKS, CHAIN, LAST_S, STALE
from saga_rl.runtime.sessions.tracker import Served, Tracker, W
from saga_rl.sim.compiled.jit import compiled

# columns of a running request
R_CHAIN, R_KNOWN, R_GENERATED, R_COMPUTED = range(4)
_SCORE = 4
"""Place of the policy's `score` among `_remember`'s arguments."""


@njit(cache=True)
def count_active(chains, living, now, expiry_s):
    """Those of the chains `living` that were served and have not ended, as far as is known: expiry_s of silence counts
    as an end."""
    n = 0
    for c in living:
        row = chains[c]
        if row[ch.ENDED] == 0 and (row[ch.STEPS] > 0 or row[ch.RUNNING] == 1 or row[ch.ATTAINED] > 0) and (
                row[ch.WAITING] == 1 or row[ch.RUNNING] == 1 or now - max(row[ch.LAST], row[ch.QUEUED]) <= expiry_s):
            n += 1
    return n


@njit(cache=True)
def fill_admission(chains, tables, g, w, c, known, generated, cached, running, table, slots, owned, pool, free,
                   block, sizes, most, growing, living, expiry_s, now, queued_s, seen, out):
    """The row of a request of chain c: `known` tokens (prompt + generated), `cached` blocks of them in the cache.

    block: tokens of a block of `cached` and `owned`; sizes, most, growing: of `Groups`, in whose blocks the row is.
    living: rows of the chains that have not ended, as far as is known, and more.

    running[n, 4]: the running requests. table, slots: the evictable runs; owned: their blocks by chain. seen: (chains,)
    zeros, work space, zero again afterwards. The same sums as the simulator's, which reads them from its own pool.
    """
    mine = chains[c]
    e = expected_output(tables, w, int(mine[ch.TYPE]), 0.0)
    need = blocks_for(known + int(max(e - generated, 1.0)), sizes, most) - blocks_for(cached * block, sizes, most)
    growth, session_growth = 0.0, 0.0
    for i in range(running.shape[0]):
        rc = int(running[i, R_CHAIN])
        more = max(expected_output(tables, w, int(chains[rc, ch.TYPE]), 0.0) - running[i, R_GENERATED], 1.0)
        growth += blocks_for(int(running[i, R_KNOWN]) + int(more), sizes, most) - blocks_for(
            int(running[i, R_COMPUTED]), sizes, most)
        session_growth += expected_growth(chains, tables, w, rc) / growing
    idle, older, unended, expected_older = 0.0, 0.0, 0.0, np.zeros(3)
    for slot in slots:
        o, blocks, last_s = int(table[slot, CHAIN]), table[slot, BLOCKS], table[slot, LAST_S]
        idle += blocks
        row = chains[o]
        if table[slot, STALE] > 0 or row[ch.ENDED] > 0 or (not ch.waits(chains, o, w) and now - last_s > expiry_s):
            continue
        blocks *= useful_share(row, owned[o], block)
        unended += blocks
        if seen[o] == 0.0:
            seen[o] = 1.0
            session_growth += expected_growth(chains, tables, w, o) / growing
        if row[ch.SESSION_S] < mine[ch.SESSION_S] or (
                row[ch.SESSION_S] == mine[ch.SESSION_S] and row[ch.SESSION] < mine[ch.SESSION]):
            older += blocks
            if g[w, G_ADMIT_INFORMED] > 0:
                add_expected_older(chains, tables, w, o, now, last_s, blocks, expected_older)
    for slot in slots:
        seen[int(table[slot, CHAIN])] = 0.0
    pinned = pool - free - idle
    admission_row(chains, tables, g, w, c, now, queued_s, float(need), free, idle, older, growth, pool, pinned,
                  pinned + unended, session_growth, float(running.shape[0]),
                  float(count_active(chains, living, now, expiry_s)), expected_older,
                  lost_blocks(chains, c, float(known), float(cached), block) * block / growing, np.nan,
                  out)
    out[AD.block_tokens] = growing


def _remember(g, row, found, total, score, params, scratch):
    remember_admission(g, 0, row, found, total, score, params, scratch)


class Admission:
    """Asks the admission policy. An idle engine is never asked: it admits."""

    def __init__(self, tracker: Tracker, policy: Policy, queue: PolicyBlockQueue, block_size: int, pool_blocks: int,
                 budget_s: float) -> None:
        self.tracker, self.policy, self.queue, self.victims = tracker, policy, queue, queue.victims
        self.block_size, self.pool_blocks = block_size, pool_blocks
        self._groups = queue.groups.tokens, queue.groups.most, queue.groups.growing
        self.guard = SafeGuard(policy, make("admission", "none"), budget_s)
        self.row = np.zeros((1, len(ADMISSION)))
        self._scratch = np.zeros(policy.scratch)
        self._flying = np.zeros((64, 4))
        """Rows of what runs."""
        self._work = np.zeros(len(tracker.chains))
        self._seen = self._count = 0
        self._remember = compiled(_remember, self._remembered(0, 0), (_SCORE,)) if policy.memory else None

    def new_step(self) -> None:
        """What runs has changed in another way than by requests that were let in."""
        self._seen = 0

    def make_row(self, request: Request, served: Served, cached_blocks: int, running: list[Request],
                 known: Mapping[str, Served], now: float) -> None:
        """Make the row of `request`. running: what holds blocks now; known: of those that are known, by id.

        Within a step only those that were let in are added to `running`, and what is computed of the others stays as it
        is, so their rows are made once a step (`new_step`)."""
        if not 0 < self._seen <= len(running):
            self._seen = self._count = 0
        if len(running) > len(self._flying):
            self._flying = np.concatenate([self._flying, np.zeros((len(running), 4))])
        if len(running) > self._seen:
            self._add(running[self._seen:] if self._seen else running, known)
            self._seen = len(running)
        self.fill(served.chain, request.num_tokens, request.num_output_tokens, cached_blocks,
                  self._flying[:self._count], self.queue.runs.slots(), now, served.queued_s)

    def _add(self, running: list[Request], known: Mapping[str, Served]) -> None:
        """Add the rows of requests, column by column: of hundreds in each step. (Reads vLLM's lists of tokens
        themselves: its properties cost more than the rest.)"""
        pairs = [(s.chain, r) for r in running if (s := known.get(r.request_id)) is not None]
        rows = self._flying[self._count:self._count + len(pairs)]
        rows[:, R_CHAIN] = [chain for chain, _ in pairs]
        rows[:, R_KNOWN] = [len(r._all_token_ids) for _, r in pairs]
        rows[:, R_GENERATED] = [len(r._output_token_ids) for _, r in pairs]
        rows[:, R_COMPUTED] = [r.num_computed_tokens for _, r in pairs]
        self._count += len(pairs)

    def admits(self) -> bool:
        """Whether the policy lets the request of the row in."""
        return bool(self.guard.scores(self.row, 1)[0] > 0.0)

    def found_below(self, request: Request, served: Served, cached_blocks: int, found: int, now: float) -> None:
        """Note of a request that got its blocks, `cached_blocks` of them cached, that memory below the GPU's had
        `found` of what else its chain had computed."""
        g = self.victims.g
        if g[W, G_TIERED] > 0:
            lost = lost_blocks(self.tracker.chains, served.chain, float(request.num_tokens), float(cached_blocks),
                               self.block_size)
            note_found(g, W, lost, float(found), now)

    def let_in(self, found: int, total: int) -> None:
        """Tell a policy with memory that the request of the row was let in and found `found` of `total` blocks."""
        if self._remember is not None:
            self._remember(*self._remembered(found, total))

    def _remembered(self, found: int, total: int) -> tuple:
        return (self.victims.g, self.row[0], float(found), float(total), self.policy.score, self.policy.params,
                self._scratch)

    def fill(self, c: int, known: int, generated: int, cached: int, running: NDArray[np.float64],
             slots: NDArray[np.int64], now: float, queued_s: float) -> None:
        """Bring `row` up to date, see `fill_admission`. slots: of the evictable runs."""
        t = self.tracker
        if len(self._work) < len(t.chains):
            self._work = np.zeros(len(t.chains))
        fill_admission(t.chains, t.tables, self.victims.g, W, c, known, generated, cached, running,
                       self.queue.runs.table, slots, self.queue.runs.owned, float(self.pool_blocks),
                       float(self.queue.n_empty), self.block_size, *self._groups, t.heard.living(), t.expiry_s, now,
                       queued_s, self._work, self.row[0])
