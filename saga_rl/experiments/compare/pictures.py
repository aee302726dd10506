"""The pictures of an experiment, as SVG: policies over Belady, arms over stock, slowdown against load, fairness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saga_rl.experiments.compare.tables import nearest_p1
from saga_rl.experiments.intervals import COLLAPSE
from saga_rl.report.style import FAINT, INK, PALETTE, dress, log_ticks, new_figure, panels

Row = Mapping[str, Any]
SHADES = ("#A6CEE3", "#6BAED6", "#2171B5", "#08306B", "#041C3D", "#020C1A")
CURVES = ("preset", "checkpoint", "picked")
"""The last two arms of each role are drawn as curves."""


def over_belady(summary: Row) -> Any:
    """A panel a trace: a row a policy, a dot a capacity, darker = larger; Belady is the line at 1. Low-pressure points
    are left out."""
    rows = [r for r in summary["eviction"] if not r["low_pressure"] and r["vs_belady"]]
    by_trace = {t: [r for r in rows if r["trace"] == t] for t in summary["traces"]}
    by_trace = {t: found for t, found in by_trace.items() if found}
    policies = sorted({r["policy"] for r in rows}, reverse=True, key=lambda p: float(
        np.mean([np.log(r["vs_belady"]["ratio"]) for r in rows if r["policy"] == p])))
    figure, shown = panels(len(by_trace), 5.8, 1.3 + 0.24 * len(policies))
    for axes, (trace, found) in zip(shown, by_trace.items(), strict=True):
        sizes = sorted({r["capacity_tokens"]: r["of_p1"] for r in found}.items())
        near = nearest_p1(found)
        for i, (kv, multiple) in enumerate(sizes):
            mine = {r["policy"]: r["vs_belady"]["ratio"] for r in found if r["capacity_tokens"] == kv}
            axes.scatter([mine[p] for p in policies], range(len(policies)), s=34, color=SHADES[min(i, len(SHADES) - 1)],
                         edgecolors=PALETTE[1] if kv == near else "white", linewidths=1.4 if kv == near else 0.5,
                         zorder=3 + (kv == near), label=f"{kv / 1000:,.0f}k = {multiple:g} x P1")
        axes.axvline(1, color=INK, linewidth=1.2)
        axes.set_xscale("log")
        log_ticks(axes.xaxis, 1.0, max(r["vs_belady"]["ratio"] for r in found))
        axes.set_yticks(range(len(policies)), [_name(p) for p in policies], fontsize=8)
        dress(axes, trace, "tokens computed again, over Bélády's (log)", "")
        below = -0.5 / (0.24 * len(policies))
        axes.legend(frameon=False, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.4, below), ncols=4,
                    handletextpad=0.1, columnspacing=0.9)
    return figure


def _name(policy: str) -> str:
    return "learned" if policy.startswith("learned:") else policy


def over_stock(summary: Row, key: str) -> Any:
    """A table in colours: a row an arm, a column a trace and load, the ratio to stock. Bold: the interval excludes 1.
    key: `mean_vs_stock` or `p95_vs_stock`."""
    rows = [r for r in summary["load"] if r["role"] not in ("reference", "stock")]
    arms = list(dict.fromkeys((r["role"], r["name"]) for r in rows))
    points = list(dict.fromkeys((r["trace"], r["load"]) for r in rows))
    cells = {(r["role"], r["name"], r["trace"], r["load"]): r for r in rows}
    figure = new_figure(3.2 + 0.52 * len(points), 1.3 + 0.25 * len(arms))
    axes = figure.subplots()
    grid = np.full((len(arms), len(points)), np.nan)
    for y, arm in enumerate(arms):
        for x, point in enumerate(points):
            r = cells.get((*arm, *point))
            if r is None:
                continue
            text, bold = "", False
            if r["collapsed"] != r["stock_collapsed"]:
                text = "collapse" if r["collapsed"] > r["stock_collapsed"] else "rescue"
                grid[y, x] = np.log(2.0 if text == "collapse" else 0.5)
            elif r[key]:
                text, grid[y, x] = f"{r[key]['ratio']:.2f}", np.log(r[key]["ratio"])
                bold = r[key]["verdict"] in ("better", "worse")
            axes.text(x, y, text, ha="center", va="center", fontsize=6 if text.isalpha() else 7.5,
                      color="white" if abs(grid[y, x]) > 0.45 else INK, fontweight="bold" if bold else "normal")
    axes.imshow(np.ma.masked_invalid(grid), cmap="RdBu_r", vmin=-np.log(2), vmax=np.log(2), aspect="auto")
    axes.set_yticks(range(len(arms)), [f"{role}: {name}" for role, name in arms], fontsize=8)
    axes.set_xticks(range(len(points)), [f"{load:g}" for _, load in points], fontsize=8)
    axes.xaxis.tick_top()
    for y in range(1, len(arms)):
        if arms[y][0] != arms[y - 1][0]:
            axes.axhline(y - 0.5, color=INK, linewidth=1)
    for trace in dict.fromkeys(t for t, _ in points):
        mine = [x for x, (t, _) in enumerate(points) if t == trace]
        axes.text((mine[0] + mine[-1]) / 2, -1.45, trace.replace("mooncake-", "mooncake\n"), ha="center", va="bottom",
                  fontsize=8.5, color=INK)
        axes.axvline(mine[-1] + 0.5, color=INK, linewidth=1)
    axes.tick_params(length=0, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def against_load(summary: Row) -> Any:
    """A panel a trace: mean TCT over infinite memory's, against load; stock, presets, and the best of the rest."""
    traces = list(dict.fromkeys(r["trace"] for r in summary["load"]))
    found_names = dict.fromkeys((r["role"], r["name"]) for r in summary["load"])
    names = [a for role in CURVES for a in [a for a in found_names if a[0] == role][-2:]]
    figure, shown = panels(len(traces), 4.3 if len(traces) > 2 else 6.5, 3.0, 3)
    for axes, trace in zip(shown, traces, strict=True):
        found = [r for r in summary["load"] if r["trace"] == trace]
        for i, (role, name) in enumerate([("stock", "lru"), *names]):
            curve = sorted((r["load"], r["vs_infinite"]) for r in found if (r["role"], r["name"]) == (role, name))
            axes.plot(*zip(*curve, strict=True), marker="o", markersize=3.5, linewidth=1.6,
                      color=INK if role == "stock" else PALETTE[(i - 1) % len(PALETTE)],
                      label="lru (stock)" if role == "stock" else name if role != "picked" else f"best {name}")
        axes.axhline(1, color=FAINT, linewidth=1.2)
        axes.set_yscale("log")
        top = max(r["vs_infinite"] for r in found if (r["role"], r["name"]) in {("stock", "lru"), *names})
        if top > 0.8 * COLLAPSE:
            axes.axhline(COLLAPSE, color=PALETTE[1], linewidth=0.9, linestyle="--")
        log_ticks(axes.yaxis, 1.0, top)
        dress(axes, trace, "load, over what stock sustains", "mean TCT / infinite memory")
    handles, labels = shown[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, 2 * len(traces)), frameon=False, fontsize=8)
    return figure


def fairness(summary: Row) -> Any:
    """A panel a trace and load: every tenant's P95 slowdown, and the largest service gap with its bound, by ordering
    and constraints."""
    points = list(dict.fromkeys((r["trace"], r["load"]) for r in summary["fairness"]))
    arms = list(dict.fromkeys((r["ordering"], r["constraints"]) for r in summary["fairness"]))
    figure = new_figure(11.5, 0.9 + len(points) * (1.0 + 0.24 * len(arms)))
    grid = figure.subplots(len(points), 2, squeeze=False, sharey="row")
    for line, point in zip(grid, points, strict=True):
        rows = [r for r in summary["fairness"] if (r["trace"], r["load"]) == point]
        kinds = _kinds(sorted({t for r in rows for t in r["slowdown_p95"]}))
        for y, r in enumerate(rows):
            for tenant, slow in r["slowdown_p95"].items():
                line[0].scatter(slow, y, s=22, color=kinds[tenant][1], edgecolors="white", linewidths=0.4, zorder=3)
        gaps = [r["service_gap_tokens"] / 1000 for r in rows]
        line[1].barh(range(len(rows)), gaps, color=PALETTE[0], height=0.6, zorder=2)
        for y, r in enumerate(rows):
            if r["service_gap_bound_tokens"] is not None:
                line[1].plot([r["service_gap_bound_tokens"] / 1000] * 2, [y - 0.4, y + 0.4], color=PALETTE[1],
                             linewidth=2, zorder=3)
        line[0].set_xscale("log")
        every = [s for r in rows for s in r["slowdown_p95"].values()]
        log_ticks(line[0].xaxis, min(every), max(every))
        line[0].set_yticks(range(len(rows)), [f"{o}, {c}" for o, c in arms], fontsize=8)
        line[0].invert_yaxis()
        dress(line[0], f"{point[0]}, load {point[1]:g}: each tenant's P95 slowdown", "times its time alone (log)", "")
        dress(line[1], "largest service gap (line: its bound)", "thousand tokens of service", "")
        handles = dict(kinds.values())
        for label, colour in handles.items():
            line[0].scatter([], [], color=colour, label=label, s=22)
        line[0].legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=6)
    return figure


def _kinds(tenants: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Tenant -> (its kind, colour): `heavy-2` is of kind `heavy`."""
    kinds = list(dict.fromkeys(t.rsplit("-", 1)[0] for t in tenants))
    return {t: (k := t.rsplit("-", 1)[0], PALETTE[kinds.index(k) % len(PALETTE)]) for t in tenants}
