"""The order in which an eviction policy would take runs, made into objects only as far as it is looked at: of a
thousand runs an allocation takes one or two."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from vllm.v1.core.kv_cache_utils import KVCacheBlock

from saga_rl.runtime.engine.kv.runs import SEQ, Run, Runs

LOOKS = 64
"""Places that `Ranking.from_middle` looks at."""


class Ranking:
    """Runs by (key, age), best first; few are ever looked at."""

    def __init__(self, keys: NDArray[np.float64], slots: NDArray[np.int64], runs: Runs) -> None:
        self.keys, self.slots = keys, slots
        self.seqs = runs.table[slots, SEQ]
        self._held = np.zeros(len(runs.table), np.bool_)
        self._held[slots] = True

    def take(self, runs: Runs, i: int) -> Run | None:
        """The run at place i, which leaves the ranking; None if it is no more."""
        slot = int(self.slots[i])
        self._held[slot] = False
        run = runs.at[slot]
        return run if run is not None and run.seq == self.seqs[i] else None

    def holds(self, run: Run) -> bool:
        """Whether its place has not come yet."""
        return run.slot < len(self._held) and bool(self._held[run.slot])

    def from_middle(self, runs: Runs, start: int) -> Iterator[Run]:
        """Those from the middle of the places from `start` on, at most `LOOKS` places."""
        middle = (start + len(self.slots)) // 2
        for i in range(middle, min(middle + LOOKS, len(self.slots))):
            run = runs.at[int(self.slots[i])]
            if run is not None and run.seq == self.seqs[i]:
                yield run


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
