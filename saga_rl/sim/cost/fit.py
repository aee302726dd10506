"""Fitting a cost profile to timed iterations: least squares on relative error with no constant below 0.

One code for kernel tables (`benchmarks/profiles/fit.py`) and for a live server (`saga-rl profile fit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

TOLERANCE = 1e-12


def nnls(a: NDArray, b: NDArray) -> NDArray:
    """x >= 0 that makes |a x - b| least: the active-set method of Lawson and Hanson (1974), chapter 23.

    a: (rows, terms), b: (rows,). Columns are scaled to length 1 first; a column of zeros gets 0.
    """
    scale = np.linalg.norm(a, axis=0)
    scale[scale == 0] = 1.0
    a = a / scale
    x = np.zeros(a.shape[1])
    free = np.zeros(a.shape[1], dtype=bool)
    limit = TOLERANCE * max(float(np.linalg.norm(b)), 1e-300)
    for _ in range(10 * a.shape[1] + 10):
        gradient = a.T @ (b - a @ x)
        gradient[free] = -np.inf
        if free.all() or gradient.max() <= limit:
            break
        free[int(gradient.argmax())] = True
        while True:
            trial = np.zeros_like(x)
            trial[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            below = free & (trial <= 0)
            if not below.any():
                x = trial
                break
            # Walk towards the trial until the first constant meets 0, and fix it there.
            steps = x[below] / np.maximum(x[below] - trial[below], 1e-300)
            x = x + float(steps.min()) * (trial - x)
            free &= x > TOLERANCE * max(float(x.max()), 1e-300)
            x[~free] = 0.0
            if not free.any():
                break
    return x / scale


def relative_fit(rows: NDArray, seconds: NDArray, weights: NDArray | None = None) -> NDArray:
    """Constants (terms,) >= 0 with the least mean square of (rows @ x / seconds - 1), each row times its weight."""
    w = np.ones(len(seconds)) if weights is None else np.sqrt(weights)
    return nnls(rows * (w / seconds)[:, None], w)


def even_weights(regions: Sequence[str]) -> NDArray:
    """(rows,) weights that give every region the same say, however many rows it has."""
    _, index, counts = np.unique(regions, return_inverse=True, return_counts=True)
    return 1.0 / (len(counts) * counts[index])


def hats(tokens: NDArray, knots: Sequence[float]) -> NDArray:
    """(rows, knots) columns whose constants >= 0 make a never falling piecewise linear function of `tokens`.

    Column 0 is the value at the first knot; column k what the piece before knot k adds, 0 before it and 1 after it.
    The last piece goes on beyond its knot.
    """
    x = np.asarray(knots, float)
    tokens = np.asarray(tokens, float)[:, None]
    share = (tokens - x[:-1]) / np.diff(x)
    share[:, :-1] = np.minimum(share[:, :-1], 1.0)
    return np.hstack([np.ones((len(tokens), 1)), np.maximum(share, 0.0)])


def region_errors(regions: Sequence[str], predicted: NDArray, seconds: NDArray) -> dict[str, dict[str, Any]]:
    """By region, as they appear: points, median and 95th percentile of |relative error|, and its mean (bias)."""
    error = predicted / seconds - 1
    out = {}
    for region in dict.fromkeys(regions):
        here = error[np.array([r == region for r in regions])]
        out[region] = {"points": len(here), "median": float(np.median(np.abs(here))),
                       "p95": float(np.percentile(np.abs(here), 95)), "bias": float(here.mean())}
    return out


def error_table(title: str, errors: dict[str, dict[str, Any]], what: str = "region") -> Table:
    """The errors of `region_errors`, for a person."""
    table = Table(title=title)
    table.add_column(what)
    for head in ("points", "median", "P95", "mean"):
        table.add_column(head, justify="right")
    for region, e in errors.items():
        table.add_row(region, str(e["points"]), f"{e['median']:.1%}", f"{e['p95']:.1%}", f"{e['bias']:+.1%}")
    return table
