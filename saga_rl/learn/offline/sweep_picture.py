"""The picture of a sweep: the score of every trial over each value that it drew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.files import atomic


def sweep_picture(result: dict[str, Any], path: Path) -> None:
    """PNG of `sweep.json`'s content. Raises `UserError` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib", "is not installed", "install the extra saga-rl[train]") from None
    trials = [t for t in result["trials"] if t["score"] is not None]
    names = list(result["space"])
    figure = Figure(figsize=(2.6 * len(names), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        for t in trials:
            mine = t["trial"] == result["best"]
            axes.plot(t["values"][name], t["score"], "o", color="tab:orange" if mine else "tab:blue",
                      markersize=7 if mine else 4)
        drawn = result["space"][name]
        if isinstance(drawn, dict) and drawn["log"]:
            axes.set_xscale("log")
        axes.set_xlabel(name)
    figure.axes[0].set_ylabel(result["criterion"])
    figure.suptitle(f"{result['algo']}: {len(result['trials'])} trials, held-out decisions (orange: the best)")
    with atomic(path) as tmp:
        figure.savefig(tmp, format="png", dpi=130)
