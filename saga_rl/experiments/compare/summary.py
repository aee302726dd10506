"""From results to figures: paired ratios with intervals; collapse and low pressure are marked and left out.

Every ratio is of two arms on the same arrangement; what is reported is the geometric mean over arrangements with a 95 %
bootstrap interval (`experiments.intervals`). A cost below 1 is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saga_rl.experiments.compare import arms
from saga_rl.experiments.compare.plan import setting_of
from saga_rl.experiments.compare.run import Outcome
from saga_rl.experiments.intervals import COLLAPSE, MIN_PAIRS, paired_ratio, sound
from saga_rl.sim.openloop.bound import LOW_PRESSURE

TOO_FEW = "too few pairs"
Row = dict[str, Any]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Row | None:
    """Geometric mean of ours / theirs with `low`, `high`, `verdict`, `pairs`; below `MIN_PAIRS` pairs without an
    interval (None) and with the verdict `too few pairs`. None without any pair."""
    x, y = np.asarray(ours, float), np.asarray(theirs, float)
    if not len(x):
        return None
    return paired_ratio(x, y) or {"ratio": float(np.exp(np.log(x / y).mean())), "low": None, "high": None,
                                  "verdict": TOO_FEW, "pairs": len(x)}


def eviction_rows(o: Outcome) -> list[Row]:
    """One row a trace, capacity and policy: tokens computed again over Belady's, and against LRU."""
    rows = []
    for name in o.plan.facts:
        for multiple, kv in o.plan.capacities(name, o.scouted).items():
            by_spec = {spec: [o.final["eviction", name, kv, spec, seed] for seed in o.plan.s.test_seeds]
                       for spec in arms.evictions(o.plan.s)}
            for spec, runs in by_spec.items():
                best = [r["belady_recomputed_tokens"] for r in runs]
                low = sum(best) < LOW_PRESSURE * sum(r["first_time_tokens"] for r in runs)
                usable = [i for i, b in enumerate(best) if b > 0 and not low]
                again = [runs[i]["recomputed_tokens"] for i in usable]
                stock = [by_spec["lru"][i]["recomputed_tokens"] for i in usable] if "lru" in by_spec else None
                rows.append({
                    "trace": name, "capacity_tokens": kv, "of_p1": multiple, "policy": spec,
                    "setting": setting_of(o.chosen, ("open", name, spec)), "low_pressure": low,
                    "recomputed_tokens": sum(r["recomputed_tokens"] for r in runs),
                    "belady_recomputed_tokens": sum(best),
                    "first_time_tokens": sum(r["first_time_tokens"] for r in runs),
                    "vs_belady": ratio(again, [best[i] for i in usable]),
                    "vs_lru": ratio(again, stock) if stock and spec != "lru" else None})
    return rows


def load_rows(o: Outcome) -> list[Row]:
    """One row a trace, load and arm, infinite memory first and stock second."""
    rows = []
    for name in o.plan.facts:
        speed = o.scouted.get((name, "sustain"), {}).get("speed")
        for load in o.plan.s.loads if speed and "load" in o.plan.s.parts else ():
            endless = _times(o, name, load, None)
            chosen = o.plan.arms(name, o.chosen)
            by_arm = {arm.label: _times(o, name, load, arm.label) for arm in chosen}
            rows.append({"trace": name, "load": load, "role": "reference", "name": "infinite memory", "policies": None,
                         **_means(endless)})
            for arm in chosen:
                rows.append({"trace": name, "load": load, "role": arm.role, "name": arm.name, "policies": arm.policies,
                             **compare_arm(by_arm[arm.label], by_arm[arms.stock_arm().label],
                                           endless["tct_mean_s"], stock=arm.role == "stock")})
    return rows


def _times(o: Outcome, name: str, load: float, label: str | None) -> dict[str, list[float]]:
    runs = [o.final["load", name, load, label, seed] for seed in o.plan.s.test_seeds]
    return {key: [run[key] for run in runs] for key in
            ("tct_mean_s", "tct_p95_s", "hit_share", "recomputed_tokens", "preemptions", "migrations")}


def _means(values: Mapping[str, Sequence[float]]) -> Row:
    return {key: float(np.mean(v)) for key, v in values.items()}


def compare_arm(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]], free: Sequence[float],
                stock: bool = False) -> Row:
    """Figures of one arm against stock over the same seeds. `collapsed`, `stock_collapsed`: seeds in which mean TCT is
    above `COLLAPSE` x that of infinite memory (`free`); ratios are over the seeds in which neither did."""
    good, stock_good = sound(ours["tct_mean_s"], free), sound(theirs["tct_mean_s"], free)
    both = np.flatnonzero(good & stock_good)
    row = _means(ours) | {"collapsed": int((~good).sum()), "stock_collapsed": int((~stock_good).sum()),
                          "seeds": len(good),
                          "vs_infinite": float(np.exp(np.log(np.asarray(ours["tct_mean_s"]) / free).mean()))}
    for key, out in (("tct_mean_s", "mean_vs_stock"), ("tct_p95_s", "p95_vs_stock")):
        row[out] = None if stock else ratio([ours[key][i] for i in both], [theirs[key][i] for i in both])
    row["verdict"] = "" if stock else verdict(row)
    return row


def verdict(row: Mapping[str, Any]) -> str:
    """Of mean TCT, in words; who collapses more often than the other is worse, whatever the other seeds say."""
    if row["collapsed"] > row["stock_collapsed"]:
        return "worse: collapses"
    if row["collapsed"] < row["stock_collapsed"]:
        return "better: stock collapses"
    found = row["mean_vs_stock"]
    if found is None:
        return "no ratio: both collapse"
    return found["verdict"]


def fairness_rows(o: Outcome) -> list[Row]:
    """One row a trace, load, ordering and set of constraints; ratios are to FCFS without constraints."""
    rows = []
    for name in o.plan.facts:
        speed = o.scouted.get((name, "sustain"), {}).get("speed")
        for load in o.plan.s.fair_loads if speed and o.plan.fair(name) else ():
            stock = None
            for order in arms.orderings(o.plan.s):
                for variant in o.plan.s.variants():
                    runs = [o.final["fairness", name, load, order, variant, seed] for seed in o.plan.s.test_seeds]
                    stock = stock or runs
                    rows.append({"trace": name, "load": load, "ordering": order, "constraints": variant,
                                 **fair_row(runs, stock)})
    return rows


def fair_row(runs: Sequence[Mapping[str, Any]], stock: Sequence[Mapping[str, Any]]) -> Row:
    """Means over seeds; of the service gap the largest of any seed, beside the least bound of any."""
    def mean(key: str) -> float | None:
        values = [r[key] for r in runs if r[key] is not None]
        return float(np.mean(values)) if values else None

    bounds = [r["service_gap_bound_tokens"] for r in runs if r["service_gap_bound_tokens"] is not None]
    worst, stock_worst = [_worst(r) for r in runs], [_worst(r) for r in stock]
    same = runs is stock
    return {
        "service_gap_tokens": max(r["service_gap_tokens"] for r in runs),
        "service_gap_bound_tokens": min(bounds) if bounds else None,
        "jain_index": mean("jain_index"), "slo_attainment": mean("slo_attainment"), "tct_mean_s": mean("tct_mean_s"),
        "tct_p95_s": mean("tct_p95_s"), "floor_breaks": mean("floor_breaks"),
        "afs_preemptions": mean("afs_preemptions"), "worst_slowdown_p95": float(np.mean(worst)),
        "slowdown_p95": _by_tenant(runs), "seeds": len(runs),
        "mean_vs_fcfs": None if same else ratio([r["tct_mean_s"] for r in runs], [r["tct_mean_s"] for r in stock]),
        "worst_vs_fcfs": None if same else ratio(worst, stock_worst)}


def _worst(run: Mapping[str, Any]) -> float:
    return max(t["slowdown_p95"] for t in run["tenants"] if t["slowdown_p95"] is not None)


def _by_tenant(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Tenant -> geometric mean over seeds of its sessions' P95 of TCT over their time alone."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for t in run["tenants"]:
            if t["slowdown_p95"] is not None:
                found.setdefault(t["tenant"], []).append(math.log(t["slowdown_p95"]))
    return {tenant: math.exp(sum(logs) / len(logs)) for tenant, logs in sorted(found.items())}


def summarise(o: Outcome) -> Row:
    """summary.json less its provenance: no wall-clock figure is in it, so a resumed run writes the same."""
    s = o.plan.s
    return {
        "kind": "simulated", "parts": list(s.parts),
        "rules": {"low_pressure_share": LOW_PRESSURE, "collapse_factor": COLLAPSE, "least_pairs": MIN_PAIRS},
        "settings": {"seeds": list(s.test_seeds), "tune": s.tune, "loads": list(s.loads), "workers": s.workers,
                     "capacities": list(s.capacities), "population": s.population, "profile": s.profile,
                     "ends": s.ends,
                     "constraints": s.variants()},
        "traces": {name: {**facts, "kv_tokens": o.plan.closed_config(name)["kv_tokens"],
                          "p1": o.scouted.get((name, "pressure")), "sustained": o.scouted.get((name, "sustain"))}
                   for name, facts in o.plan.facts.items()},
        "tuning": [{"part": key[0], "trace": key[1], "policy": key[-1], "chosen": c.spec,
                    "tried": {k: list(v) for k, v in c.tried.items()}} for key, c in o.chosen.items()],
        "eviction": eviction_rows(o) if "eviction" in s.parts else [],
        "load": load_rows(o), "fairness": fairness_rows(o), "left_out": left_out(o)}


def left_out(o: Outcome) -> list[str]:
    """In words: sessions, points and traces that no figure speaks of, and why."""
    out = []
    for name, f in o.plan.facts.items():
        if gone := f["left_out_sessions"]:
            out.append(f"{name}: {len(gone)} sessions whose contexts fit no pool asked for: {', '.join(gone)}")
        if dropped := {k: n for k, n in f["dropped_by_importer"].items() if not k.startswith("field")}:
            out.append(f"{name}: " + ", ".join(f"{n:,} {k.replace('_', ' ')}" for k, n in dropped.items()))
        if f["doubts"]:
            out.append(f"{name}: {f['doubts']}")
        p1, sustained = o.scouted.get((name, "pressure")), o.scouted.get((name, "sustain"))
        if p1 is not None and p1["capacity_tokens"] is None:
            out.append(f"{name}, part eviction: at no capacity that holds its longest context does Belady compute "
                       "enough again to divide by")
        if sustained is not None and sustained["speed"] is None:
            out.append(f"{name}, parts load and fairness: {sustained['why']}")
        if "fairness" in o.plan.s.parts and not o.plan.fair(name):
            out.append(f"{name}, part fairness: one tenant only" if f["tenants"] < 2 else
                       f"{name}, part fairness: its tenants are workflows of one user, not customers")
    return out
