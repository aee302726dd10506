"""What an engine did: every request's times, every iteration, every allocation, preemption and release of KV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

START, GROW, PREEMPT, END = range(4)
"""Kinds of events: a request leaves the queue, a running one goes on, one loses its blocks, one is done."""
EVENT_COLUMNS = ("iteration", "kind", "step", "have", "tokens", "known")
COMPOSITION = ("prefill", "pairs", "context", "kv_read", "decoding")
"""An iteration as the cost model sees it; meanings in `saga_rl/sim/cost/iteration.py`."""


@dataclass(frozen=True)
class EngineLog:
    """One run of one engine. Seconds from the start of the run; NaN or -1 for steps that it did not serve."""

    ready_s: NDArray[np.float64]
    """(n_steps,) when the step could be sent: its parents done and the gap over."""
    first_token_s: NDArray[np.float64]
    done_s: NDArray[np.float64]
    cached_tokens: NDArray[np.int64]
    """(n_steps,) prompt tokens found in the cache when the step was first scheduled."""
    preemptions: NDArray[np.int64]
    spans: NDArray[np.float64]
    """(iterations, 2) start and end. The spans cover all the time in which the engine had work."""
    events: NDArray[np.int64]
    """(events, 6) `EVENT_COLUMNS` in the order in which they happened. have: tokens with KV before it. known: tokens of
    prompt and answer at a START."""
    cpu_s: float
    """Processor seconds of the process during the run."""


def composition(events: Iterable[Sequence[int]], target: dict[int, int]) -> tuple[float, ...]:
    """`COMPOSITION` of the iteration that consists of `events`. target: tokens to prefill by step, kept up to date."""
    prefill, pairs, context, kv_read, decoding = 0, 0.0, 0, 0, 0
    for _, kind, step, have, tokens, known in events:
        if kind == START:
            target[step] = known
        if kind > GROW:
            continue
        if have < target[step]:
            prefill, pairs, context = prefill + tokens, pairs + tokens * (have + 0.5 * tokens), context + have
        else:
            kv_read, decoding = kv_read + have, decoding + 1
    return prefill, pairs, context, kv_read, decoding


def compositions(log: EngineLog) -> NDArray[np.float64]:
    """(iterations, 5) `COMPOSITION` of every iteration."""
    out = np.zeros((len(log.spans), len(COMPOSITION)))
    cuts = np.searchsorted(log.events[:, 0], np.arange(len(log.spans) + 1))
    events, target = log.events.tolist(), dict[int, int]()
    for k in range(len(log.spans)):
        out[k] = composition(events[cuts[k]:cuts[k + 1]], target)
    return out
