"""What the demo works on: a trace, its split, and the held-out sessions brought down to the tiny model's size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from saga_rl.aeg.generators import generate
from saga_rl.aeg.importers import import_trace
from saga_rl.aeg.io import read_trace
from saga_rl.aeg.scale import scale_lengths
from saga_rl.aeg.split import split
from saga_rl.aeg.trace import Trace
from saga_rl.demo.settings import Settings
from saga_rl.errors import UserError


def load(s: Settings) -> Trace:
    """The trace the demo starts from: generated, read, or imported. Raises `UserError`."""
    if s.trace is None:
        return generate(s.workload, s.seed, sessions=s.sessions)
    if s.importer is not None:
        return import_trace(s.importer, s.trace)
    try:
        return read_trace(s.trace)
    except UserError as e:
        mend = f"{e.mend}; for a native file name its format, such as make demo TRACE=... FORMAT=weka"
        raise UserError(e.where, e.cause, mend) from None


@dataclass(frozen=True)
class Served:
    """The sessions that the engines serve, and by what they were scaled."""

    trace: Trace
    length_factor: float
    time_factor: float
    left_out: int
    """Held-out sessions that were not taken: too long for the tiny model, or beyond what ten minutes hold."""


def served_sessions(held_out: Trace, s: Settings) -> Served:
    """Held-out sessions, chosen by the seed, with lengths and times scaled by factors that are stated."""
    context = held_out.steps.prompt_tokens + held_out.steps.output_tokens
    longest = np.maximum.reduceat(context, held_out.session_offsets[:-1])
    steps = np.diff(held_out.session_offsets)
    block = held_out.meta.hash_block_tokens
    # Blocks with ids must stay whole; without them any factor will do.
    finest = 1.0 / block if block else 0.0
    fits = np.flatnonzero((longest * finest <= s.max_context - 2) & (steps <= s.served_steps // 4))
    chosen: list[int] = []
    for i in np.random.default_rng(s.seed).permutation(fits):
        if len(chosen) < s.served_sessions and int(steps[chosen].sum() + steps[i]) <= s.served_steps:
            chosen.append(int(i))
    if not chosen:
        raise UserError(held_out.meta.name, "has no held-out session that a small model could serve",
                        "use a trace with shorter sessions")
    part = held_out.select(chosen, name="served")
    factor = min(1.0, (s.max_context - 2) / int(longest[chosen].max()))
    factor = int(factor * block) / block if block else int(1e4 * factor) / 1e4
    gaps = part.steps.tool_s + part.steps.think_s
    mean_gap = float(gaps[gaps > 0].mean()) if (gaps > 0).any() else 0.0
    time_factor = min(1.0, s.mean_gap_s / mean_gap) if mean_gap else 1.0
    time_factor = float(f"{time_factor:.2g}")
    return Served(scale_lengths(part, factor, s.max_context, time_factor), factor, time_factor,
                  held_out.n_sessions - len(chosen))


def trained_sessions(train: Trace, served: Served, s: Settings) -> dict[str, Trace]:
    """Training sessions brought down by the same factors, those that the model holds: to search on and to choose by,
    no group in both. Of fewer than four groups both are all of them."""
    context = train.steps.prompt_tokens + train.steps.output_tokens
    longest = np.maximum.reduceat(context, train.session_offsets[:-1])
    fits = np.flatnonzero(longest * served.length_factor <= s.max_context - 2)
    if not len(fits):
        raise UserError(train.meta.name, "has no training session that a small model could serve",
                        "use a trace with shorter sessions")
    part = scale_lengths(train.select(fits.tolist(), name="trained"), served.length_factor, s.max_context,
                         served.time_factor)
    if len(set(part.sessions.group)) < 4:
        return {"train": part, "validation": part}
    return split(part, {"train": 0.7, "validation": 0.3}, s.seed)


def pool_tokens(served: Trace, s: Settings) -> int:
    """KV tokens of one engine: what its share of the live sessions holds on average (mean context of a step), over
    `s.pressure`; at least the model's length, which vLLM asks for. Whole blocks."""
    context = float((served.steps.prompt_tokens + served.steps.output_tokens).mean())
    want = max(context * s.concurrency / s.engines / s.pressure, s.model_len)
    return math.ceil(want / s.block_tokens) * s.block_tokens
