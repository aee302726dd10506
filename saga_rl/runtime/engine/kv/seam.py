"""The one place where vLLM's KV blocks change hands: whoever lets go of blocks says whose they are, and who takes their
content away says so.

| verb | when |
|---|---|
| `released` | a request lets go of its blocks: at once, or once a step or a connector has no more use for them |
| left behind | a request that runs lets go of what its window or its state has left behind (`watch_windows`) |
| touched | a cached block is used again: vLLM's `remove` on the queue (`block_queue`) |
| `dropped` | blocks lose their content while they are free (`BlockPool.evict_blocks`) |
| `reset` | all cached content is gone (`/reset_prefix_cache`, sleep, new weights) |
| `rank` | which blocks would go next |

Tried with vLLM 0.28 - 0.33. Older versions defer no frees.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.v1.core.kv_cache_utils import KVCacheBlock

from saga_rl.runtime.engine.kv.block_queue import PolicyBlockQueue
from saga_rl.runtime.sessions.tracker import NOBODY

Tables = Sequence[Sequence[KVCacheBlock]]
"""A request's blocks, by KV cache group."""


class KvSeam:
    """Tells `queue`, which is in the place of `pool`'s free queue, whose blocks come and which are worth nothing."""

    def __init__(self, pool: Any, queue: PolicyBlockQueue) -> None:
        self.pool, self.queue = pool, queue
        self._pooled = hasattr(pool.blocks[0], "pool")
        """Blocks say which pool they are of: there may be several."""
        self._later: dict[int, tuple[Any, int, Tables]] = {}
        """By the identity of a deferred list of blocks: that list, its owner, the tables it was made of."""
        self._leaving: dict[str, int] = {}
        """Owners of finished requests whose blocks a connector keeps for now."""
        stock_reset, stock_evict = pool.reset_prefix_cache, pool.evict_blocks

        def reset_prefix_cache() -> bool:
            done = bool(stock_reset())
            if done:
                self.reset()
            return done

        def evict_blocks(block_ids: set[int]) -> None:
            stock_evict(block_ids)
            self.dropped(block_ids)

        pool.reset_prefix_cache, pool.evict_blocks = reset_prefix_cache, evict_blocks

    def watch_windows(self, coordinator: Any, owner_of: Callable[[str], int]) -> None:
        """From now on, what a request that runs lets go of is its chain's, and is left behind."""
        stock = coordinator.remove_skipped_blocks

        def remove_skipped_blocks(request_id: str, *args: Any, **kwargs: Any) -> None:
            self.queue.begin_release(owner_of(request_id), stale=True)
            try:
                stock(request_id, *args, **kwargs)
            finally:
                self.queue.begin_release(NOBODY)

        coordinator.remove_skipped_blocks = remove_skipped_blocks

    # ------------------------------------------------------------------ released
    @contextmanager
    def released(self, owner: int, tables: Tables, deferred: deque[Any] | None = None) -> Iterator[None]:
        """Within: vLLM frees the blocks of `tables`, which belong to the chain `owner`; or adds them to `deferred`, the
        frees that wait for a step, and then they are its when they come."""
        tables = self._own(tables)
        before, waiting = self.queue.begin_release(owner), len(deferred or ())
        try:
            yield
        finally:
            if deferred is not None and len(deferred) > waiting:
                self.queue.begin_release(NOBODY)
                blocks = deferred[-1][1]
                self._later[id(blocks)] = blocks, owner, tables
            else:
                self.queue.end_release(before, tables)

    def _own(self, tables: Tables) -> Tables:
        """The same without what lies in another pool: blocks on a host that a device's table names."""
        if not self._pooled:
            return tables
        pool = self.pool
        return [[b for b in table if b.pool is pool] for table in tables]

    def drained(self, scheduler: Any, stock: Callable[[], None]) -> None:
        """In the place of `Scheduler._drain_deferred_frees`, which is `stock`: one entry after the other, each as its
        owner's."""
        entries: deque[Any] = scheduler.deferred_frees
        if not self._later:
            return stock()
        try:
            while entries and entries[0][0] <= scheduler.processed_step_seq:
                entry = entries.popleft()
                _, owner, tables = self._later.pop(id(entry[1]), (None, NOBODY, ()))
                alone = scheduler.deferred_frees = deque([entry])
                with self.released(owner, tables):
                    stock()
                if alone:  # vLLM has another mind about the step: the entry stays first, and nothing is lost
                    entries.extendleft(alone)
                    break
        finally:
            scheduler.deferred_frees = entries

    def leaves(self, request_id: str, owner: int) -> None:
        """A request has finished, and a connector keeps its blocks: they are its owner's when they come."""
        self._leaving[request_id] = owner

    def left(self, request_id: str) -> int:
        """Return the owner of a request that `leaves` was told of, once; `NOBODY` for any other."""
        return self._leaving.pop(request_id, NOBODY)

    def owners(self) -> NDArray[np.int64]:
        """Return the chains that hold evictable blocks, or will when blocks on their way have come."""
        coming = {*self._leaving.values(), *(owner for _, owner, _ in self._later.values())}
        there = self.queue.runs.owners()
        return np.union1d(there, np.fromiter(coming, np.int64, len(coming))) if coming else there

    # ------------------------------------------------------------------ what has no content any more
    def dropped(self, block_ids: set[int]) -> None:
        """Free blocks among these have no content any more: they are empty, and nobody's."""
        for number in block_ids:
            block = self.pool.blocks[number]
            if block.block_hash is None and self.queue.runs.of[number] is not None:
                self.queue.empties(block)

    def reset(self) -> None:
        """No block has content any more."""
        self.queue.empty_all()

    # ------------------------------------------------------------------ what goes next
    def rank(self, k: int) -> list[KVCacheBlock]:
        """Return the first k blocks that would go if nothing changed."""
        return list(islice(self.queue.in_order(), k))
