"""The three pictures: completion times, tokens computed again against capacity, KV occupancy by session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.report.style import FAINT, INK, PALETTE, dress, new_figure

KINDS: dict[str, Any] = {"measured": "-", "simulated": (0, (4, 2))}


def completion_times(arms: Mapping[str, Mapping[str, Sequence[float]]]) -> Any:
    """Share of sessions done within a time. arms: policy -> kind (`measured`, `simulated`) -> seconds a session."""
    from matplotlib.lines import Line2D

    figure = new_figure(7.6, 4.2)
    axes = figure.subplots()
    kinds = [k for k in KINDS if any(k in by_kind for by_kind in arms.values())]
    for colour, by_kind in zip(PALETTE, arms.values(), strict=False):
        for kind in kinds:
            seconds = np.sort(np.asarray(by_kind.get(kind, ()), dtype=float))
            if len(seconds):
                share = 100 * np.arange(len(seconds) + 1) / len(seconds)
                axes.step(np.concatenate([[0.0], seconds]), share, where="post", color=colour, linestyle=KINDS[kind],
                          linewidth=2.0 if kind == "measured" else 1.4)
    dress(axes, "Task completion time (further left is better)", "seconds from a session's start to its last answer",
          "sessions done, %")
    axes.set_ylim(0, 101)
    axes.set_xlim(left=0)
    handles = [Line2D([], [], color=c, linewidth=2, label=n) for c, n in zip(PALETTE, arms, strict=False)]
    if len(kinds) > 1:
        handles += [Line2D([], [], color=INK, linestyle=KINDS[k], label=k) for k in kinds]
    axes.legend(handles=handles, frameon=False, loc="lower right", title=None if len(kinds) > 1 else kinds[0])
    return figure


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
