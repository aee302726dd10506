"""Pictures of a measurement. `kind` stands in every title: "measured, emulated devices" or "measured"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from saga_rl.experiments.bench.arms import INFINITE, STOCK
from saga_rl.report.pictures import forest, occupancy
from saga_rl.report.style import INK, PALETTE, dress, new_figure


def of_stock(arms: Mapping[str, Mapping[str, Any]], kind: str) -> Any:
    """Ratios of mean completion time to stock's with their intervals; a dot is one repeat."""
    shown = [(name, a) for name, a in arms.items() if name != STOCK and a["of_stock"]["mean"] is not None]
    base = arms.get(STOCK, {}).get("each", {})
    figure = new_figure(7.6, 1.2 + 0.42 * len(shown))
    axes = figure.subplots()
    colours = [PALETTE[6] if name == INFINITE else PALETTE[0] for name, _ in shown]
    ratios = [a["of_stock"] for _, a in shown]
    forest(axes, [name for name, _ in shown], [(r["mean"], r["low"], r["high"]) for r in ratios], colours)
    for y, ((_, a), colour) in enumerate(zip(shown, colours, strict=True)):
        each = [a["each"][k] / base[k] for k in a["each"] if base.get(k)]
        axes.plot(each, [y + 0.22] * len(each), "o", color=colour, markersize=3, alpha=0.6)
    dress(axes, f"Mean completion time, of stock's ({kind}; further left is better)", "", "")
    return figure


def bars(arms: Mapping[str, Mapping[str, Any]], kind: str) -> Any:
    """Time to the first token (mean, and a mark at P95) and tokens computed again, by arm."""
    names = list(arms)
    figure = new_figure(9.0, 1.2 + 0.34 * len(names))
    panels = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(names))
    for axes, key, scale, text, unit in ((panels[0], "ttft_mean_s", 1.0, "Time to first token", "seconds; mark: P95"),
                                         (panels[1], "recomputed_tokens", 1e-6, "Computed again",
                                          "million prompt tokens a run")):
        axes.barh(y, [(arms[n].get(key) or 0.0) * scale for n in names], color=PALETTE[0], height=0.6)
        dress(axes, f"{text} ({kind})", unit, "")
    panels[0].plot([arms[n].get("ttft_p95_s") or 0.0 for n in names], y, "|", color=INK, markersize=10)
    panels[0].set_yticks(y, names)
    panels[0].invert_yaxis()
    return figure


def kv(held: Mapping[str, Mapping[str, Any]], capacity: int, kind: str) -> Any:
    """KV by session over time. held: `play.held` by arm; capacity: tokens of all pools and tiers."""
    runs = {name: {"time_s": np.asarray(h["time_s"], float), "blocks": np.asarray(h["tokens"], float)}
            for name, h in held.items() if h["time_s"]}
    return occupancy(runs, capacity, 1, kind)
