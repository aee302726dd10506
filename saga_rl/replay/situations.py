"""What a calibration times, as rows of the cost model: what the engine computed while the clock ran.

Counts are of one engine. Prompts are computed in chunks of `chunk` tokens, shared by the prompts that fit; the first
token of an answer comes out of the last chunk, each later one of an iteration in which all sequences decode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

TERMS = ("request", "base", "prefill", "kv", "seq", "attention", "context")
LARGE = 4
"""Decode batches above it are "large" in the table of errors."""


@dataclass(frozen=True)
class Sample:
    """One timed situation: its row of `TERMS`, the seconds that it took, and what it is a sample of."""

    label: str
    row: tuple[float, ...]
    seconds: float
    region: str = "all"
    seen: dict[str, float] = field(default_factory=dict)
    """Greatest values of `saga_rl.sim.cost.profile.RANGES` in the situation."""


def _chunks(prompt: int, cached: int, chunk: int) -> tuple[float, float, float]:
    """Iterations, attention pairs and contexts read of a prompt of which `cached` tokens are in the cache."""
    starts = np.arange(cached, prompt, chunk)
    sizes = np.minimum(chunk, prompt - starts)
    return float(len(starts)), float((sizes * (starts + sizes / 2)).sum()), float(starts.sum())


def request_row(context: int, answer: int, together: int, chunk: int, cached: int = 0) -> tuple[float, ...]:
    """Row of `together` prompts of `context` tokens sent to one engine at once, each answered by `answer` tokens."""
    _, pairs, contexts = _chunks(context, cached, chunk)
    decoded = answer - 1
    return (1.0, math.ceil(together * (context - cached) / chunk) + decoded, together * (context - cached),
            together * decoded * (context + answer / 2), together * decoded, together * pairs, together * contexts)


def mixed_row(context: int, answer: int, together: int, chunk: int, late: int) -> tuple[float, ...]:
    """The same, with a prompt of `late` tokens that arrives while they decode and is done before they are: its chunks
    ride in iterations that run anyway, in the room that the decodes leave."""
    _, pairs, contexts = _chunks(late, 0, max(chunk - together, 1))
    request, iterations, prefill, kv, seq, attention, read = request_row(context, answer, together, chunk)
    return request, iterations, prefill + late, kv, seq, attention + pairs, read + contexts


def request_sample(seconds: float, context: int, answer: int, together: int, chunk: int, cached: int = 0) -> Sample:
    """`request_row` with its time, region and ranges."""
    label = f"{together} x {context} tokens" + (f" of which {cached} cached" if cached else "")
    region = "prefill with context" if cached else "prefill"
    seen = {"prefill_tokens": float(min(chunk, together * (context - cached))),
            "context_tokens": float(cached + (context - cached - 1) // chunk * chunk)}
    if answer > 1:
        region = f"decode, {'large' if together > LARGE else 'small'} batch"
        seen |= {"decode_seqs": float(together), "decode_kv_tokens": float(together * (context + answer))}
    return Sample(f"{label}, {answer} answered", request_row(context, answer, together, chunk, cached), seconds, region,
                  seen)


def mixed_sample(seconds: float, context: int, answer: int, together: int, chunk: int, late: int) -> Sample:
    """`mixed_row` with its time, region and ranges."""
    whole = request_sample(seconds, context, answer, together, chunk)
    room = max(chunk - together, 1)
    seen = whole.seen | {"prefill_tokens": max(whole.seen["prefill_tokens"], float(min(room, late))),
                         "context_tokens": max(whole.seen["context_tokens"], float((late - 1) // room * room))}
    return Sample(f"{together} x {context} tokens, {late} joining, {answer} answered",
                  mixed_row(context, answer, together, chunk, late), seconds, "mixed", seen)
