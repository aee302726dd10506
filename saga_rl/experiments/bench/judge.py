"""Figures of the arms and their paired ratios to stock, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.experiments.bench.arms import INFINITE, STOCK
from saga_rl.experiments.bench.journal import Key

F64 = NDArray[np.float64]
Statistic = Callable[[F64], F64]
"""Over the last axis."""
Runs = dict[Key, dict[str, Any]]
DRAWS = 4000
LEVEL = 0.95
SLO = 1.5
"""A session is in time if it took at most so many times what it took with infinite memory."""


def mean(x: F64) -> F64:
    """The mean over the last axis."""
    return x.mean(-1)


def p95(x: F64) -> F64:
    """The 95th percentile over the last axis."""
    return np.quantile(x, 0.95, axis=-1)


RATIOS: dict[str, tuple[str, Statistic | None]] = {
    "of_stock": ("tct_mean_s", mean), "of_stock_p95": ("tct_p95_s", p95), "of_stock_ttft": ("ttft_mean_s", None),
    "of_stock_throughput": ("throughput_sessions_per_min", None)}
"""Name in `result.json` -> figure, and its statistic over sessions; None: one value a run."""


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
        return {"mean": _number(float(value)), "low": None, "high": None}
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(above / below, [tail, 1 - tail])
    return {"mean": _number(float(value)), "low": _number(low), "high": _number(high)}


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def judge(arms: Sequence[str], repeats: int, runs: Runs, seed: int = 0) -> dict[str, dict[str, Any]]:
    """By arm that has a run: its figures (means over repeats), `tenants`, ratios to stock (`RATIOS`), `repeats`, and
    `each` repeat's mean completion time. Runs in which a request failed are counted (`failed_runs`) and left out."""
    return {arm: _arm(arm, repeats, runs, seed) for arm in arms if any((arm, r) in runs for r in range(repeats))}


def _of(runs: Runs, arm: str, repeat: int) -> dict[str, Any] | None:
    run = runs.get((arm, repeat))
    return run if run is not None and not run["failed"] else None


def _arm(arm: str, repeats: int, runs: Runs, seed: int) -> dict[str, Any]:
    mine = {r: run for r in range(repeats) if (run := _of(runs, arm, r))}
    out: dict[str, Any] = _means([run["figures"] for run in mine.values()])
    slo = [in_time(run["tct_s"], free["tct_s"], SLO) for r, run in mine.items() if (free := _of(runs, INFINITE, r))]
    out["in_time"] = float(np.mean(slo)) if slo else None
    names = sorted({t for run in mine.values() for t in run["tenants"]})
    out["tenants"] = {t: _means([run["tenants"][t] for run in mine.values() if t in run["tenants"]]) for t in names}
    both = [(run, base) for r, run in mine.items() if (base := _of(runs, STOCK, r))]
    for name, (key, statistic) in RATIOS.items():
        out[name] = _ratio(both, key, statistic, seed) if arm != STOCK else {"mean": 1.0, "low": 1.0, "high": 1.0}
    out["failed_runs"] = sum(1 for r in range(repeats) if (run := runs.get((arm, r))) and run["failed"])
    out["repeats"] = len(mine)
    out["real_s_a_run"] = float(np.mean([run["real_s"] for run in mine.values()])) if mine else None
    out["each"] = {str(r): run["figures"]["tct_mean_s"] for r, run in mine.items()}
    return out


def _ratio(both: list[tuple[dict, dict]], key: str, statistic: Statistic | None, seed: int) -> dict[str, float | None]:
    if statistic is not None:
        pairs = [p for run, base in both if len((p := _paired(run, base))[0])]
        return ratio(pairs, statistic, seed) if pairs else {"mean": None, "low": None, "high": None}
    known = [(run["figures"].get(key), base["figures"].get(key)) for run, base in both]
    if not known or any(x is None for pair in known for x in pair):
        return {"mean": None, "low": None, "high": None}
    return ratio([(np.array([a], float), np.array([b], float)) for a, b in known], mean, seed)


def _paired(run: dict, base: dict) -> tuple[F64, F64]:
    both = sorted(set(run["tct_s"]) & set(base["tct_s"]))
    return np.array([run["tct_s"][s] for s in both]), np.array([base["tct_s"][s] for s in both])


def _means(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for k in dict.fromkeys(k for row in rows for k in row):
        values = [row[k] for row in rows if row.get(k) is not None]
        out[k] = float(np.mean(values)) if values else None
    return out
