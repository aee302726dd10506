"""The order in which an eviction policy would take runs, made into objects only as far as it is looked at: of a
thousand runs an allocation takes one or two."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from vllm.v1.core.kv_cache_utils import KVCacheBlock

from saga_rl.runtime.engine.kv.runs import SEQ, Run, Runs

MOST_PLACES = 64
"""Places that `Line.from_middle` looks at."""


Entry = tuple[float, int, Run]


class Line:
    """Runs by (key, age), best first: a heap of those that were looked at, and the rest as it was ranked."""

    def __init__(self, keys: NDArray[np.float64], slots: NDArray[np.int64], runs: Runs) -> None:
        self.keys, self.slots, self.runs = keys, slots, runs
        self.seqs = runs.table[slots, SEQ]
        self.heap: list[Entry] = []
        self._held = np.zeros(len(runs.table), np.bool_)
        self._held[slots] = True
        self._next = 0

    def top(self) -> Run | None:
        """The best run that has blocks and on which nothing is built; None if there is none."""
        heap, runs = self.heap, self.runs
        while self._fill():
            run = heap[0][2]
            if run.num_free_blocks and not runs.blocked(run):
                return run
            heapq.heappop(heap)
            run.queued = False
        return None

    def push(self, run: Run) -> None:
        """Add a run that has a key."""
        run.queued = True
        heapq.heappush(self.heap, (run.key, run.seq, run))

    def close(self) -> None:
        """Another ranking follows."""
        for _, _, run in self.heap:
            run.queued = False

    def holds(self, run: Run) -> bool:
        """Whether its place has not come yet."""
        return run.slot < len(self._held) and bool(self._held[run.slot])

    def from_middle(self) -> Iterator[Run]:
        """Those from the middle of the places that have not come yet, at most `MOST_PLACES` places."""
        middle = (self._next + len(self.slots)) // 2
        for i in range(middle, min(middle + MOST_PLACES, len(self.slots))):
            run = self.runs.at[int(self.slots[i])]
            if run is not None and run.seq == self.seqs[i]:
                yield run

    def _fill(self) -> bool:
        """Move what comes next of the ranking to the heap, which begins with the best of all then. False: none is left.
        """
        heap = self.heap
        while self._next < len(self.slots):
            i = self._next
            key, seq, slot = float(self.keys[i]), int(self.seqs[i]), int(self.slots[i])
            if heap and heap[0][:2] < (key, seq):
                break
            self._next += 1
            self._held[slot] = False
            run = self.runs.at[slot]
            if run is not None and run.seq == seq:
                run.key = key
                self.push(run)
        return bool(heap)


def going(runs: Runs, slots: NDArray[np.int64]) -> Iterator[KVCacheBlock]:
    """Yield the blocks of the runs in `slots`, best first, in the order in which they would go if nothing changed."""
    best = [r for slot in slots.tolist() if (r := runs.at[slot]) is not None]
    left = {run.seq: list(run)[::-1] for run in best}
    gone: set[int] = set()
    while best:
        ready = (r for r in best if not runs.on.get(left[r.seq][-1].block_id, set()) - gone)
        run = next(ready, best[0])
        blocks = left[run.seq]
        gone.update(runs.on.get(blocks[-1].block_id, ()))  # as the queue does if nothing is ready
        while blocks and not runs.on.get(blocks[-1].block_id, set()) - gone:
            gone.add(blocks[-1].block_id)
            yield blocks.pop()
        if not blocks:
            best.remove(run)
