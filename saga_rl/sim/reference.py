"""A fixed reference string: what one worker served, in which order, recorded once so that eviction policies can be
compared on equal terms (open loop). On a fixed string misses are comparable and Bélády is a bound; in closed loop a
policy changes its own arrivals, and nothing is a bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.forest import Forest
from saga_rl.aeg.trace import Trace

READY, START, END = range(3)


@dataclass(frozen=True)
class Reference:
    """Events in order of time. Every step has READY once, then START and END, more than once if it was preempted."""

    trace: Trace
    forest: Forest
    kv_tokens: int
    """Pool it was recorded with: everything that was pinned together fits such a pool."""
    kind: NDArray[np.int8]
    step: NDArray[np.int32]
    time_s: NDArray[np.float64]
    tokens: NDArray[np.int64]
    """READY: prompt tokens. START: tokens that must be computed or cached before the next output token: the prompt,
    plus what was generated before a preemption. END: tokens whose KV it held."""
    final: NDArray[np.int8]
    """END: 1 = finished, 0 = preempted."""
