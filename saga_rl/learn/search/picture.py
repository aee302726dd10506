"""The picture of a direct search."""

from __future__ import annotations

from pathlib import Path

from saga_rl.files import atomic


def search_picture(curve: list[dict[str, float]], path: Path) -> None:
    """Cost by generation: of the search's mean on validation sessions, and the median candidate's in training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for key, mark, label in (("validation", "o-", "the search's favourite, validation sessions"),
                             ("train", ".--", "median candidate, training sessions")):
        there = [p for p in curve if key in p]
        ax.plot([p["generation"] for p in there], [p[key] for p in there], mark, label=label)
    ax.axhline(0, color="k", lw=0.8)
    ax.set_xlabel("generation")
    ax.set_ylabel("cost: log of completion time\nover the reference rule")
    ax.legend(frameon=False)
    with atomic(path) as tmp:
        fig.savefig(tmp, format="png", dpi=120)
    plt.close(fig)
