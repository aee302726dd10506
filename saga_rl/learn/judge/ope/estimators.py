"""Weighted importance sampling and the doubly robust estimator of a policy's value, with bootstrap intervals.

With rho_t = pi(a_t | s_t) / b(a_t | s_t), w_t = rho_0 ... rho_t (w_-1 = 1) and r_t discounted by gamma^t, over n paths:

    per decision    sum_t  mean(w_t r_t)            Precup, Sutton, Singh 2000
    trajectory      mean(w_H sum_t r_t)
    doubly robust   sum_t  mean(w_t (r_t - Q_t) + w_t-1 V_t)    Jiang, Li 2016

`normalised` divides each mean of weighted terms by the mean of its weights (Thomas, Brunskill 2016: WDR): a small bias
that vanishes with n, and a constant that is added to all rewards adds no variance. Without it all three are unbiased
where the propensities are right and nothing is taken by the target that the behaviour never takes; the doubly robust
one also where Q is the target's own. A path that ended keeps its last weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from saga_rl.errors import UserError
from saga_rl.learn.judge.ope.paths import Paths

RESAMPLES = 1000
LOST = 0.05
"""No interval is quoted when more than this share of the resamples holds no path with any weight."""


@dataclass(frozen=True)
class Estimate:
    """Value of a path, with a 95 % interval over episodes; low and high are NaN where there is none."""

    value: float
    low: float
    high: float
    effective: float
    """Effective sample size, (sum w)^2 / sum w^2 of the paths' last weights: so many paths that the target itself had
    played would say as much. NaN for an estimator without weights."""
    paths: int
    episodes: int
    draws: NDArray[np.float64] = field(repr=False, compare=False)
    """(RESAMPLES,) value on each of `resamples`, NaN where no path kept any weight; the same resamples of the same
    episodes whatever is estimated."""


def resamples(episodes: int, seed: int) -> NDArray[np.int64]:
    """(RESAMPLES, episodes) how often each episode was drawn."""
    return np.random.default_rng(seed).multinomial(episodes, np.full(episodes, 1 / episodes), RESAMPLES)


def interval(draws: NDArray[np.float64], episodes: int) -> tuple[float, float]:
    """95 % interval of bootstrap draws over so many episodes: the expanded percentile (Hesterberg 2015), as few
    episodes need. NaN with fewer than 3 episodes, or where more than `LOST` of the draws are NaN."""
    kept = draws[np.isfinite(draws)]
    if episodes < 3 or len(kept) < (1 - LOST) * len(draws):
        return math.nan, math.nan
    t = stats.t.ppf(0.975, episodes - 1)
    level = float(stats.norm.cdf(-math.sqrt(episodes / (episodes - 1)) * t))
    low, high = np.quantile(kept, [level, 1 - level])
    return float(low), float(high)


def weights(rho: NDArray[np.float64], paths: Paths) -> NDArray[np.float64]:
    """(n, H) cumulative products of the ratios along each path, constant after its end."""
    return np.cumprod(paths.take(rho, 1.0), axis=1)


def effective_size(w: NDArray[np.float64]) -> float:
    """Kish's effective sample size of weights (n,): (sum w)^2 / sum w^2, 0 if all are 0."""
    square = float((w ** 2).sum())
    return float(w.sum() ** 2 / square) if square > 0 else 0.0


def importance(rewards: NDArray[np.float64], rho: NDArray[np.float64], paths: Paths, *, gamma: float = 1.0,
               per_decision: bool = True, normalised: bool = True, seed: int = 0) -> Estimate:
    """Importance sampling. rewards, rho: (N,) of the dataset. Raises `UserError` if no path keeps any weight."""
    w = weights(rho, paths)
    r = paths.take(rewards) * gamma ** np.arange(w.shape[1])
    if not per_decision:
        w, r = w[:, -1:], r.sum(axis=1, keepdims=True)
    return _summed([(w * r, w)], w[:, -1], paths, normalised, seed)


def doubly_robust(rewards: NDArray[np.float64], rho: NDArray[np.float64], q: NDArray[np.float64],
                  v: NDArray[np.float64], paths: Paths, *, gamma: float = 1.0, normalised: bool = True,
                  seed: int = 0) -> Estimate:
    """Sequential doubly robust. q, v: (N,) modelled value of the logged action and of the state, for the target."""
    w = weights(rho, paths)
    before = np.concatenate([np.ones((len(w), 1)), w[:, :-1]], axis=1)
    discount = gamma ** np.arange(w.shape[1])
    surprise = w * (paths.take(rewards) - paths.take(q)) * discount
    return _summed([(surprise, w), (before * paths.take(v) * discount, before)], w[:, -1], paths, normalised, seed)


def modelled(v: NDArray[np.float64], paths: Paths, seed: int = 0) -> Estimate:
    """Mean of a model's values (N,) at the paths' first decisions. The interval is that of the first states alone: how
    wrong the model may be is not in it."""
    first = v[paths.index[:, :1]]
    result = _summed([(first, np.ones_like(first))], np.ones(len(first)), paths, True, seed)
    return replace(result, effective=math.nan)


def _summed(terms: list[tuple[NDArray, NDArray]], last: NDArray, paths: Paths, normalised: bool,
            seed: int) -> Estimate:
    """sum over terms and columns of sum(weighted) / sum(weights) (or / n), and its bootstrap over episodes."""
    episodes = int(paths.cluster.max()) + 1
    size = np.bincount(paths.cluster, minlength=episodes).astype(np.float64)
    by_episode = [(_total(x, paths.cluster, episodes), _total(w, paths.cluster, episodes)) for x, w in terms]

    def value(counts: NDArray) -> NDArray:
        """(B,) for counts (B, episodes)."""
        out = np.zeros(len(counts))
        for x, w in by_episode:
            below = counts @ w if normalised else (counts @ size)[:, None]
            with np.errstate(invalid="ignore", divide="ignore"):
                out += ((counts @ x) / below).sum(axis=1)
        return out

    whole = float(value(np.ones((1, episodes)))[0])
    if not math.isfinite(whole):
        raise UserError("dataset", "holds no path that the policy could have taken to its end (no overlap)",
                        "shorten the windows, or collect with behaviours nearer to it")
    drawn = value(resamples(episodes, seed))
    return Estimate(whole, *interval(drawn, episodes), effective_size(last), len(paths.cluster), episodes, drawn)


def _total(x: NDArray, cluster: NDArray, episodes: int) -> NDArray:
    out = np.zeros((episodes, x.shape[1]))
    np.add.at(out, cluster, x)
    return out
