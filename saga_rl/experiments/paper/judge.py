"""What a figure says of the paper's: one stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from saga_rl.experiments.intervals import MIN_PAIRS, bootstrap

SLACK = 1.1
"""An interval is widened by a tenth on both sides: settings that the paper leaves out move figures by as much."""
AGREES, LOWER, HIGHER, OPEN = "agrees", "lower", "higher", "cannot be judged"
RULE = (f"Agrees: the paper's value lies within our 95 % interval, widened by {SLACK - 1:.0%} on both sides. Lower, "
        f"higher: it does not, and ours is that. Fewer than {MIN_PAIRS} sets of tasks give no interval: our mean "
        "stands in its place")


def judge(paper: float, values: Sequence[float | None], why: str = "") -> dict[str, Any]:
    """`value`, `low`, `high`, `verdict` and `why` of a row. values: one a seed; None: nothing to divide by. From fewer
    than `MIN_PAIRS` there is no interval, and the mean is judged in its place."""
    found = np.array([v for v in values if v is not None], float)
    none = {"value": None, "low": None, "high": None, "verdict": OPEN}
    if why:
        return none | {"why": why}
    if not len(found) or len(found) < len(values):
        return none | {"why": "nothing is computed again at this pressure"}
    value = float(found.mean())
    shown = bootstrap(found) if len(found) >= MIN_PAIRS else None
    low, high = shown or (value, value)
    if low / SLACK <= paper <= high * SLACK:
        verdict = AGREES
    else:
        verdict = LOWER if value < paper else HIGHER
    return {"value": value, "low": low if shown else None, "high": high if shown else None, "verdict": verdict,
            "why": ""}


def reached(paper: float, values: Sequence[float | None], less: bool) -> dict[str, Any]:
    """The same for a figure that the paper claims for itself: `met` if our mean is at least as good as the paper's
    value, else `not met`."""
    out = judge(paper, values)
    if out["value"] is None:
        return out
    return out | {"verdict": "met" if (out["value"] <= paper) == less or out["value"] == paper else "not met"}
