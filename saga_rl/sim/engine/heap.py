"""A binary heap of (time, payload) in arrays, so that the event loop allocates nothing.

Events of equal time come out by payload, smallest first: an order that does not depend on when they were entered.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saga_rl.njit import njit


class Heap(NamedTuple):
    time: NDArray[np.float64]
    what: NDArray[np.int64]
    n: NDArray[np.int64]
    """[entries]"""


def make_heap(capacity: int) -> Heap:
    return Heap(np.zeros(capacity), np.zeros(capacity, np.int64), np.zeros(1, np.int64))


@njit(cache=True)
def push(h, time, what):
    i = h.n[0]
    h.n[0] = i + 1
    while i > 0:
        up = (i - 1) // 2
        if h.time[up] < time or (h.time[up] == time and h.what[up] <= what):
            break
        h.time[i] = h.time[up]
        h.what[i] = h.what[up]
        i = up
    h.time[i] = time
    h.what[i] = what


@njit(cache=True)
def pop(h):
    """(time, what) of the earliest event; the heap must not be empty."""
    first, first_what = h.time[0], h.what[0]
    n = h.n[0] - 1
    h.n[0] = n
    time, what = h.time[n], h.what[n]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and (h.time[child + 1] < h.time[child] or (
                h.time[child + 1] == h.time[child] and h.what[child + 1] < h.what[child])):
            child += 1
        if time < h.time[child] or (time == h.time[child] and what <= h.what[child]):
            break
        h.time[i] = h.time[child]
        h.what[i] = h.what[child]
        i = child
    h.time[i] = time
    h.what[i] = what
    return first, first_what
