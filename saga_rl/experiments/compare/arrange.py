"""A seed is one arrangement of a half's sessions; every policy is run on the same ones (common random numbers)."""

from __future__ import annotations

import numpy as np

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import arrange, resample


def arrangement(trace: Trace, seed: int, sessions: int, speed: float = 1.0) -> Trace:
    """`sessions` of the trace's, arriving `speed` times as fast as recorded.

    Without block ids: drawn at random, gaps between arrivals drawn with replacement. With block ids, consecutive
    sessions from a random one on, at their recorded gaps: what sessions share depends on who came shortly before.
    """
    rng = np.random.default_rng(seed)
    if trace.meta.hash_block_tokens:
        first = int(rng.integers(0, trace.n_sessions - sessions + 1))
        rows = np.arange(first, first + sessions)
        arrival = trace.sessions.arrival_s[rows] - trace.sessions.arrival_s[first]
        return arrange(trace, rows, arrival / speed)
    drawn = resample(trace, rng, sessions)
    return drawn if speed == 1.0 else arrange(drawn, np.arange(sessions), drawn.sessions.arrival_s / speed)
