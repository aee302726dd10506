"""How good predictions of `infer` were: next tool, gap, end, observation length; cold and warm agent types apart.

Reference points: for the next tool the one that the agent type calls most ("majority") and the last one again ("same");
for ends a constant forecast of the true share, known in hindsight; for observations the average over all tools.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.inference import predict as f
from saga_rl.aeg.inference.stream import Stream
from saga_rl.policies.state.tables import COLD_TASKS

LEVELS = np.round(np.arange(0.05, 1.0, 0.05), 2)
"""Of the reliability table of gaps."""
EDGES = np.array([0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
"""Of the reliability table of ends."""

Mask = NDArray[np.bool_]


def score(s: Stream, p: NDArray[np.float64], theta: float) -> dict[str, Any]:
    """JSON-ready figures by tier: "all" steps, those of "cold" agent types, of which fewer than 30 chains were known to
    have ended, and of "warm" ones. A figure without a step to count is null. theta: confidence from which a predicted
    next tool counts as an edge (SAGA section 2: 0.7)."""
    cold = p[:, f.DONE] < COLD_TASKS
    everything = np.ones(len(cold), bool)
    return {tier: {"steps": int(mask.sum()), "next_tool": next_tool(s, p, theta, mask), "gap": gap(s, p, mask),
                   "end": end(s, p, mask), "observation": observation(s, p, mask)}
            for tier, mask in (("all", everything), ("cold", cold), ("warm", ~cold))}


def right(s: Stream, p: NDArray[np.float64]) -> Mask:
    """(n,) whether the tool of the chain's next step was predicted; false where nothing was or none followed."""
    return (s.after >= 0) & (p[:, f.CONFIDENCE] > 0) & (p[:, f.NEXT] == s.tool[s.after])


def next_tool(s: Stream, p: NDArray[np.float64], theta: float, mask: Mask) -> dict[str, Any] | None:
    """Over steps that another one followed ("none" is a tool here); without a prediction counts as wrong."""
    mask = mask & (s.after >= 0)
    if not mask.any():
        return None
    actual, hit = s.tool[s.after], right(s, p)
    sure = mask & (p[:, f.CONFIDENCE] >= theta)
    goes_on = mask & (s.after[s.after] >= 0)
    return {
        "n": int(mask.sum()), "accuracy": _mean(hit[mask]), "theta": theta, "coverage": _mean(sure[mask]),
        "accuracy_at_theta": _mean(hit[sure]), "stated_at_theta": _mean(p[sure, f.CONFIDENCE]),
        "accuracy_before_a_last_step": _mean(hit[mask & ~goes_on]), "accuracy_elsewhere": _mean(hit[goes_on]),
        "majority": _mean(((p[:, f.SEEN] > 0) & (p[:, f.MAJORITY] == actual))[mask]),
        "same_tool_again": _mean((s.tool == actual)[mask]),
    }


def gap(s: Stream, p: NDArray[np.float64], mask: Mask) -> dict[str, Any] | None:
    """Share of gaps (tool and think time) at or below the predicted quantiles, and the non-randomised PIT (Czado,
    Gneiting and Held, "Predictive model assessment for count data", 2009; the tables' bins are the counts): at each
    level, the share of gaps that the forecasts put below it, which is the level if they are calibrated."""
    mask = mask & (s.after >= 0)
    if not mask.any():
        return None
    low, high, actual = p[mask, f.PIT_LOW], p[mask, f.PIT_HIGH], s.gap_s[mask]
    below = [float(np.clip((u - low) / np.maximum(high - low, 1e-12), 0.0, 1.0).mean()) for u in LEVELS]
    return {
        "n": int(mask.sum()),
        "share_within": {f"p{100 * q:.0f}": _mean(actual <= p[mask, f.P50 + k]) for k, q in enumerate(f.QUANTILES)},
        "levels": LEVELS.tolist(), "share_below_level": below,
        "largest_error": float(np.abs(np.array(below) - LEVELS).max()),
    }


def end(s: Stream, p: NDArray[np.float64], mask: Mask) -> dict[str, Any] | None:
    """Was it the chain's last step? Brier scores (mean squared error of the stated chance) and a reliability table."""
    if not mask.any():
        return None
    stated, was = p[mask, f.P_END], (s.after < 0)[mask].astype(float)
    share = float(was.mean())
    rows = []
    group = np.clip(np.searchsorted(EDGES, stated, side="right") - 1, 0, len(EDGES) - 2)
    for k in np.unique(group):
        here = group == k
        rows.append({"from": float(EDGES[k]), "to": float(EDGES[k + 1]), "n": int(here.sum()),
                     "stated": _mean(stated[here]), "observed": _mean(was[here])})
    return {"n": int(mask.sum()), "share": share, "brier": float(((stated - was) ** 2).mean()),
            "brier_of_share": share * (1.0 - share), "reliability": rows}


def observation(s: Stream, p: NDArray[np.float64], mask: Mask) -> dict[str, Any] | None:
    """Tokens that the next prompt holds beyond the context. `overlap_error`: mean absolute error of n / (n + n_obs),
    which P_reuse reads (SAGA section 2)."""
    mask = mask & (s.after >= 0)
    if not mask.any():
        return None
    context = (s.prompt + s.output)[mask]
    actual = np.maximum(s.prompt[s.after][mask] - context, 0.0)
    out: dict[str, Any] = {"n": int(mask.sum()), "actual_mean_tokens": _mean(actual)}
    for name, column in (("by_tool", f.OBS), ("all_tools", f.OBS_ALL)):
        guess = p[mask, column]
        out[name] = {
            "mean_tokens": _mean(guess), "mean_absolute_error_tokens": _mean(np.abs(guess - actual)),
            "median_relative_error": float(np.median(np.abs(guess - actual) / np.maximum(actual, 1.0))),
            "overlap_error": _mean(np.abs(context / (context + guess) - context / (context + actual))),
        }
    return out


def _mean(values: NDArray) -> float | None:
    return float(np.mean(values)) if len(values) else None
