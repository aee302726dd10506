"""Scale lengths and times by stated factors, so that long sessions fit a small model without truncation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.aeg.validate import check
from saga_rl.errors import UserError


def delayed(trace: Trace, request_s: float) -> Trace:
    """Every request comes `request_s` seconds later: to a simulator, tools take so much longer. For what a request
    costs outside of engines (HTTP, clients), for which cost profiles have no term."""
    return replace(trace, steps=replace(trace.steps, tool_s=trace.steps.tool_s + request_s))


def scale_lengths(trace: Trace, factor: float, max_context: int | None = None, time_factor: float = 1.0) -> Trace:
    """The trace with every length times `factor` and every time times `time_factor`; both are noted in its meta.

    A length n becomes ceil(n * factor), so nothing vanishes, and sums are rounded at their ends: a context (prompt +
    output) becomes ceil(context * factor), its output what is left of it. Rounding is monotone, so a prefix that was
    a whole context stays one, and one that was within the prompt stays within it. Blocks with ids have to scale to
    whole tokens.

    Raises `UserError` if a factor is not positive, if blocks with ids would not stay whole, or if a context still
    exceeds `max_context` (naming a factor that would fit).
    """
    for name, value in (("factor", factor), ("time_factor", time_factor)):
        if not (math.isfinite(value) and value > 0):
            raise UserError(name, f"is {value}", "give a positive number")
    t = trace.steps

    def lengths(n: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.ceil(n * factor - 1e-9).astype(np.int64)

    prompt = np.maximum(lengths(t.prompt_tokens), 1)
    context = np.maximum(lengths(t.prompt_tokens + t.output_tokens), prompt + 1)
    # A context may have been lengthened by a token above; a prefix that was the whole of it follows.
    named = np.where(t.prefix_step >= 0, trace.session_offsets[t.session] + t.prefix_step, 0)
    whole = (t.prefix_step >= 0) & (t.prefix_tokens == (t.prompt_tokens + t.output_tokens)[named])
    prefix = np.where(whole, np.minimum(context[named], prompt), lengths(t.prefix_tokens))
    if max_context is not None and len(context) and context.max() > max_context:
        i = int(np.argmax(context))
        s = int(t.session[i])
        fits = _factor_that_fits(trace, max_context)
        raise UserError(
            f"session {trace.sessions.session_id[s]!r}, step {i - trace.session_offsets[s]}",
            f"has {context[i]} tokens of context after scaling by {factor:g}, more than {max_context}",
            f"use a factor of {fits:.4g} or less" if fits > 0 else "leave the session out")
    block = trace.meta.hash_block_tokens
    scaled_block = round(block * factor)
    if len(t.hashes) and (scaled_block < 1 or abs(block * factor - scaled_block) > 1e-9):
        raise UserError("factor", f"is {factor:g}, and blocks of {block} tokens with ids would not stay whole",
                        f"use a multiple of 1/{block} (the ids carry what sessions share)")
    cached = np.where(t.cached_tokens < 0, -1, np.minimum(lengths(np.maximum(t.cached_tokens, 0)), prompt))
    sessions = replace(trace.sessions, arrival_s=trace.sessions.arrival_s * time_factor,
                       deadline_s=trace.sessions.deadline_s * time_factor)
    times = {k: getattr(t, k) * time_factor for k in ("tool_s", "think_s", "start_s", "first_token_s", "end_s")}
    steps = replace(t, prompt_tokens=prompt, output_tokens=context - prompt, prefix_tokens=prefix, cached_tokens=cached,
                    **times)
    before = trace.meta.notes
    notes = {**before, "length_factor": factor * before.get("length_factor", 1.0),
             "time_factor": time_factor * before.get("time_factor", 1.0)}
    meta = replace(trace.meta, notes=notes, hash_block_tokens=scaled_block if len(t.hashes) else 0)
    scaled = replace(trace, meta=meta, sessions=sessions, steps=steps)
    check(scaled)
    return scaled


def _factor_that_fits(trace: Trace, max_context: int) -> float:
    """A factor at which every context fits, rounded down to four digits; 0 if there is none."""
    if max_context < 2:
        return 0.0
    longest = int((trace.steps.prompt_tokens + trace.steps.output_tokens).max())
    exact = (max_context - 1) / longest
    digits = 3 - math.floor(math.log10(exact))
    return math.floor(exact * 10**digits) / 10**digits
