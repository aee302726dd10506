"""Scores of many rows in one compiled call, the same machine code for every policy."""

from __future__ import annotations

from numba import types

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE_TYPE

_ROW = types.Array(types.float64, 1, "C")
_ROWS = types.Array(types.float64, 2, "C")
SCORE_ROWS = types.void(SCORE_TYPE, _ROWS, types.int64, types.int64, _ROW, _ROW, _ROW)


@njit(SCORE_ROWS, cache=True)
def score_rows(score, rows, start, stop, params, scratch, out):
    """out[i] = score(rows[i], params, scratch) for start <= i < stop."""
    for i in range(start, stop):
        out[i] = score(rows[i], params, scratch)
