"""Sessions that ended, and how long they took: task completion time (TCT)."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

BUCKETS_S = (1, 2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 900, 1800, 3600, 7200, 14400)
"""Upper bounds of the histogram's buckets, s; one more holds what is longer."""


class Completion:
    """Counts ends of main agents (agent 0, lane 0). TCT: from the session's first request on this engine, whichever
    agent sent it, to the end of the main agent's last answer, s. An end that is only presumed counts apart; a session
    that returns after it is counted again when it ends again."""

    def __init__(self) -> None:
        self.known = self.presumed = 0
        self.total_s = 0.0
        self.buckets = [0] * (len(BUCKETS_S) + 1)

    def ended(self, seconds: float, presumed: bool) -> None:
        if presumed:
            self.presumed += 1
        else:
            self.known += 1
        self.total_s += seconds
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1

    def as_dict(self) -> dict[str, Any]:
        """`tct/le/S`: sessions that took at most S seconds, cumulative as Prometheus wants them."""
        out: dict[str, Any] = {"sessions/finished": self.known, "sessions/presumed ended": self.presumed,
                               "tct/count": self.known + self.presumed, "tct/sum_s": round(self.total_s, 6)}
        seen = 0
        for bound, n in zip((*BUCKETS_S, "inf"), self.buckets, strict=True):
            seen += n
            out[f"tct/le/{bound}"] = seen
        return out
