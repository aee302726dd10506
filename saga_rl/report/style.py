"""One look for all pictures: colours that colour-blind readers can tell apart, direct labels, no clutter."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.files import atomic

# Okabe and Ito's palette, blue and vermilion first: they differ most also in grey.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
INK, FAINT = "#222222", "#DDDDDD"
DPI = 130


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure on the Agg canvas. Raises `UserError` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib", "is not installed", "install the extra saga-rl[train]") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Any, title: str, x: str, y: str) -> None:
    """Title at the left, labelled axes, a faint grid and no box."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK)


def png(figure: Any) -> bytes:
    """The figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI)
    return out.getvalue()


def save(figure: Any, path: str | Path) -> None:
    """Write the figure as PNG, whole or not at all."""
    with atomic(path) as tmp:
        tmp.write_bytes(png(figure))


def data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()
