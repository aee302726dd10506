"""Is a checkpoint better? Open loop against Belady, closed loop in pairs under common random numbers.

A *seed* fixes one arrangement of the held-out sessions (`saga_rl.env.episodes.resample`): every policy is run on the
same arrangements, and what is reported is the distribution of the paired ratio, with a bootstrap interval over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import resample
from saga_rl.policies.base import PolicySet
from saga_rl.policies.presets import preset
from saga_rl.sim.bound import LOW_PRESSURE, bound
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig

STOCK = "lru"
COLLAPSE = 5.0
"""Mean TCT above so many times that of infinite memory is a collapse; ratios measured inside one say nothing."""
MIN_PAIRS = 3
"""Fewer pairs make no interval, so no ratio is quoted."""
RESAMPLES = 10_000
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
             2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
"""97.5 % points for 1, 2, ... degrees of freedom; the last serves for all beyond."""

Tick = Callable[[str], None]


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


def open_loop(trace: Trace, config: SimConfig, capacities: Sequence[int], policies: dict[str, str],
              seeds: Sequence[int], tick: Tick) -> list[dict[str, Any]]:
    """Tokens computed again over Belady's, by capacity. policies: label -> eviction spec.

    Totals over `seeds` arrangements; every policy replays the same reference strings. A capacity where Belady computes
    again under `LOW_PRESSURE` of what is computed for the first time is marked: its ratios are noise.
    """
    rows = []
    for kv in capacities:
        totals = dict.fromkeys(policies, 0)
        belady = first_time = 0
        for seed in seeds:
            arranged = resample(trace, np.random.default_rng(seed))
            result = bound(arranged, replace(config, kv_tokens=kv, workers=1), list(policies.values()))
            belady += result["belady_recomputed_tokens"]
            first_time += result["first_time_tokens"]
            for label, spec in policies.items():
                totals[label] += result["policies"][spec]["recomputed_tokens"]
            tick(f"open loop at {kv:,}")
        rows.append({"capacity_tokens": kv, "belady_recomputed_tokens": belady, "low_pressure":
                     belady < LOW_PRESSURE * first_time, "policies": {
                         label: {"recomputed_tokens": t, "ratio": t / belady if belady else None}
                         for label, t in totals.items()}})
    return rows


def closed_loop(trace: Trace, config: SimConfig, arms: dict[str, PolicySet], seeds: Sequence[int],
                tick: Tick) -> dict[str, Any]:
    """Task completion times of every arm on the same arrangements; the first arm is stock, the last the one judged.

    Result: `arms[label]` holds `tct_mean_s`, `tct_p95_s` (lists over seeds), `collapsed` (seeds in which its mean TCT
    exceeds `COLLAPSE` x that of infinite memory), and for all but stock `mean_vs_stock`, `p95_vs_stock`: `paired_ratio`
    over the seeds in which stock did not collapse (`pairs` of them), None if they are too few. `mean_vs`, `p95_vs`: the
    last arm against each other one, over the seeds in which that other did not collapse. `infinite_memory`:
    `tct_mean_s`, stock with a pool that never fills.
    """
    context = int((trace.steps.prompt_tokens + trace.steps.output_tokens).sum())
    roomy = replace(config, kv_tokens=context + config.block_tokens * (trace.n_steps + 1))
    mean: dict[str, list[float]] = {label: [] for label in arms}
    p95: dict[str, list[float]] = {label: [] for label in arms}
    infinite: list[float] = []
    for seed in seeds:
        arranged = resample(trace, np.random.default_rng(seed))
        infinite.append(simulate(arranged, roomy, preset(STOCK), seed=seed).metrics["tct_mean_s"])
        for label, policy in arms.items():
            metrics = simulate(arranged, config, policy, seed=seed).metrics
            mean[label].append(metrics["tct_mean_s"])
            p95[label].append(metrics["tct_p95_s"])
            tick(f"{label}, seed {seed}, {config.kv_tokens:,} tokens")
    roof = np.array(infinite)
    return {"kv_tokens": config.kv_tokens, "workers": config.workers, "seeds": list(seeds),
            "infinite_memory": {"tct_mean_s": infinite}, "arms": _compare(mean, p95, roof),
            "mean_vs": _against_all(mean, mean, roof), "p95_vs": _against_all(p95, mean, roof)}


def _against_all(values: dict[str, list[float]], mean: dict[str, list[float]],
                 infinite: NDArray[np.float64]) -> dict[str, dict[str, Any] | None]:
    *others, last = values
    out: dict[str, dict[str, Any] | None] = {}
    for label in others:
        sound = np.array(mean[label]) <= COLLAPSE * infinite
        out[label] = paired_ratio(np.array(values[last])[sound], np.array(values[label])[sound])
    return out


def _compare(mean: dict[str, list[float]], p95: dict[str, list[float]],
             infinite: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
    stock = next(iter(mean))
    sound = np.array(mean[stock]) <= COLLAPSE * infinite
    arms: dict[str, dict[str, Any]] = {}
    for label in mean:
        collapsed = np.array(mean[label]) > COLLAPSE * infinite
        arms[label] = {"tct_mean_s": mean[label], "tct_p95_s": p95[label], "collapsed": int(collapsed.sum()),
                       "vs_infinite": float(np.exp(np.log(np.array(mean[label]) / infinite).mean()))}
        if label == stock:
            continue
        arms[label]["pairs"] = int(sound.sum())
        for name, values in (("mean_vs_stock", mean), ("p95_vs_stock", p95)):
            ours, theirs = np.array(values[label])[sound], np.array(values[stock])[sound]
            arms[label][name] = paired_ratio(ours, theirs)
    return arms
