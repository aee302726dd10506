"""Pictures: completion times, intervals, tokens computed again against capacity, KV occupancy by session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.report.style import FAINT, INK, PALETTE, dress, new_figure

KINDS: dict[str, Any] = {"measured": "-", "simulated": (0, (4, 2))}
LINES = ("-", (0, (4, 2)), (0, (1, 1)))


def completion_times(arms: Mapping[str, Mapping[str, Sequence[float]]]) -> Any:
    """Share of sessions done within a time. arms: policy -> kind (`measured`, `simulated`) -> seconds a session."""
    from matplotlib.lines import Line2D

    figure = new_figure(7.6, 4.2)
    axes = figure.subplots()
    kinds = [k for k in KINDS if any(k in by_kind for by_kind in arms.values())]
    for colour, by_kind in zip(PALETTE, arms.values(), strict=False):
        for kind in kinds:
            seconds = by_kind.get(kind, ())
            if len(seconds):
                _done_within(axes, seconds, color=colour, linestyle=KINDS[kind],
                             linewidth=2.0 if kind == "measured" else 1.4)
    _dress_times(axes, "Task completion time (further left is better)")
    handles = [Line2D([], [], color=c, linewidth=2, label=n) for c, n in zip(PALETTE, arms, strict=False)]
    if len(kinds) > 1:
        handles += [Line2D([], [], color=INK, linestyle=KINDS[k], label=k) for k in kinds]
    axes.legend(handles=handles, frameon=False, loc="lower right", title=None if len(kinds) > 1 else kinds[0])
    return figure


def shares(seconds: Mapping[str, Sequence[float]], kind: str) -> Any:
    """Share of sessions done within a time, for any number of arms. seconds: of every session, by arm."""
    figure = new_figure(7.6, 4.4)
    axes = figure.subplots()
    for i, (name, values) in enumerate(seconds.items()):
        if len(values):
            _done_within(axes, values, label=name, color=PALETTE[i % len(PALETTE)], linewidth=1.6,
                         linestyle=LINES[i // len(PALETTE) % len(LINES)])
    _dress_times(axes, f"Task completion time ({kind}; further left is better)")
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    return figure


def _done_within(axes: Any, seconds: Sequence[float], **line: Any) -> None:
    x = np.sort(np.asarray(seconds, dtype=float))
    axes.step(np.concatenate([[0.0], x]), 100 * np.arange(len(x) + 1) / len(x), where="post", **line)


def _dress_times(axes: Any, title: str) -> None:
    dress(axes, title, "seconds from a session's start to its last answer", "sessions done, %")
    axes.set_ylim(0, 101)
    axes.set_xlim(left=0)


def forest(axes: Any, labels: Sequence[str], rows: Sequence[tuple[float, float | None, float | None]],
           colours: Sequence[str], size: float | None = None) -> None:
    """Ratios with their intervals, a row each, the first one on top, and a line at 1. rows: (value, low, high); without
    low there is no interval. size: of the labels, points."""
    for y, ((value, low, high), colour) in enumerate(zip(rows, colours, strict=True)):
        if low is not None:
            axes.plot([low, high], [y, y], color=colour, linewidth=2)
        axes.plot(value, y, "D", color=colour, markersize=6)
    axes.axvline(1.0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def computed_again(rows: Sequence[Mapping[str, Any]],
                   title: str = "Tokens computed again, open loop (simulated)") -> Any:
    """Tokens computed again against KV capacity. rows: `bound`'s JSON keys, one row a capacity.

    Bélády's line is the floor: no policy on the same reference string can be below it.
    """
    figure = new_figure(8.6, 4.2)
    axes = figure.subplots()
    rows = sorted(rows, key=lambda r: r["capacity_tokens"])
    x = [r["capacity_tokens"] / 1000 for r in rows]
    for i, name in enumerate(rows[0]["policies"]):
        y = [r["policies"][name]["recomputed_tokens"] / 1e6 for r in rows]
        learned = name.startswith("learned")
        axes.plot(x, y, color=PALETTE[i % len(PALETTE)], marker="o", markersize=4, linewidth=2.4 if learned else 1.6,
                  label="learned" if learned else name)
    floor = [r["belady_recomputed_tokens"] / 1e6 for r in rows]
    axes.plot(x, floor, color=INK, linewidth=1.6, marker="s", markersize=4, label="Bélády, the bound")
    axes.fill_between(x, 0, floor, color=FAINT, zorder=0)
    dress(axes, title, "KV capacity of one engine, thousand tokens", "tokens computed again, million")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def occupancy(runs: Mapping[str, Mapping[str, NDArray]], capacity_tokens: int, block_tokens: int,
              kind: str = "simulated") -> Any:
    """KV by session over time, stacked, one panel a policy. runs: policy -> `time_s` (n,), `blocks` (n, sessions).

    Colours repeat: what matters is whether bands survive (a session keeps its cache while its tool runs) or are cut
    and grown anew (it was evicted and prefilled again).
    """
    figure = new_figure(9.0, 1.0 + 1.9 * len(runs))
    panels = np.atleast_1d(figure.subplots(len(runs), 1, sharex=True, sharey=True))
    end = max((float(r["time_s"][-1]) for r in runs.values() if len(r["time_s"])), default=1.0)
    for i, (axes, (name, run)) in enumerate(zip(panels, runs.items(), strict=True)):
        tokens = run["blocks"].T * block_tokens / 1000
        shown = np.flatnonzero(tokens.any(axis=1))
        if len(shown):
            colours = [PALETTE[session % (len(PALETTE) - 1)] for session in shown]
            axes.stackplot(run["time_s"], tokens[shown], colors=colours, alpha=0.85, linewidth=0.3, edgecolor="white",
                           step="post")
        axes.axhline(capacity_tokens / 1000, color=INK, linewidth=1.0, linestyle="--")
        if i == 0:
            axes.text(end, capacity_tokens / 1000, "capacity ", ha="right", va="bottom", fontsize=8, color=INK)
        last = i == len(runs) - 1
        dress(axes, name, "seconds" if last else "", "thousand tokens")
        axes.grid(False)
        axes.set_xlim(0, end)
        axes.set_ylim(0, 1.18 * capacity_tokens / 1000)
    figure.suptitle(f"KV cache by session ({kind}; one colour band a session)", x=0.01, ha="left", fontsize=11,
                    color=INK)
    return figure
