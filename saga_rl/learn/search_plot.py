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
    at = [point["generation"] for point in curve]
    ax.plot(at, [p["validation"] for p in curve], marker="o", label="best so far of the search, validation sessions")
    ax.plot(at, [p["train"] for p in curve], marker=".", ls="--", label="median candidate, training sessions")
    ax.axhline(0, color="k", lw=0.8)
    ax.set_xlabel("generation")
    ax.set_ylabel("cost: log of completion time\nover the reference rule")
    ax.legend(frameon=False)
    with atomic(path) as tmp:
        fig.savefig(tmp, format="png", dpi=120)
    plt.close(fig)
