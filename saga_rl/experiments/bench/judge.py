"""Figures of the arms and their paired ratios to stock, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from saga_rl.experiments.bench.arms import INFINITE, STOCK
from saga_rl.experiments.bench.record import Runs
from saga_rl.experiments.intervals import F64, Statistic, mean, nested_ratio, p95

SLO = 1.5
"""A session is in time if it took at most so many times what it took with infinite memory."""
RATIOS: dict[str, tuple[str, Statistic | None]] = {
    "of_stock": ("tct_mean_s", mean), "of_stock_p95": ("tct_p95_s", p95), "of_stock_ttft": ("ttft_mean_s", None),
    "of_stock_throughput": ("throughput_sessions_per_min", None)}
"""Name in `result.json` -> figure, and its statistic over sessions; None: one value a run."""


def in_time(tct: dict[str, float], infinite: dict[str, float], times: float) -> float:
    """Share of the sessions of `infinite` that took at most `times` times as long; one that failed was not in time."""
    return sum(tct.get(s, float("inf")) <= times * t for s, t in infinite.items()) / len(infinite)


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
        return nested_ratio(pairs, statistic, seed) if pairs else {"mean": None, "low": None, "high": None}
    known = [(run["figures"].get(key), base["figures"].get(key)) for run, base in both]
    if not known or any(x is None for pair in known for x in pair):
        return {"mean": None, "low": None, "high": None}
    return nested_ratio([(np.array([a], float), np.array([b], float)) for a, b in known], mean, seed)


def _paired(run: dict, base: dict) -> tuple[F64, F64]:
    both = sorted(set(run["tct_s"]) & set(base["tct_s"]))
    return np.array([run["tct_s"][s] for s in both]), np.array([base["tct_s"][s] for s in both])


def _means(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for k in dict.fromkeys(k for row in rows for k in row):
        values = [row[k] for row in rows if row.get(k) is not None]
        out[k] = float(np.mean(values)) if values else None
    return out
