"""The tables and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from fidelity_kit.compare import METRICS
from saga_rl.report.style import INK, PALETTE, dress, new_figure, save
from saga_rl.report.tables import or_dash, terminal

SHOWN = ("tct_mean_s", "tct_p95_s", "ttft_mean_s", "hit_share")


def comparison_table(levels: list[dict[str, Any]]) -> Table:
    """Every figure at every level: simulated, measured with its spread, error, and the target's verdict."""
    table = Table(title="simulated and measured; mean ± standard deviation of the mean, least .. greatest run")
    for head in ("level", "figure", "simulated", "vLLM", "its runs", "sim / vLLM", "target", "",
                 "simulated, times ± 1 %"):
        table.add_column(head, justify="left" if head in ("figure", "target", "") else "right", no_wrap=True)
    for level in levels:
        for k, m in enumerate(METRICS):
            c, near = level["comparison"][m.key], level["sensitivity"][m.key]
            v = c["measured"]
            sd = "" if v["mean_sd"] is None else f" ± {m.form.format(v['mean_sd'])}"
            target = "" if m.target is None else "equal" if m.target == 0 else f"within {m.target:.0%}"
            verdict = "" if c["met"] is None else "met" if c["met"] else "not met"
            table.add_row(f"{level['level']:g}x" if k == 0 else "", m.title, m.form.format(c["simulated"]),
                          m.form.format(v["mean"]) + sd, f"{m.form.format(v['min'])} .. {m.form.format(v['max'])}",
                          or_dash(c["ratio"], "{:.3f}"), target, verdict,
                          f"{m.form.format(near['mean'])} ({m.form.format(near['min'])} .. "
                          f"{m.form.format(near['max'])})", end_section=k == len(METRICS) - 1)
    return table


def fit_table(title: str, regions: dict[str, dict[str, Any]]) -> Table:
    """Errors of the profile by region."""
    return terminal(("region", "iterations", "of the time", "median error", "P95", "error of the total"), [
        [name, f"{e['points']:,}", f"{e['share']:.1%}", f"{e['median']:.1%}", f"{e['p95']:.1%}", f"{e['total']:+.1%}"]
        for name, e in regions.items()], title)


def picture(levels: list[dict[str, Any]], path: Path) -> None:
    """Four panels over the levels: every measured run, the simulated run, and the range of times ± 1 %. Writes SVG."""
    figure = new_figure(10.0, 3.0)
    panels = figure.subplots(1, len(SHOWN))
    metrics = {m.key: m for m in METRICS}
    for axes, key in zip(panels, SHOWN, strict=True):
        scale = 100.0 if key == "hit_share" else 1.0
        for x, level in enumerate(levels):
            runs = [scale * r["figures"][key] for r in level["runs"]]
            near, ours = level["sensitivity"][key], scale * level["comparison"][key]["simulated"]
            axes.plot([x - 0.12] * len(runs), runs, "o", color=PALETTE[0], markersize=5, alpha=0.8,
                      label="vLLM, one dot a run" if x == 0 else None)
            axes.plot([x + 0.12] * 2, [scale * near["min"], scale * near["max"]], color=PALETTE[1], linewidth=4,
                      alpha=0.35, solid_capstyle="butt", label="simulated, times ± 1 %" if x == 0 else None)
            axes.plot(x + 0.12, ours, "D", color=PALETTE[1], markersize=5, label="simulated" if x == 0 else None)
        title = metrics[key].title + (", %" if key == "hit_share" else "")
        dress(axes, title, "KV oversubscription", "")
        axes.set_xticks(range(len(levels)), [f"{level['level']:g}x" for level in levels])
        axes.set_xlim(-0.6, len(levels) - 0.4)
        axes.margins(y=0.1)
        axes.set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=7, loc="lower right", labelcolor=INK)
    save(figure, path)
