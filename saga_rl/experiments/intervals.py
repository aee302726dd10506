"""Every kind of interval once, and the marks for what no interval should be quoted of.

`bootstrap`, `geometric`, `paired_ratio`: a value an arrangement. `ratio_of_means`: two values an arrangement, one over
the other. `nested_ratio`: repeats with sessions in each, as real servers give them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLLAPSE = 5.0
"""Mean TCT above so many times that of infinite memory is a collapse; ratios measured inside one say nothing."""
MIN_PAIRS = 3
"""Fewer pairs make no interval, so no ratio is quoted."""
RESAMPLES = 10_000
NESTED_RESAMPLES = 4000
TAILS = (0.025, 0.975)
NESTED_TAILS = ((1 - 0.95) / 2, 1 - (1 - 0.95) / 2)
"""The same but for the last bit, which figures on record have."""
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
             2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
"""97.5 % points for 1, 2, ... degrees of freedom; the last serves for all beyond."""

F64 = NDArray[np.float64]
Statistic = Callable[[F64], F64]
"""Over the last axis."""


def sound(mean: Sequence[float] | F64, free: Sequence[float] | F64) -> NDArray[np.bool_]:
    """Which runs did not collapse: mean completion time at most `COLLAPSE` x that of infinite memory. (n,) seconds."""
    return np.asarray(mean, float) <= COLLAPSE * np.asarray(free, float)


def mean(x: F64) -> F64:
    """The mean over the last axis."""
    return x.mean(-1)


def p95(x: F64) -> F64:
    """The 95th percentile over the last axis."""
    return np.quantile(x, 0.95, axis=-1)


def bootstrap(values: F64, seed: int = 0) -> tuple[float, float]:
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


def geometric(logs: F64) -> tuple[float, float, float]:
    """(value, low, high): the geometric mean of what `logs` (n,), n >= 2, are the logarithms of, by `bootstrap`."""
    low, high = np.exp(bootstrap(logs))
    return float(np.exp(logs.mean())), float(low), float(high)


def paired_ratio(ours: F64, theirs: F64) -> dict[str, Any] | None:
    """Geometric mean of ours / theirs over pairs, its 95 % interval, and what that says of a cost: `better` if the
    whole interval is below 1, `worse` if above, else `no difference shown`. None with fewer than `MIN_PAIRS` pairs."""
    if len(ours) < MIN_PAIRS:
        return None
    value, low, high = geometric(np.log(ours / theirs))
    verdict = "better" if high < 1 else "worse" if low > 1 else "no difference shown"
    return {"ratio": value, "low": low, "high": high, "verdict": verdict, "pairs": len(ours)}


def ratio_of_means(ours: F64, whole: F64) -> tuple[float, float, float]:
    """(value, low, high): mean of `ours` over mean of `whole`, (n,) pairs each, by a percentile bootstrap over pairs;
    draws in which `whole` comes to nothing or less are passed over."""
    n = len(ours)
    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    below = whole[drawn].mean(axis=1)
    values = ours[drawn].mean(axis=1)[below > 0] / below[below > 0]
    low, high = np.quantile(values, TAILS)
    return float(ours.mean() / whole.mean()), float(low), float(high)


def nested_ratio(pairs: Sequence[tuple[F64, F64]], statistic: Statistic, seed: int = 0, draws: int = NESTED_RESAMPLES
                 ) -> dict[str, float | None]:
    """Mean over repeats of `statistic` of ours, over that of the other's, and its 95 % bootstrap interval.

    pairs: for each repeat, ours and the other's values of the same sessions in the same order (or one value a run).
    Repeats are drawn with replacement, then sessions within each, the same for both. With few repeats such an interval
    is too narrow rather than too wide; of one repeat of one value there is none. None where the other's mean is 0.
    """
    value = np.mean([statistic(a) for a, _ in pairs]) / (np.mean([statistic(b) for _, b in pairs]) or np.nan)
    if len(pairs) == 1 == len(pairs[0][0]):
        return {"mean": _number(float(value)), "low": None, "high": None}
    rng, n = np.random.default_rng(seed), len(pairs)
    above, below = np.zeros(draws), np.zeros(draws)
    for slot in rng.integers(0, n, (n, draws)):
        for r, (a, b) in enumerate(pairs):
            here = np.flatnonzero(slot == r)
            rows = rng.integers(0, len(a), (len(here), len(a)))
            above[here] += statistic(a[rows])
            below[here] += statistic(b[rows])
    if not (below > 0).all():
        return {"mean": _number(float(value)), "low": None, "high": None}
    low, high = np.quantile(above / below, NESTED_TAILS)
    return {"mean": _number(float(value)), "low": _number(low), "high": _number(high)}


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
