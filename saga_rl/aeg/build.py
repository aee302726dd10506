"""Build a Trace session by session: the one door that generators, importers and the recorder use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from saga_rl.aeg.trace import Sessions, Steps, Trace, TraceMeta

NAN = float("nan")


@dataclass
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


@dataclass
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


def build_trace(meta: TraceMeta, sessions: Sequence[SessionSpec]) -> Trace:
    """Columns from `sessions`, sorted by arrival (ties keep their order). Does not validate: call
    `saga_rl.aeg.validate.check` for that."""
    ordered = sorted(sessions, key=lambda s: s.arrival_s)
    tenants, types, tools, shared = Vocabulary(), Vocabulary(), Vocabulary(), Vocabulary()
    rows = [(i, st) for i, s in enumerate(ordered) for st in s.steps]
    p_len = [len(st.parents) for _, st in rows]
    h_len = [len(st.hashes) for _, st in rows]

    def ints(name: str, dtype: type) -> np.ndarray:
        return np.array([getattr(st, name) for _, st in rows], dtype=dtype)

    steps = Steps(
        session=np.array([i for i, _ in rows], np.int32),
        agent=ints("agent", np.int32),
        parent_offsets=np.concatenate([[0], np.cumsum(p_len)]).astype(np.int64),
        parents=np.array([p for _, st in rows for p in st.parents], np.int32),
        tool=np.array([tools.code(st.tool) for _, st in rows], np.int32),
        tool_s=ints("tool_s", np.float64),
        think_s=ints("think_s", np.float64),
        prompt_tokens=ints("prompt_tokens", np.int64),
        output_tokens=ints("output_tokens", np.int64),
        prefix_step=ints("prefix_step", np.int32),
        prefix_tokens=ints("prefix_tokens", np.int64),
        shared_prefix=np.array([shared.code(st.shared_prefix) for _, st in rows], np.int32),
        hash_offsets=np.concatenate([[0], np.cumsum(h_len)]).astype(np.int64),
        hashes=np.array([h for _, st in rows for h in st.hashes], np.int64),
        start_s=ints("start_s", np.float64),
        first_token_s=ints("first_token_s", np.float64),
        end_s=ints("end_s", np.float64),
        cached_tokens=ints("cached_tokens", np.int64),
    )
    table = Sessions(
        [s.session_id for s in ordered],
        [s.group or s.session_id for s in ordered],
        np.array([tenants.code(s.tenant) for s in ordered], np.int32),
        np.array([types.code(s.agent_type) for s in ordered], np.int32),
        np.array([s.arrival_s for s in ordered], np.float64),
        np.array([s.deadline_s for s in ordered], np.float64),
    )
    lengths = [len(s.steps) for s in ordered]
    return Trace(meta, tenants.names, types.names, tools.names, shared.names, table, steps,
                 np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
