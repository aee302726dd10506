"""Pictures of evaluations: distance to Belady by capacity, and figures with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saga_rl.report.pictures import forest
from saga_rl.report.style import INK, PALETTE, dress, new_figure, save

STATUS = {"met": "#2e7d32", "met on average": "#9e9d24", "not met": "#c62828"}


def evaluation_picture(result: dict[str, Any], path: Path) -> None:
    """PNG of `evaluation.json`'s content. Raises `UserError` without matplotlib."""
    points = sum(2 * len(run["arms"]) for run in result["closed_loop"])
    figure = new_figure(11, max(4.2, 0.18 * points))
    left, right = figure.subplots(1, 2)
    _open_loop(left, result["open_loop"])
    _closed_loop(right, result["closed_loop"])
    save(figure, path)


def _open_loop(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    for label in rows[0]["policies"]:
        points = [(r["capacity_tokens"] / 1000, r["policies"][label]["ratio"]) for r in rows if not r["low_pressure"]]
        points = sorted(p for p in points if p[1] is not None)
        axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=label)
    axes.axhline(1.0, color=INK, linewidth=0.8)
    dress(axes, "open loop, simulated (1 = the bound)", "KV capacity, thousand tokens",
          "tokens computed again / Belady's")
    axes.legend()


def _closed_loop(axes: Any, runs: Sequence[dict[str, Any]]) -> None:
    shown = [(f"{label}, {key.split('_')[0]}, {run['kv_tokens'] // 1000}k", ratio, PALETTE[6 * key.startswith("p95")])
             for run in runs for label, arm in run["arms"].items() for key in ("mean_vs_stock", "p95_vs_stock")
             if (ratio := arm.get(key))]
    forest(axes, [label for label, _, _ in shown], [(r["ratio"], r["low"], r["high"]) for _, r, _ in shown],
           [colour for _, _, colour in shown])
    dress(axes, "closed loop, simulated (below 1 = faster)", "completion time / stock's, 95 % interval", "")


def protocol_picture(result: dict[str, Any], path: Path) -> None:
    """PNG of `protocol.json`: every figure with its interval and its target, if it has one. Green reaches the target,
    red does not, grey is for comparison. Raises `UserError` without matplotlib."""
    shown = [f for found in result["rows"].values() for f in found if f["value"] is not None and f["value"] > 0
             and f["low"] > 0]
    figure = new_figure(11, max(3.0, 0.24 * len(shown) + 1.2))
    axes = figure.subplots()
    forest(axes, [f"{f['row']}: {f['what']}" for f in shown], [(f["value"], f["low"], f["high"]) for f in shown],
           [STATUS.get(f["status"], "gray") for f in shown], size=7)
    for y, f in enumerate(shown):
        if f["target"] is not None:
            axes.plot(f["target"], y, marker="|", markersize=14, color=INK)
    axes.set_xscale("log")
    dress(axes, "test sessions, simulated", "value, 95 % interval; bar = target", "")
    save(figure, path)
