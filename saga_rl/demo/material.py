"""What the demo works on: sessions of the user's or generated ones, those that five minutes hold, in three parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saga_rl.aeg.generators import generate
from saga_rl.aeg.importers import import_trace
from saga_rl.aeg.io import read_trace
from saga_rl.aeg.split import split
from saga_rl.aeg.trace import Trace
from saga_rl.demo.settings import Settings
from saga_rl.errors import UserError

SHARES = {"train": 0.45, "validation": 0.25, "test": 0.3}


@dataclass(frozen=True)
class Material:
    """parts: sessions to search on, to choose by, and to serve; left_out: why and how many sessions are in none."""

    source: str
    imported: int
    parts: dict[str, Trace]
    left_out: dict[str, int]


def load(s: Settings) -> Trace:
    """The trace the demo starts from: generated, read, or imported. Raises `UserError`."""
    if s.trace is None:
        return generate(s.workload, s.seed, sessions=s.generated)
    if s.importer is not None:
        return import_trace(s.importer, s.trace)
    try:
        return read_trace(s.trace)
    except UserError as e:
        mend = f"{e.mend}; for a native file name its format, such as make demo TRACE=... FORMAT=weka"
        raise UserError(e.where, e.cause, mend) from None


def material(trace: Trace, s: Settings) -> Material:
    """The sessions within the demo's limits, split by group. Raises `UserError` if too few are left."""
    st, starts = trace.steps, trace.session_offsets[:-1]
    steps = np.diff(trace.session_offsets)
    waits = np.add.reduceat(st.tool_s + st.think_s, starts)
    longest = np.maximum.reduceat(st.prompt_tokens + st.output_tokens, starts)
    good, left_out = np.ones(trace.n_sessions, bool), {}
    for why, out in ((f"not of {s.steps[0]} to {s.steps[1]} steps", (steps < s.steps[0]) | (steps > s.steps[1])),
                     (f"tools and user take more than {s.longest_wait_s:g} s", waits > s.longest_wait_s),
                     (f"more context than {s.window:,} tokens", longest > s.window)):
        if n := int((good & out).sum()):
            left_out[why] = n
        good &= ~out
    kept = trace.select(np.flatnonzero(good))
    if kept.n_sessions < 3 * s.fewest or len(set(kept.sessions.group)) < 3:
        raise UserError(trace.meta.name, f"has {kept.n_sessions} sessions that the demo can serve in minutes ("
                        + "; ".join(f"{n} left out: {why}" for why, n in left_out.items()) + ")",
                        f"give a trace with {3 * s.fewest} such sessions, or run the demo without TRACE; "
                        "`saga-rl bench` takes any sessions")
    parts = split(kept, SHARES, s.seed)
    return Material(trace.meta.source, trace.n_sessions, parts, left_out)
