"""The picture of `saga-rl aeg`: next tools, calibration of gaps and of ends, and what a change does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saga_rl.files import atomic
from saga_rl.report.style import FAINT, INK, PALETTE, dress, new_figure

TIERS = ("cold", "warm")
NAMES = {"accuracy_at_theta": "inferred, sure", "accuracy": "inferred, all", "majority": "most frequent",
         "same_tool_again": "same again"}


def draw(result: dict[str, Any], path: str | Path) -> None:
    """Write the picture of `infer_cli.measure`'s result as SVG."""
    figure = new_figure(10.5, 7.6)
    panels = figure.subplots(2, 2)
    presumed = result["arms"]["presumed"]
    _tools(panels[0, 0], presumed)
    _diagonal(panels[0, 1], "Time to the next request: calibration", "predicted quantile", "gaps below it, share")
    _diagonal(panels[1, 0], "Was it the last step: calibration", "stated chance", "share that ended")
    for tier, colour in zip(TIERS, PALETTE, strict=False):
        gap = presumed[tier]["gap"]
        if gap:
            panels[0, 1].plot(gap["levels"], gap["share_below_level"], color=colour, marker="o", markersize=3,
                              label=f"{tier} ({gap['n']:,})")
    for (arm, tiers), colour in zip(result["arms"].items(), PALETTE, strict=False):
        end = tiers["all"]["end"]
        if end:
            rows = end["reliability"]
            panels[1, 0].scatter([r["stated"] for r in rows], [r["observed"] for r in rows], color=colour, alpha=0.8,
                                 s=[20 + 300 * r["n"] / end["n"] for r in rows], label=f"ends {arm}")
    for axes in (panels[0, 1], panels[1, 0]):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="upper left")
    _drift(panels[1, 1], result)
    figure.suptitle(f"AEG inference on {result['name']}, open loop", x=0.01, ha="left", color=INK)
    with atomic(path) as tmp:
        figure.savefig(tmp, format="svg", metadata={"Date": None})


def _tools(axes: Any, tiers: dict[str, Any]) -> None:
    for i, tier in enumerate(TIERS):
        row = tiers[tier]["next_tool"]
        if row is None:
            continue
        values = [row[k] or 0.0 for k in NAMES]
        at = [k + 0.4 * i - 0.2 for k in range(len(NAMES))]
        axes.bar(at, values, width=0.38, color=PALETTE[i], label=f"{tier} ({row['n']:,})")
        for x, v in zip(at, values, strict=True):
            axes.text(x, v, f"{100 * v:.0f}", ha="center", va="bottom", fontsize=8, color=INK)
    dress(axes, "Next tool predicted, % of steps that another one follows", "", "share")
    axes.set_xticks(range(len(NAMES)), list(NAMES.values()))
    axes.set_ylim(0, 1.08)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def _diagonal(axes: Any, title: str, x: str, y: str) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.5, zorder=0)
    dress(axes, title, x, y)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)


def _drift(axes: Any, result: dict[str, Any]) -> None:
    rows = [(name, r) for name, r in result["drift"]["slow"]["p95"].items() if r["returns"] is not None]
    rows = sorted(rows, key=lambda row: -row[1]["returns"])[-12:]
    axes.barh([n for n, _ in rows], [r["returns"] for _, r in rows], color=PALETTE[0], height=0.6)
    dress(axes, f"Gaps {result['slow']:g} x as long from the middle on",
          "returns until the P95 is within 10 %" if rows else "no tool with enough returns on both sides", "")
