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
SALT = "saga-rl"


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


def svg(figure: Any) -> bytes:
    """The figure as SVG, text as paths (so that it looks the same everywhere), the same bytes from the same figure."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": SALT}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def panels(count: int, width: float, height: float, columns: int = 2) -> tuple[Any, list[Any]]:
    """(figure, `count` axes), each panel so many inches, at most `columns` beside each other."""
    columns = min(columns, count)
    lines = -(-count // columns)
    figure = new_figure(width * columns, height * lines)
    axes = [a for row in figure.subplots(lines, columns, squeeze=False) for a in row]
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def log_ticks(axis: Any, low: float, high: float) -> None:
    """At most 8 round ticks of a logarithmic axis over [low, high], 1 among them where it lies there."""
    ticks = [t for t in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500)
             if low / 1.3 <= t <= high * 1.3]
    while len(ticks) > 8:
        ticks = [t for i, t in enumerate(ticks) if t == 1 or i % 2 == ticks.index(1) % 2]
    axis.set_ticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_ticks([], minor=True)


def save(figure: Any, path: str | Path) -> None:
    """Write the figure, whole or not at all: as SVG where the name ends so, else as PNG."""
    with atomic(path) as tmp:
        tmp.write_bytes(svg(figure) if Path(path).suffix == ".svg" else png(figure))


def data_uri(image: bytes) -> str:
    """A PNG, or an SVG, as an address that a page can hold."""
    kind = "png" if image.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64," + base64.b64encode(image).decode()
