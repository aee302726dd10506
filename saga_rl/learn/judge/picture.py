"""The picture of an evaluation: distance to Belady by capacity, and paired completion times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.files import atomic


def evaluation_picture(result: dict[str, Any], path: Path) -> None:
    """PNG of `evaluation.json`'s content. Raises `UserError` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib", "is not installed", "install the extra saga-rl[train]") from None
    points = sum(2 * len(run["arms"]) for run in result["closed_loop"])
    figure = Figure(figsize=(11, max(4.2, 0.18 * points)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _open_loop(left, result["open_loop"])
    _closed_loop(right, result["closed_loop"])
    with atomic(path) as tmp:
        figure.savefig(tmp, format="png", dpi=130)


def _open_loop(axes: Any, rows: list[dict[str, Any]]) -> None:
    for label in rows[0]["policies"]:
        points = [(r["capacity_tokens"] / 1000, r["policies"][label]["ratio"]) for r in rows if not r["low_pressure"]]
        points = sorted(p for p in points if p[1] is not None)
        axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=label)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="KV capacity, thousand tokens", ylabel="tokens computed again / Belady's",
             title="open loop, simulated (1 = the bound)")
    axes.legend()


def _closed_loop(axes: Any, runs: list[dict[str, Any]]) -> None:
    labels: list[str] = []
    for run in runs:
        for label, arm in run["arms"].items():
            for key, marker in (("mean_vs_stock", "o"), ("p95_vs_stock", "s")):
                ratio = arm.get(key)
                if ratio is None:
                    continue
                y = len(labels)
                labels.append(f"{label}, {key.split('_')[0]}, {run['kv_tokens'] // 1000}k")
                axes.errorbar(ratio["ratio"], y, marker=marker, capsize=3,
                              color="tab:blue" if marker == "o" else "gray",
                              xerr=[[ratio["ratio"] - ratio["low"]], [ratio["high"] - ratio["ratio"]]])
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set(xlabel="completion time / stock's, 95 % interval", title="closed loop, simulated (below 1 = faster)")


def protocol_picture(result: dict[str, Any], path: Path) -> None:
    """PNG of `protocol.json`: every figure with its interval and its target, if it has one. Green reaches the target,
    red does not, grey is for comparison. Raises `UserError` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib", "is not installed", "install the extra saga-rl[train]") from None
    shown = [f for found in result["rows"].values() for f in found if f["value"] is not None and f["value"] > 0
             and f["low"] > 0]
    figure = Figure(figsize=(11, max(3.0, 0.24 * len(shown) + 1.2)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for y, f in enumerate(shown):
        colour = {"met": "#2e7d32", "met on average": "#9e9d24", "not met": "#c62828"}.get(f["status"], "gray")
        axes.errorbar(f["value"], y, xerr=[[f["value"] - f["low"]], [f["high"] - f["value"]]], marker="o", capsize=3,
                      color=colour)
        if f["target"] is not None:
            axes.plot(f["target"], y, marker="|", markersize=14, color="black")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(shown)), [f"{f['row']}: {f['what']}" for f in shown], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="value, 95 % interval; bar = target", title="test sessions, simulated")
    with atomic(path) as tmp:
        figure.savefig(tmp, format="png", dpi=120)
