"""Build a Trace session by session: the one door that generators, importers and the recorder use."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saga_rl.aeg.trace import Sessions, Steps, Trace, TraceMeta

NAN = float("nan")
_COLUMNS = {"agent": "i", "tool": "i", "tool_s": "d", "think_s": "d", "prompt_tokens": "q", "output_tokens": "q",
            "prefix_step": "i", "prefix_tokens": "q", "shared_prefix": "i", "start_s": "d", "first_token_s": "d",
            "end_s": "d", "cached_tokens": "q"}
"""Column of a step -> type code of the array that collects it."""


@dataclass(slots=True)
class StepSpec:
    """One step as an importer sees it. Field meanings: `saga_rl.aeg.trace.Steps`."""

    prompt_tokens: int
    output_tokens: int
    parents: Sequence[int] = ()
    agent: int = 0
    tool: str | None = None
    tool_s: float = 0.0
    think_s: float = 0.0
    prefix_step: int = -1
    prefix_tokens: int = 0
    shared_prefix: str | None = None
    hashes: Sequence[int] = ()
    start_s: float = NAN
    first_token_s: float = NAN
    end_s: float = NAN
    cached_tokens: int = -1


@dataclass(slots=True)
class SessionSpec:
    """One session as an importer sees it."""

    session_id: str
    arrival_s: float
    steps: list[StepSpec]
    group: str = ""
    tenant: str = "default"
    agent_type: str = "agent"
    deadline_s: float = NAN


@dataclass
class Vocabulary:
    """Strings to dense codes in order of first use."""

    names: list[str] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)

    def code(self, name: str | None) -> int:
        if name is None:
            return -1
        if name not in self.codes:
            self.codes[name] = len(self.names)
            self.names.append(name)
        return self.codes[name]


class TraceBuilder:
    """Takes sessions one by one into columns, so that a trace of millions of calls needs no object for each."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.groups: list[str] = []
        self.lengths = array("q")
        self.times: dict[str, array[float]] = {k: array("d") for k in ("arrival_s", "deadline_s")}
        self.columns: dict[str, array[Any]] = {k: array(kind) for k, kind in _COLUMNS.items()}
        self.ragged: dict[str, array[int]] = {"parents": array("i"), "hashes": array("q")}
        self.sizes = {k: array("i") for k in self.ragged}
        self.words = {k: Vocabulary() for k in ("tenant", "agent_type", "tool", "shared_prefix")}
        self.codes = {k: array("i") for k in ("tenant", "agent_type")}

    def add(self, session: SessionSpec) -> None:
        """Append one session; order does not matter."""
        self.ids.append(session.session_id)
        self.groups.append(session.group or session.session_id)
        self.lengths.append(len(session.steps))
        for name in self.codes:
            self.codes[name].append(self.words[name].code(getattr(session, name)))
        for name, moments in self.times.items():
            moments.append(getattr(session, name))
        for step in session.steps:
            for name, values in self.columns.items():
                value = getattr(step, name)
                values.append(self.words[name].code(value) if name in self.words else value)
            for name, joined in self.ragged.items():
                items = getattr(step, name)
                self.sizes[name].append(len(items))
                if len(items):
                    joined.frombytes(np.asarray(items, joined.typecode).tobytes())

    def trace(self, meta: TraceMeta, arrivals: np.ndarray | None = None) -> Trace:
        """Columns of all sessions, sorted by arrival (ties keep their order). arrivals: (n,) seconds that the sessions
        get in that order instead of their own; recorded times and deadlines move with them. Does not validate: call
        `saga_rl.aeg.validate.check` for that."""
        own = np.array(self.times["arrival_s"], np.float64)
        order = np.argsort(own, kind="stable")
        lengths = np.array(self.lengths, np.int64)
        first = np.concatenate([[0], np.cumsum(lengths)])[order]
        lengths = lengths[order]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.repeat(first - offsets[:-1], lengths) + np.arange(offsets[-1])
        arrival = own[order]
        shift = np.zeros(len(order)) if arrivals is None else np.asarray(arrivals, np.float64) - arrival
        by_step = np.repeat(shift, lengths)
        steps: dict[str, np.ndarray] = {}
        names: dict[str, list[str]] = {}
        for name, values in self.columns.items():
            steps[name] = np.array(values, np.dtype(values.typecode))[rows]
            if name in self.words:
                steps[name], names[name] = _in_order_of_use(steps[name], self.words[name].names)
            if name in ("start_s", "first_token_s", "end_s") and arrivals is not None:
                steps[name] += by_step
        for name, values in self.ragged.items():
            sizes = np.array(self.sizes[name], np.int64)
            begin = np.concatenate([[0], np.cumsum(sizes)])[rows]
            sizes = sizes[rows]
            ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
            take = np.repeat(begin - ends[:-1], sizes) + np.arange(ends[-1])
            steps[name] = np.array(values, np.dtype(values.typecode))[take]
            steps[{"parents": "parent_offsets", "hashes": "hash_offsets"}[name]] = ends
        coded = {}
        for name, codes in self.codes.items():
            coded[name], names[name] = _in_order_of_use(np.array(codes, np.int32)[order], self.words[name].names)
        table = Sessions([self.ids[i] for i in order], [self.groups[i] for i in order], coded["tenant"],
                         coded["agent_type"], arrival if arrivals is None else np.asarray(arrivals, np.float64),
                         np.array(self.times["deadline_s"], np.float64)[order] + shift)
        session = np.repeat(np.arange(len(order), dtype=np.int32), lengths)
        return Trace(meta, names["tenant"], names["agent_type"], names["tool"], names["shared_prefix"], table,
                     Steps(session=session, **steps), offsets)


def build_trace(meta: TraceMeta, sessions: Sequence[SessionSpec]) -> Trace:
    """The trace of `sessions`, as `TraceBuilder` makes it."""
    builder = TraceBuilder()
    for session in sessions:
        builder.add(session)
    return builder.trace(meta)


def _in_order_of_use(codes: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Codes numbered by first use, and the names in that order."""
    used, at = np.unique(codes, return_index=True)
    ordered = [int(c) for c in used[np.argsort(at, kind="stable")] if c >= 0]
    new = np.full(len(names) + 1, -1, np.int32)  # the last one is read at code -1
    new[ordered] = np.arange(len(ordered))
    return new[codes], [names[c] for c in ordered]
