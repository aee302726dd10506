"""A policy's score over many rows, compiled for that policy alone.

`batch.score_rows` takes any policy, and numba looks the one it is given up anew at each call: 25 us or more, which a
server pays at every decision. This costs 2 us a call, and a fraction of a second of compilation once a process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import jit, types

_ROW = types.Array(types.float64, 1, "C")
_ROWS = types.Array(types.float64, 2, "C")
_SIGNATURE = types.void(_ROWS, types.int64, types.int64, _ROW, _ROW, _ROW)


@cache
def row_scorer(score: Any) -> Callable[..., None]:
    """`f(rows, start, stop, params, scratch, out)`, which does what `batch.score_rows(score, ...)` does."""

    def score_these(rows: Any, start: Any, stop: Any, params: Any, scratch: Any, out: Any) -> None:
        for i in range(start, stop):
            out[i] = score(rows[i], params, scratch)

    compiled: Callable[..., None] = jit(_SIGNATURE, nopython=True)(score_these)
    return compiled
