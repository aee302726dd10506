"""Blocks by last use: a ring of block numbers for each worker, from the one that was used longest ago to the last one.

Row w of `after` and `before` links worker w's blocks; the last column is where the ring is entered. A block that is not
in it has `ABSENT` in `after`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saga_rl.njit import njit

ABSENT = -1


def make_rings(workers: int, seg_blocks: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """(base, after, before): number of each segment's first block, then that of their end; and empty rings."""
    base = np.concatenate([[0], np.cumsum(seg_blocks.astype(np.int64))])
    after, before = (np.full((workers, int(base[-1]) + 1), ABSENT, np.int32) for _ in range(2))
    after[:, -1] = before[:, -1] = base[-1]
    return base, after, before


@njit(cache=True)
def leave(after, before, b):
    """Take block b out of the ring."""
    a, z = before[b], after[b]
    after[a], before[z] = z, a
    after[b] = ABSENT


@njit(cache=True)
def use_first(after, before, b):
    """Block b, which is not in the ring, is the next to go: it counts as used longest ago."""
    end = len(after) - 1
    first = after[end]
    after[b], before[first] = first, b
    after[end], before[b] = b, end


@njit(cache=True)
def use(after, before, b):
    """Block b, which is not in the ring, is used now."""
    end = len(after) - 1
    last = before[end]
    after[last], before[b] = b, last
    after[b], before[end] = end, b
