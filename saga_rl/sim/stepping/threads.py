"""Threads that share the slots of a vector: compiled code lets go of Python's lock while it plays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise


def cuts(slots: int, threads: int) -> list[tuple[int, int]]:
    """Divide so many slots into at most so many runs of nearly equal length: (first, behind the last) each."""
    n = max(min(slots, threads), 1)
    edges = [slots * k // n for k in range(n + 1)]
    return list(pairwise(edges))


class SlotThreads:
    """Runs calls at once, the first in the thread that asks. Threads are made with the first work for several."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def run(self, calls: Sequence[Callable[[], object]]) -> None:
        """Return when all are done; raise what one of them raised."""
        if len(calls) > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(len(calls) - 1)
        others = [self._pool.submit(call) for call in calls[1:]] if self._pool is not None else []
        calls[0]()
        for other in others:
            other.result()
