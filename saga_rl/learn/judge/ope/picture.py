"""The picture of an off-policy study: each estimator's values against what the targets earned when they played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.files import atomic

TITLES = {"wis": "weighted importance sampling", "fqe": "fitted Q evaluation", "dr": "doubly robust",
          "labels": "place among Belady's labels"}


def study_picture(result: dict[str, Any], path: Path) -> None:
    """PNG of the content of `ope.json`; without online evaluations the estimates alone. `UserError` without
    matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib", "is not installed", "install the extra saga-rl[train]") from None
    figure = Figure(figsize=(16, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    names = list(result["targets"])
    for axes, (estimator, title) in zip(figure.subplots(1, len(TITLES)), TITLES.items(), strict=True):
        for i, name in enumerate(names):
            row = result["targets"][name]
            e = row[estimator]
            if e is None:
                continue
            x = i if row["mean_return"] is None else row["mean_return"]
            span = None if e["low"] is None else [[e["value"] - e["low"]], [e["high"] - e["value"]]]
            axes.errorbar(x, e["value"], yerr=None if span is None else [[max(s[0], 0.0)] for s in span], marker="o",
                          capsize=3, label=name, color=f"C{i % 10}")
        rank = (result["rank_correlation"] or {}).get(estimator, {}).get("spearman", {}).get("value")
        axes.set(title=title if rank is None else f"{title}, Spearman {rank:.2f}", ylabel="estimate",
                 xlabel="target" if result["rank_correlation"] is None else "mean return when played, simulated")
    axes.legend(fontsize="small")
    with atomic(path) as tmp:
        figure.savefig(tmp, format="png", dpi=130)
