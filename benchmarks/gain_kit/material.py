"""The sessions that are replayed: real ones within stated limits, scaled by stated factors; a source is a tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gain_kit.settings import HELD_OUT, Setup, Source
from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.importers import import_trace
from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.aeg.scale import scale_lengths
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.aeg.validate import check
from saga_rl.errors import UserError
from saga_rl.learn.workloads import parts_of


@dataclass(frozen=True)
class Stock:
    """What one source offers: the sessions that may be drawn, scaled, and of how many."""

    source: Source
    trace: Trace
    imported: int


def stocks(setup: Setup, data: Path, cache: Path, parts: Sequence[str] = HELD_OUT) -> list[Stock]:
    """The sessions of those parts of every source that `setup` may draw; no group of sessions lies in two parts.
    Imports are kept in `cache` as traces, named by source."""
    return [eligible(source, _of(_imported(source, data, cache), parts), setup) for source in setup.sources]


def _of(trace: Trace, parts: Sequence[str]) -> Trace:
    """Those parts of a trace, in its order."""
    divided = parts_of(trace)
    kept = {sid for part in parts for sid in divided[part].sessions.session_id}
    return trace.select([i for i, sid in enumerate(trace.sessions.session_id) if sid in kept])


def _imported(source: Source, data: Path, cache: Path) -> Trace:
    kept = cache / f"{source.name}.parquet"
    if kept.is_file():
        return read_trace(kept)
    file = data / source.file
    if not file.is_file():
        raise UserError(file, "no such file", "name the folder of the real traces with --data")
    trace = import_trace(source.importer, file)
    write_trace(trace, kept)
    return trace


def eligible(source: Source, trace: Trace, setup: Setup) -> Stock:
    """Sessions with steps, gaps and contexts within `setup`'s limits, scaled by the source's factors."""
    st, off = trace.steps, trace.session_offsets[:-1]
    steps = np.diff(trace.session_offsets)
    longest = np.maximum.reduceat(st.prompt_tokens + st.output_tokens, off)
    gaps = np.add.reduceat(st.tool_s + st.think_s, off)
    # Scaling rounds up by at most a token for the prompt and one for the answer.
    fits = longest * source.length_factor <= setup.max_context - 2
    low, high = setup.steps
    rows = np.flatnonzero(fits & (steps >= low) & (steps <= high) & (gaps <= setup.longest_gaps_s))
    if len(rows) < setup.sessions // len(setup.sources):
        raise UserError(source.name, f"has {len(rows)} sessions within the limits, and a run draws "
                        f"{setup.sessions // len(setup.sources)}", "draw fewer, or widen the limits")
    kept = scale_lengths(trace.select(rows), source.length_factor, setup.max_context, source.time_factor)
    return Stock(source, kept, trace.n_sessions)


def draw(stocks: list[Stock], setup: Setup, repeat: int, whole: bool = False) -> Trace:
    """The sessions of one repeat in the order in which they start: the same number of each source, which is the tenant,
    drawn without replacement and mixed by the seed. whole: all that there are instead."""
    rng = np.random.default_rng([setup.seed, repeat])
    specs: list[SessionSpec] = []
    for stock in stocks:
        chosen = rng.permutation(stock.trace.n_sessions)[:None if whole else setup.sessions // len(stocks)]
        specs += [session(stock.trace, int(s), stock.source.name) for s in chosen]
    mixed = [replace(specs[i], arrival_s=float(k)) for k, i in enumerate(rng.permutation(len(specs)))]
    trace = build_trace(TraceMeta("gain", "imported:" + "+".join(s.source.name for s in stocks), setup.seed), mixed)
    check(trace)
    return trace


def session(trace: Trace, s: int, tenant: str) -> SessionSpec:
    """Session `s` of `trace` as its own specification, with names that say where it is from."""
    t, ses = trace.steps, trace.sessions
    steps = []
    for i in range(int(trace.session_offsets[s]), int(trace.session_offsets[s + 1])):
        shared = int(t.shared_prefix[i])
        steps.append(StepSpec(
            int(t.prompt_tokens[i]), int(t.output_tokens[i]),
            parents=t.parents[t.parent_offsets[i]:t.parent_offsets[i + 1]].tolist(), agent=int(t.agent[i]),
            tool=trace.tools[t.tool[i]] if t.tool[i] >= 0 else None, tool_s=float(t.tool_s[i]),
            think_s=float(t.think_s[i]), prefix_step=int(t.prefix_step[i]), prefix_tokens=int(t.prefix_tokens[i]),
            shared_prefix=f"{tenant}/{trace.shared_prefixes[shared]}" if shared >= 0 else None))
    return SessionSpec(f"{tenant}/{ses.session_id[s]}", 0.0, steps, group=f"{tenant}/{ses.group[s]}", tenant=tenant,
                       agent_type=trace.agent_types[ses.agent_type[s]])
