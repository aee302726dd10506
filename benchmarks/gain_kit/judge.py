"""Figures of the arms and their paired ratios to stock, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gain_kit.settings import INFINITE, STOCK, Setup

F64 = NDArray[np.float64]
Statistic = Callable[[F64], F64]
"""Over the last axis."""
DRAWS = 4000
LEVEL = 0.95


def mean(x: F64) -> F64:
    return x.mean(-1)


def p95(x: F64) -> F64:
    return np.quantile(x, 0.95, axis=-1)


BY_SESSION: dict[str, Statistic] = {"tct_mean_s": mean, "tct_p95_s": p95}
BY_RUN = ("throughput_sessions_per_min", "recomputed_tokens", "ttft_mean_s", "ttft_p95_s")


def in_time(tct: dict[str, float], infinite: dict[str, float], times: float) -> float:
    """Share of the sessions of `infinite` that took at most `times` times as long; one that failed was not in time."""
    return sum(tct.get(s, float("inf")) <= times * t for s, t in infinite.items()) / len(infinite)


def ratio(pairs: Sequence[tuple[F64, F64]], statistic: Statistic, seed: int = 0, draws: int = DRAWS
          ) -> dict[str, float | None]:
    """Mean over repeats of `statistic` of ours, over that of the other's, and its 95 % bootstrap interval.

    pairs: for each repeat, ours and the other's values of the same sessions in the same order (or one value a run).
    Repeats are drawn with replacement, then sessions within each, the same for both. With few repeats such an interval
    is too narrow rather than too wide. None where the other's mean is 0.
    """
    value = np.mean([statistic(a) for a, _ in pairs]) / (np.mean([statistic(b) for _, b in pairs]) or np.nan)
    rng, n = np.random.default_rng(seed), len(pairs)
    above, below = np.zeros(draws), np.zeros(draws)
    for slot in rng.integers(0, n, (n, draws)):
        for r, (a, b) in enumerate(pairs):
            here = np.flatnonzero(slot == r)
            rows = rng.integers(0, len(a), (len(here), len(a)))
            above[here] += statistic(a[rows])
            below[here] += statistic(b[rows])
    if not (below > 0).all():
        return {"ratio": _number(float(value)), "low": None, "high": None}
    found = above / below
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return {"ratio": _number(float(value)), "low": _number(low), "high": _number(high)}


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def judge(setup: Setup, runs: dict[tuple[str, float, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a pressure that has runs: `arms` by name with `figures` (means over repeats), `tenants`, `ratios` to
    stock and the number of `repeats`; runs in which a request failed are counted (`failed_runs`) and left out."""
    return [{"pressure": p, "arms": {arm: _arm(setup, runs, arm, p) for arm in setup.arms
                                     if any(_of(setup, runs, arm, p, r) for r in range(setup.repeats))}}
            for p in setup.pressures if any(at == p for _, at, _ in runs)]


def _of(setup: Setup, runs: dict, arm: str, pressure: float, repeat: int) -> dict[str, Any] | None:
    """The run of `arm`, None if it is missing or a request failed. Infinite memory knows one pressure: the first."""
    run = runs.get((arm, setup.pressures[0] if arm == INFINITE else pressure, repeat))
    return run if run is not None and not run["failed"] else None


def _arm(setup: Setup, runs: dict, arm: str, pressure: float) -> dict[str, Any]:
    mine = {r: run for r in range(setup.repeats) if (run := _of(setup, runs, arm, pressure, r))}
    figures = _mean([run["figures"] for run in mine.values()])
    slo = [in_time(run["tct_s"], free["tct_s"], setup.slo) for r, run in mine.items()
           if (free := _of(setup, runs, INFINITE, pressure, r))]
    figures["in_time"] = float(np.mean(slo)) if slo else None
    names = sorted({t for run in mine.values() for t in run["tenants"]})
    tenants = {t: _mean([run["tenants"][t] for run in mine.values() if t in run["tenants"]]) for t in names}
    both = [(run, base) for r, run in mine.items() if (base := _of(setup, runs, STOCK, pressure, r))]
    ratios: dict[str, Any] = {}
    if arm != STOCK and both:
        sessions = [_paired(run, base) for run, base in both]
        ratios = {k: ratio(sessions, f, setup.seed) for k, f in BY_SESSION.items()}
        ratios |= {k: ratio([(_one(run, k), _one(base, k)) for run, base in both], mean, setup.seed) for k in BY_RUN
                   if all(x["figures"].get(k) is not None for pair in both for x in pair)}
    failed = sum(1 for r in range(setup.repeats) if (run := runs.get((arm, pressure, r))) and run["failed"])
    return {"repeats": len(mine), "failed_runs": failed, "figures": figures, "tenants": tenants, "ratios": ratios,
            "each": {r: run["figures"]["tct_mean_s"] for r, run in mine.items()}}


def _paired(run: dict, base: dict) -> tuple[F64, F64]:
    both = sorted(set(run["tct_s"]) & set(base["tct_s"]))
    return np.array([run["tct_s"][s] for s in both]), np.array([base["tct_s"][s] for s in both])


def _one(run: dict, key: str) -> F64:
    return np.array([run["figures"][key]], np.float64)


def _mean(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    keys = list(dict.fromkeys(k for row in rows for k in row))
    out: dict[str, float | None] = {}
    for k in keys:
        values = [row[k] for row in rows if row.get(k) is not None]
        out[k] = float(np.mean(values)) if values else None
    return out
