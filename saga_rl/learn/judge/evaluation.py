"""Is a checkpoint better? Open loop against Belady, closed loop in pairs under common random numbers.

A *seed* fixes one arrangement of the held-out sessions (`saga_rl.env.episodes.resample`): every policy is run on the
same arrangements, and what is reported is the distribution of the paired ratio, with a bootstrap interval over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import resample
from saga_rl.experiments.compare.settings import STOCK
from saga_rl.experiments.intervals import paired_ratio, sound
from saga_rl.policies.base import PolicySet
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.openloop.bound import LOW_PRESSURE, bound

Tick = Callable[[str], None]


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
        good = sound(mean[label], infinite)
        out[label] = paired_ratio(np.array(values[last])[good], np.array(values[label])[good])
    return out


def _compare(mean: dict[str, list[float]], p95: dict[str, list[float]],
             infinite: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
    stock = next(iter(mean))
    good = sound(mean[stock], infinite)
    arms: dict[str, dict[str, Any]] = {}
    for label in mean:
        collapsed = ~sound(mean[label], infinite)
        arms[label] = {"tct_mean_s": mean[label], "tct_p95_s": p95[label], "collapsed": int(collapsed.sum()),
                       "vs_infinite": float(np.exp(np.log(np.array(mean[label]) / infinite).mean()))}
        if label == stock:
            continue
        arms[label]["pairs"] = int(good.sum())
        for name, values in (("mean_vs_stock", mean), ("p95_vs_stock", p95)):
            ours, theirs = np.array(values[label])[good], np.array(values[stock])[good]
            arms[label][name] = paired_ratio(ours, theirs)
    return arms
