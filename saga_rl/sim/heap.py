"""A binary heap of (time, sequence, payload) in arrays, so that the event loop allocates nothing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray


class Heap(NamedTuple):
    time: NDArray[np.float64]
    seq: NDArray[np.int64]
    what: NDArray[np.int64]
    n: NDArray[np.int64]
    """[entries, next sequence number]"""


def make_heap(capacity: int) -> Heap:
    return Heap(np.zeros(capacity), np.zeros(capacity, np.int64), np.zeros(capacity, np.int64), np.zeros(2, np.int64))


@njit(cache=True)
def _before(h, a, b):
    return h.time[a] < h.time[b] or (h.time[a] == h.time[b] and h.seq[a] < h.seq[b])


@njit(cache=True)
def _swap(h, a, b):
    h.time[a], h.time[b] = h.time[b], h.time[a]
    h.seq[a], h.seq[b] = h.seq[b], h.seq[a]
    h.what[a], h.what[b] = h.what[b], h.what[a]


@njit(cache=True)
def push(h, time, what):
    """Events of equal time come out in the order they were pushed."""
    i = h.n[0]
    h.time[i] = time
    h.seq[i] = h.n[1]
    h.what[i] = what
    h.n[0] += 1
    h.n[1] += 1
    while i > 0 and _before(h, i, (i - 1) // 2):
        _swap(h, i, (i - 1) // 2)
        i = (i - 1) // 2


@njit(cache=True)
def pop(h):
    """(time, what) of the earliest event; the heap must not be empty."""
    time, what = h.time[0], h.what[0]
    h.n[0] -= 1
    n = h.n[0]
    _swap(h, 0, n)
    i = 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and _before(h, child + 1, child):
            child += 1
        if not _before(h, child, i):
            break
        _swap(h, i, child)
        i = child
    return time, what
