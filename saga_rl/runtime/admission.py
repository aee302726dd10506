"""Whether the request at the head of the queue may start beside what runs: the admission row of a real engine."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numba import njit
from numpy.typing import NDArray
from vllm.v1.request import Request

from saga_rl.policies import chains as ch
from saga_rl.policies.base import Policy
from saga_rl.policies.features import ADMISSION, admission_row, expected_growth, expected_output
from saga_rl.policies.guard import Guard
from saga_rl.policies.registry import make
from saga_rl.runtime.block_queue import PolicyBlockQueue
from saga_rl.runtime.tracker import Served, Tracker, W
from saga_rl.runtime.victims import BLOCKS, CHAIN, LAST_S

# columns of a running request
R_CHAIN, R_KNOWN, R_GENERATED, R_COMPUTED = range(4)


@njit(cache=True)
def _blocks(tokens, block):
    return (tokens + block - 1) // block


@njit(cache=True)
def fill_admission(chains, tables, w, c, known, generated, cached, running, held, pool, free, block, expiry_s, now,
                   queued_s, seen, out):
    """The row of a request of chain c: `known` tokens (prompt + generated), `cached` blocks of them in the cache.

    running[n, 4]: the running requests. held: the evictable runs, as `victims`. seen: (chains,) zeros, work space, zero
    again afterwards. The same sums as the simulator's, which reads them from its own pool.
    """
    mine = chains[c]
    e = expected_output(tables, w, int(mine[ch.TYPE]), 0.0)
    need = _blocks(known + int(max(e - generated, 1.0)), block) - cached
    growth, session_growth = 0.0, 0.0
    for i in range(running.shape[0]):
        rc = int(running[i, R_CHAIN])
        more = max(expected_output(tables, w, int(chains[rc, ch.TYPE]), 0.0) - running[i, R_GENERATED], 1.0)
        growth += _blocks(int(running[i, R_KNOWN]) + int(more), block) - _blocks(int(running[i, R_COMPUTED]), block)
        session_growth += expected_growth(chains, tables, w, rc) / block
    idle, older, unended = 0.0, 0.0, 0.0
    for i in range(held.shape[0]):
        o, blocks = int(held[i, CHAIN]), held[i, BLOCKS]
        idle += blocks
        row = chains[o]
        if row[ch.ENDED] > 0 or (row[ch.WAITING] == 0 and now - held[i, LAST_S] > expiry_s):
            continue
        unended += blocks
        if seen[o] == 0.0:
            seen[o] = 1.0
            session_growth += expected_growth(chains, tables, w, o) / block
        if row[ch.SESSION_S] < mine[ch.SESSION_S] or (
                row[ch.SESSION_S] == mine[ch.SESSION_S] and row[ch.SESSION] < mine[ch.SESSION]):
            older += blocks
    for i in range(held.shape[0]):
        seen[int(held[i, CHAIN])] = 0.0
    pinned = pool - free - idle
    admission_row(float(need), free, idle, older, growth, pool, pinned, 1.0 if mine[ch.STEPS] == 0 else 0.0,
                  pinned + unended, session_growth, float(running.shape[0]), now - queued_s, out)


class Admission:
    """Asks the admission policy. An idle engine is never asked: it admits."""

    def __init__(self, tracker: Tracker, policy: Policy, queue: PolicyBlockQueue, block_size: int, pool_blocks: int,
                 budget_s: float) -> None:
        self.tracker, self.policy, self.queue = tracker, policy, queue
        self.block_size, self.pool_blocks = block_size, pool_blocks
        self.guard = Guard(policy, make("admission", "none"), budget_s)
        self.row = np.zeros((1, len(ADMISSION)))

    def admits(self, request: Request, served: Served, cached_blocks: int,
               running: Iterable[tuple[Request, Served]], now: float) -> bool:
        """Whether the policy lets `request` in. running: what holds blocks now."""
        flying = np.array([(s.chain, r.num_tokens, r.num_output_tokens, r.num_computed_tokens) for r, s in running],
                          np.float64).reshape(-1, 4)
        held = np.array(self.queue.held(), np.float64).reshape(-1, 4)
        self.fill(served.chain, request.num_tokens, request.num_output_tokens, cached_blocks, flying, held, now,
                  served.queued_s)
        return bool(self.guard.scores(self.row, 1)[0] > 0.0)

    def fill(self, c: int, known: int, generated: int, cached: int, running: NDArray[np.float64],
             held: NDArray[np.float64], now: float, queued_s: float) -> None:
        """Bring `row` up to date, see `fill_admission`."""
        t = self.tracker
        fill_admission(t.chains, t.tables, W, c, known, generated, cached, running, held, float(self.pool_blocks),
                       float(self.queue.n_empty), self.block_size, t.expiry_s, now, queued_s, np.zeros(len(t.chains)),
                       self.row[0])
