"""The summary as rows of text, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saga_rl.report.tables import or_dash, ratio_text

Row = Mapping[str, Any]
Table = tuple[list[str], list[list[str]]]
PAGE_ONLY = ("/ fcfs", "mean TCT against fcfs", "floors broken", "AFS preemptions")
"""Columns of the fairness table that the terminal has no room for."""
SHORT = {"better": "+", "worse": "-", "no difference shown": "=", "too few pairs": "?"}


def trace_table(summary: Row) -> Table:
    header = ["trace", "sessions", "steps", "in one arrangement", "longest context", "endless cache would serve",
              "P1, KV tokens", "LRU / Bélády there", "load part, KV tokens a worker", "stock sustains, sessions/min",
              "limited by", "quality"]
    rows = []
    for name, t in summary["traces"].items():
        p1, load = t["p1"] or {}, t["sustained"] or {}
        rows.append([name, f"{t['sessions']:,}", f"{t['steps']:,}", f"{t['arranged_sessions']} {t['arrangement']}",
                     f"{t['longest_context_tokens']:,}", f"{t['infinite_cache_hit_share']:.2f}",
                     or_dash(p1.get("capacity_tokens"), "{:,}"), or_dash(p1.get("lru_over_belady"), "{:.2f}"),
                     f"{t['kv_tokens']:,}", or_dash(load.get("sessions_per_min"), "{:.2f}"),
                     load.get("limit") or "-", t["rests_on"]])
    return header, rows


def eviction_table(summary: Row, trace: str) -> Table:
    """One trace: policies by the ratio to Bélády at each capacity, and against LRU at the one nearest P1."""
    rows = [r for r in summary["eviction"] if r["trace"] == trace]
    sizes = {r["capacity_tokens"]: r for r in rows}
    near = nearest_p1(rows)
    header = ["policy", "setting", *(f"{kv:,} ({r['of_p1']:g} x P1)" + (" low pressure" if r["low_pressure"] else "")
                                     for kv, r in sizes.items()), "/ lru at P1", "against lru"]
    cells = {(r["policy"], r["capacity_tokens"]): r for r in rows}
    out = [["belady (bound)", "", *("low pressure" if r["low_pressure"] else "1" for r in sizes.values()), "", ""]]
    for policy in dict.fromkeys(r["policy"] for r in rows):
        mine = [cells[policy, kv] for kv in sizes]
        at = cells[policy, near] if near else None
        against = at["vs_lru"] if at else None
        out.append([policy, at["setting"] if at and at["setting"] != policy else "",
                    *("-" if r["low_pressure"] else ratio_text(r["vs_belady"], 3) for r in mine),
                    ratio_text(against, 3), against["verdict"] if against else ""])
    return header, out


def nearest_p1(rows: Sequence[Row]) -> int | None:
    """The capacity nearest P1 that is not low pressure, among one trace's rows."""
    usable = {r["capacity_tokens"]: r["of_p1"] for r in rows if not r["low_pressure"]}
    return min(usable, key=lambda kv: abs(usable[kv] - 1)) if usable else None


def eviction_overview(summary: Row) -> Table:
    """All traces at the capacity nearest P1: policies, best first by their geometric order of appearance."""
    by_trace = {t: [r for r in summary["eviction"] if r["trace"] == t] for t in summary["traces"]}
    near = {t: nearest_p1(rows) for t, rows in by_trace.items()}
    shown = [t for t, kv in near.items() if kv]
    out = []
    for policy in dict.fromkeys(r["policy"] for r in summary["eviction"]):
        cells = []
        for t in shown:
            r = next(r for r in by_trace[t] if r["policy"] == policy and r["capacity_tokens"] == near[t])
            cells.append(_short(r["vs_belady"], r["vs_lru"], 3))
        out.append([policy, *cells])
    return ["policy", *shown], out


def load_table(summary: Row, trace: str, load: float) -> Table:
    header = ["what is changed", "arm", "setting", "mean TCT, s", "P95 TCT, s", "mean / stock", "P95 / stock",
              "/ infinite", "collapsed", "against stock"]
    out = []
    for r in summary["load"]:
        if (r["trace"], r["load"]) != (trace, load):
            continue
        times = [f"{r['tct_mean_s']:,.1f}", f"{r['tct_p95_s']:,.1f}"]
        if r["role"] == "reference":
            out.append([r["role"], r["name"], "", *times, "", "", "1", "", ""])
            continue
        out.append([r["role"], r["name"], setting(r), *times, ratio_text(r.get("mean_vs_stock")),
                    ratio_text(r.get("p95_vs_stock")), f"{r['vs_infinite']:.2f}",
                    f"{r['collapsed']} of {r['seeds']}" if r["collapsed"] else "", r["verdict"]])
    return header, out


def setting(r: Row) -> str:
    """What an arm runs with, where its name does not say it."""
    policies = r["policies"]
    if r["role"] in policies:
        return policies[r["role"]] if policies[r["role"]] != r["name"] else ""
    return "" if r["role"] in ("stock", "product") or "set" in policies else " / ".join(policies.values())


def load_overview(summary: Row, load: float) -> Table:
    """All traces at one load: mean TCT over stock's."""
    shown = [t for t in summary["traces"] if any(r["trace"] == t for r in summary["load"])]
    cells = {(r["role"], r["name"], r["trace"]): r for r in summary["load"] if r["load"] == load}
    out = []
    for role, name in dict.fromkeys((role, name) for role, name, _ in cells):
        if role in ("reference", "stock"):
            continue
        found = [cells.get((role, name, t)) for t in shown]
        out.append([role, name, *("" if r is None else _load_cell(r) for r in found)])
    return ["what is changed", "arm", *shown], out


def _load_cell(r: Row) -> str:
    if r["collapsed"] != r["stock_collapsed"]:
        return "collapses" if r["collapsed"] > r["stock_collapsed"] else "stock collapses"
    return _short(r["mean_vs_stock"], r["mean_vs_stock"])


def _short(shown: Row | None, judged: Row | None, digits: int = 2) -> str:
    mark = SHORT[judged["verdict"]] if judged else ""
    return "-" if shown is None else f"{shown['ratio']:.{digits}f} {mark}".strip()


def fairness_table(summary: Row, trace: str, load: float) -> Table:
    header = ["ordering", "constraints", "largest gap, tokens", "its bound", "Jain", "worst tenant's P95 slowdown",
              "/ fcfs", "SLO", "mean TCT, s", "/ fcfs ", "mean TCT against fcfs", "floors broken", "AFS preemptions"]
    out = []
    for r in summary["fairness"]:
        if (r["trace"], r["load"]) == (trace, load):
            mean = r["mean_vs_fcfs"]
            out.append([r["ordering"], r["constraints"], f"{r['service_gap_tokens']:,.0f}",
                        or_dash(r["service_gap_bound_tokens"], "{:,.0f}"), or_dash(r["jain_index"], "{:.3f}"),
                        f"{r['worst_slowdown_p95']:.2f}", ratio_text(r["worst_vs_fcfs"]),
                        or_dash(r["slo_attainment"], "{:.2f}"), f"{r['tct_mean_s']:,.1f}", ratio_text(mean),
                        mean["verdict"] if mean else "", or_dash(r["floor_breaks"], "{:.1f}"),
                        or_dash(r["afs_preemptions"], "{:.1f}")])
    return header, out


def tuning_table(summary: Row) -> Table:
    rows = []
    for t in summary["tuning"]:
        if len(t["tried"]) > 1:
            rows.append([{"open": "eviction", "closed": "load"}[t["part"]], t["trace"], t["policy"], t["chosen"],
                         f"{len(t['tried'])}", ", ".join(k for k in t["tried"] if k != t["chosen"])])
    return ["part", "trace", "policy", "chosen", "settings tried", "the others"], rows
