"""How soon inference follows a change: how many returns until it is within 10 % of what it would be without a past."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.inference import predict as f
from saga_rl.aeg.inference.score import right
from saga_rl.aeg.inference.stream import Stream
from saga_rl.policies.state.tables import WINDOW

TOLERANCE = 0.10
RUN = 100
"""Next-tool accuracy is read over so many steps."""


def adaptation(s: Stream, cut_s: float) -> dict[str, Any]:
    """What the change at `cut_s` does to the predictions over `s`. Null stands for "not within the stream".

    `p95`: by tool with two windows of returns after the change, `returns`: how many of them were seen when the
    predicted P95 was first within `TOLERANCE` of its level, the median prediction once the window holds nothing older.
    `next_tool`: `steps`: the first run of `RUN` steps (its end, counted from the change) whose accuracy is within
    `TOLERANCE` of the `level`: that of tables which saw nothing before the change, over the same steps' second half.
    """
    p, _ = f.predictions(s, hints=True)
    fresh = _fresh(s, cut_s)
    order = np.argsort(s.end_s, kind="stable")
    return {"cut_s": cut_s, "p95": {name: row for k, name in enumerate(["none", *s.tools])
                                    if (row := _p95(s, p, order, cut_s, k - 1))},
            "next_tool": _accuracy(s, p, fresh, order, cut_s)}


def _fresh(s: Stream, cut_s: float) -> NDArray[np.float64]:
    """Predictions of tables that know only chains which began after the change."""
    first = np.full(len(s.session), np.inf)
    np.minimum.at(first, s.chain, s.start_s)
    keep = np.flatnonzero(first[s.chain] >= cut_s)
    place = np.full(len(s.chain) + 1, -1)
    place[keep] = np.arange(len(keep))
    part = Stream(s.chain[keep], s.start_s[keep], s.end_s[keep], s.prompt[keep], s.output[keep], s.tool[keep],
                  place[s.after[keep]], s.session, s.tenant, s.agent_type, s.tools, s.types)
    out = np.full((len(s.chain), f.COLUMNS), np.nan)
    out[keep] = f.predictions(part, hints=True)[0]
    return out


def _p95(s: Stream, p: NDArray[np.float64], order: NDArray[np.int64], cut_s: float, tool: int) -> dict[str, Any] | None:
    mine = order[(s.tool[order] == tool) & (s.after[order] >= 0)]
    back = np.sort(s.end_s[mine] + s.gap_s[mine])
    before = int(np.searchsorted(back, cut_s, side="right"))
    if before < WINDOW or len(back) - before < 2 * WINDOW:
        return None
    late = mine[s.end_s[mine] >= cut_s]
    seen = np.searchsorted(back, s.end_s[late], side="right") - before
    stated = p[late, f.P95]
    if not (seen >= WINDOW).any():
        return None
    level = float(np.median(stated[seen >= WINDOW]))
    near = np.abs(stated / level - 1.0) <= TOLERANCE
    was = p[mine[s.end_s[mine] < cut_s][-1], f.P95]
    return {"before_s": float(was), "level_s": level, "returns": int(seen[near][0]) if near.any() else None,
            "returns_after": len(back) - before}


def _accuracy(s: Stream, p: NDArray[np.float64], fresh: NDArray[np.float64], order: NDArray[np.int64],
              cut_s: float) -> dict[str, Any] | None:
    follows = order[s.after[order] >= 0]
    old, new = follows[s.end_s[follows] < cut_s], follows[s.end_s[follows] >= cut_s]
    known = np.isfinite(fresh[new, f.CONFIDENCE])
    if len(old) < RUN or len(new) < 2 * RUN or not known[len(new) // 2:].any():
        return None
    late = new[len(new) // 2:][known[len(new) // 2:]]
    level = float(right(s, fresh)[late].mean())
    hit = right(s, p)
    runs = np.convolve(hit[new], np.ones(RUN) / RUN, "valid")
    near = runs >= (1.0 - TOLERANCE) * level
    return {"before": float(hit[old[-10 * RUN:]].mean()), "first_run": float(runs[0]), "level": level,
            "later": float(hit[late].mean()), "steps": int(np.argmax(near)) + RUN if near.any() else None,
            "steps_after": len(new)}
