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
