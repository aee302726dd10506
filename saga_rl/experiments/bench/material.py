"""The sessions that are played: those of one or more traces that are within the limits, drawn anew for each repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.io import read_trace
from saga_rl.aeg.quality import doubts, quality, sentence
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.aeg.validate import check
from saga_rl.env.episodes import arrange
from saga_rl.errors import UserError
from saga_rl.experiments.bench.settings import Settings


@dataclass(frozen=True)
class Material:
    """What may be drawn. sources: rows of `trace`'s sessions by the file that they are from; left_out: why and how many
    sessions may not be drawn."""

    trace: Trace
    sources: tuple[NDArray[np.int64], ...]
    left_out: dict[str, int]
    rests_on: dict[str, RestsOn] = field(default_factory=dict)
    """By name of the trace."""


class RestsOn(NamedTuple):
    """What a trace rests on, see `aeg.quality`."""

    shares: dict[str, dict[str, float | None]] | None
    sentence: str
    doubts: str


def load(s: Settings, window: int | None, pool: int | None) -> Material:
    """Read the traces and apply the limits. window, pool: tokens that a context may have, None = not known.

    Raises `UserError` for contexts that do not fit, unless `--drop-long` is given.
    """
    names = [Path(t).stem for t in s.traces]
    if len(set(names)) < len(names):
        raise UserError("TRACE", "two files have the same name", "rename one: sessions are told apart by it")
    left_out: dict[str, int] = {}
    given = [read_trace(t) for t in s.traces]
    rests_on = {name: RestsOn(quality(t), sentence(t), doubts(t)) for name, t in zip(names, given, strict=True)}
    kept = [_within(t, name, s, window, pool, left_out) for t, name in zip(given, names, strict=True)]
    trace = kept[0] if len(kept) == 1 else joined(kept, names)
    ends = np.cumsum([0, *(t.n_sessions for t in kept)])
    sources = tuple(np.arange(a, b) for a, b in pairwise(ends))
    a_source = _share(s.sessions, len(kept))
    for name, rows in zip(names, sources, strict=True):
        if len(rows) < max(a_source or 1, 1):
            raise UserError(name, f"has {len(rows)} sessions within the limits" + (
                f", and a run draws {a_source} of it" if a_source else ""), "draw fewer (--sessions), or widen the "
                "limits")
    return Material(trace, sources, left_out, rests_on)


def _share(sessions: int | None, traces: int) -> int | None:
    if sessions is None:
        return None
    if sessions % traces:
        raise UserError("--sessions", f"is {sessions}, which {traces} traces cannot share evenly",
                        f"give a multiple of {traces}")
    return sessions // traces


def _within(trace: Trace, name: str, s: Settings, window: int | None, pool: int | None, left_out: dict[str, int]
            ) -> Trace:
    st, starts = trace.steps, trace.session_offsets[:-1]
    steps = np.diff(trace.session_offsets)
    waits = np.add.reduceat(st.tool_s + st.think_s, starts)
    good = np.ones(trace.n_sessions, bool)

    def leave(why: str, out: NDArray[np.bool_]) -> None:
        nonlocal good
        if n := int((good & out).sum()):
            left_out[why] = left_out.get(why, 0) + n
        good = good & ~out

    if s.steps is not None:
        leave(f"not of {s.steps[0]} to {s.steps[1]} steps", (steps < s.steps[0]) | (steps > s.steps[1]))
    if s.longest_wait_s is not None:
        leave(f"tools take more than {s.longest_wait_s:g} s", waits > s.longest_wait_s)
    longest = longest_contexts(trace)
    for limit, what, flag in ((window, "the window", "--window"), (pool, "the KV pool of an engine", "--kv-tokens")):
        if limit is None:
            continue
        over = good & (longest > limit)
        if over.any() and not s.drop_long:
            most = -(-int(longest[over].max()) // 1024) * 1024
            too = f" and --kv-tokens {most}" if flag == "--window" and pool is not None and most > pool else ""
            raise UserError(name, f"has {over.sum()} of {good.sum()} sessions with more context than {what} of "
                            f"{limit:,} tokens (the longest has {longest[over].max():,})",
                            f"give {flag} {most}{too}, or leave them out with --drop-long")
        leave(f"longer than {what}", over)
    return trace.select(np.flatnonzero(good))


def longest_contexts(trace: Trace) -> NDArray[np.int64]:
    """(n_sessions,) tokens of each session's longest prompt and answer."""
    st = trace.steps
    return np.maximum.reduceat(st.prompt_tokens + st.output_tokens, trace.session_offsets[:-1])


def joined(traces: Sequence[Trace], names: Sequence[str]) -> Trace:
    """One trace of all sessions; the file that a session is from is its tenant. Raises `UserError`."""
    blocks = {t.meta.hash_block_tokens for t in traces if len(t.steps.hashes)}
    if len(blocks) > 1:
        raise UserError("TRACE", f"hold blocks of {' and '.join(map(str, sorted(blocks)))} tokens with ids",
                        "bench them one after the other")
    specs = [_session(t, i, name) for t, name in zip(traces, names, strict=True) for i in range(t.n_sessions)]
    specs = [replace(spec, arrival_s=float(k)) for k, spec in enumerate(specs)]
    meta = TraceMeta("+".join(names), "imported:" + "+".join(names), hash_block_tokens=max(blocks, default=0))
    trace = build_trace(meta, specs)
    check(trace)
    return trace


def _session(trace: Trace, s: int, tenant: str) -> SessionSpec:
    t, ses = trace.steps, trace.sessions
    steps = []
    for i in range(int(trace.session_offsets[s]), int(trace.session_offsets[s + 1])):
        shared = int(t.shared_prefix[i])
        steps.append(StepSpec(
            int(t.prompt_tokens[i]), int(t.output_tokens[i]),
            parents=t.parents[t.parent_offsets[i]:t.parent_offsets[i + 1]].tolist(), agent=int(t.agent[i]),
            tool=trace.tools[t.tool[i]] if t.tool[i] >= 0 else None, tool_s=float(t.tool_s[i]),
            think_s=float(t.think_s[i]), prefix_step=int(t.prefix_step[i]), prefix_tokens=int(t.prefix_tokens[i]),
            shared_prefix=f"{tenant}/{trace.shared_prefixes[shared]}" if shared >= 0 else None,
            hashes=t.hashes[t.hash_offsets[i]:t.hash_offsets[i + 1]].tolist()))
    return SessionSpec(f"{tenant}/{ses.session_id[s]}", 0.0, steps, group=f"{tenant}/{ses.group[s]}", tenant=tenant,
                       agent_type=trace.agent_types[ses.agent_type[s]])


def draw(material: Material, s: Settings, repeat: int) -> Trace:
    """The sessions of one repeat in the order in which they start: as many of each source, mixed by the seed."""
    rng = np.random.default_rng([s.seed, repeat])
    share = _share(s.sessions, len(material.sources))
    rows = np.concatenate([rng.permutation(rows)[:share] for rows in material.sources])
    rows = rng.permutation(rows)
    trace = arrange(material.trace, rows, np.arange(len(rows), dtype=np.float64))
    return apart(trace, rng) if s.agentx else trace


def apart(trace: Trace, rng: np.random.Generator) -> Trace:
    """The trace with a salt a user: no two sessions share a text, whatever the trace says."""
    st = trace.steps
    has = st.shared_prefix >= 0
    pairs, codes = np.unique(np.stack([st.session[has], st.shared_prefix[has]], axis=1), axis=0, return_inverse=True)
    shared = st.shared_prefix.copy()
    shared[has] = codes.reshape(-1)
    words = [f"{trace.shared_prefixes[text]}/{trace.sessions.session_id[user]}" for user, text in pairs]
    users = np.repeat(st.session, np.diff(st.hash_offsets))
    hashes = st.hashes ^ rng.integers(1, 1 << 62, trace.n_sessions)[users]
    return replace(trace, shared_prefixes=words, steps=replace(st, shared_prefix=shared, hashes=hashes))


def first_calls(trace: Trace, sessions: int, name: str) -> Trace:
    """The first call of each of the first `sessions` sessions, as sessions of one step: what a server warms up with."""
    st = trace.steps
    rows = trace.session_offsets[:-1][:sessions]
    return build_trace(TraceMeta(name, "bench"), [
        SessionSpec(f"{name}{k}", float(k), [StepSpec(int(st.prompt_tokens[i]), int(st.output_tokens[i]))])
        for k, i in enumerate(rows)])


def warm_trace(most_tokens: int) -> Trace:
    """Two short sessions of two steps: whatever a server does for the first time, it has done after them."""
    n = max(64, min(2048, most_tokens // 4))
    steps = [StepSpec(n, 4, tool="warm", tool_s=0.01),
             StepSpec(n + 64, 4, parents=(0,), prefix_step=0, prefix_tokens=n + 4)]
    return build_trace(TraceMeta("warm", "bench"), [SessionSpec(f"warm{k}", float(k), steps) for k in range(2)])
