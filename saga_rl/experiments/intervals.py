"""Intervals of paired figures, and the marks for what no interval should be quoted of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLLAPSE = 5.0
"""Mean TCT above so many times that of infinite memory is a collapse; ratios measured inside one say nothing."""
MIN_PAIRS = 3
"""Fewer pairs make no interval, so no ratio is quoted."""
RESAMPLES = 10_000
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
             2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
"""97.5 % points for 1, 2, ... degrees of freedom; the last serves for all beyond."""


def bootstrap(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Expanded percentile bootstrap, 95 %, of the mean of `values` (n,), n >= 2.

    The plain percentile interval is too narrow for few values; the expanded one takes its quantiles at
    Phi(-sqrt(n / (n - 1)) t), t the 97.5 % point of Student's t with n - 1 degrees of freedom (Hesterberg, "What
    Teachers Should Know About the Bootstrap", 2015).
    """
    n = len(values)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, n, (RESAMPLES, n))].mean(axis=1)
    t = STUDENT_T[min(n - 2, len(STUDENT_T) - 1)]
    level = 0.5 * math.erfc(math.sqrt(n / (n - 1)) * t / math.sqrt(2))
    low, high = np.quantile(means, [level, 1 - level])
    return float(low), float(high)


def paired_ratio(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> dict[str, Any] | None:
    """Geometric mean of ours / theirs over pairs, its 95 % interval, and what that says of a cost: `better` if the
    whole interval is below 1, `worse` if above, else `no difference shown`. None with fewer than `MIN_PAIRS` pairs."""
    if len(ours) < MIN_PAIRS:
        return None
    logs = np.log(ours / theirs)
    low, high = np.exp(bootstrap(logs))
    verdict = "better" if high < 1 else "worse" if low > 1 else "no difference shown"
    return {"ratio": float(np.exp(logs.mean())), "low": float(low), "high": float(high), "verdict": verdict,
            "pairs": len(ours)}
