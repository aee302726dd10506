"""From runs to figures: every arm's, what was found over every other arm, and one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saga_rl.experiments.cell import Result
from saga_rl.experiments.intervals import paired_ratio, sound
from saga_rl.learn.own.cells import FIGURES
from saga_rl.learn.own.rule import FOUND, STOCK, Choice, choose, named
from saga_rl.policies.parameters import DEFAULT_PRESET

INFINITE, BARE, EAGER = "infinite memory", "stock, no tier", f"{DEFAULT_PRESET}, vLLM's tier"
MEASURES = {"tct_mean_s": "mean completion", "tct_p95_s": "P95 of completion",
            "ttft_mean_s": "mean time to first token",
            "ttft_p95_s": "P95 of time to first token", "throughput_sessions_per_min": "throughput"}
MORE_IS_BETTER = "throughput_sessions_per_min"
Runs = Mapping[str, Sequence[Result]]
Figures = dict[str, Any]


def figures(runs: Runs, default: str) -> Figures:
    """runs: by arm, a result an arrangement. JSON: `arms`, by arm the mean over arrangements of each of `FIGURES`, and
    `over`, by other arm and figure the paired ratio of this arm over it; `collapsed`: arrangements in which its mean is
    over five times that of infinite memory."""
    values = {arm: {key: np.array([r[key] for r in results], float) for key in FIGURES}
              for arm, results in runs.items()}
    arms: dict[str, Any] = {}
    for arm, mine in values.items():
        arms[arm] = {key: float(v.mean()) for key, v in mine.items()} | {
            "collapsed": int((~sound(mine["tct_mean_s"], values[INFINITE]["tct_mean_s"])).sum()),
            "over": {other: {key: paired_ratio(mine[key], theirs[key]) for key in FIGURES}
                     for other, theirs in values.items() if other != arm}}
    return {"arms": arms, "default": default, "arrangements": len(next(iter(runs.values())))}


def chosen(f: Figures) -> Choice:
    """What is served; see `rule`."""
    over, default = f["arms"][FOUND]["over"], f["default"]
    return choose(default, f["arms"][default]["over"][STOCK]["tct_mean_s"], {
        name: {"mean": over[name]["tct_mean_s"], "p95": over[name]["tct_p95_s"]} for name in (default, STOCK)})


def kept(searches: Sequence[Mapping[str, Any]]) -> str:
    """What the best search began from, if it found nothing better on validation sessions; else nothing."""
    best = min(searches, key=lambda s: s["validation_cost"])
    return str(best["from"]) if best["validation_cost"] == best["start_cost"] else ""


def sentence(f: Figures, choice: Choice, base: str, start: str = "") -> str:
    """What serving it will gain and where it loses. base: how stock with the same tier is named; start: see `kept`."""
    if choice.serves == STOCK:
        return ("Nothing is gained (simulated, on test sessions): what was found here is not shown better than "
                f"{base}, and {named(f['default'])} is slower, so this folder serves as vLLM does.")
    over = f["arms"][choice.serves]["over"][STOCK]
    mean = over["tct_mean_s"]
    what = f"{named(choice.serves)}, the safe default,"
    if choice.serves == FOUND:
        what = f"{start}, from which the search found nothing better," if start else "the policy that was learned here"
    lost = losses(over)
    return (f"Under {what} your agents' sessions take {change(mean, base)}, "
            + (f"but it loses in {' and '.join(lost)}" if lost else "and no measure is shown worse")
            + " (simulated, on test sessions).")


def change(ratio: Mapping[str, Any] | None, base: str) -> str:
    """`31% less time on average than under vLLM as it is (95 % interval 27% to 35%)`."""
    if ratio is None:
        return f"an unknown time against {base} (too few arrangements)"
    less = 1 - ratio["ratio"]
    low, high = sorted((abs(1 - ratio["high"]), abs(1 - ratio["low"])))
    if ratio["verdict"] == "no difference shown":
        return (f"about as long on average as under {base} (ratio {ratio['ratio']:.2f}, 95 % interval "
                f"{ratio['low']:.2f} to {ratio['high']:.2f}: no difference shown)")
    return (f"{abs(less):.0%} {'less' if less > 0 else 'MORE'} time on average than under {base} (95 % interval "
            f"{low:.0%} to {high:.0%})")


def losses(over: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """The measures that are shown worse than the other arm's."""
    out = []
    for key, name in MEASURES.items():
        ratio = over[key]
        if ratio is None:
            continue
        if key == MORE_IS_BETTER and ratio["high"] < 1:
            out.append(f"{name} ({1 - ratio['ratio']:.0%} less)")
        elif key != MORE_IS_BETTER and ratio["low"] > 1:
            out.append(f"{name} ({ratio['ratio'] - 1:.0%} more)")
    return out
