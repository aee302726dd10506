"""The Trace: sessions of LLM steps as columns, the one thing that travels round the ring.

A *session* is one agent task. A *step* is one LLM call. Steps form a graph: `parents` of a step must finish before
it is sent, and the tool that a step calls runs after it. Every agent of a session (0 = main, 1.. = sub-agents) owns a
*chain*: a context that grows from step to step.

Times are seconds, lengths are tokens. Prefix structure is given by lengths and sharing, refined by hashes where known:

- `prefix_step` >= 0: the prompt begins with the first `prefix_tokens` tokens of that step's context (prompt + output);
- `prefix_step` == -1: the prompt begins with the first `prefix_tokens` tokens of the text named `shared_prefix`
  (a system prompt that sessions share); 0 tokens means nothing is shared;
- `hashes` (optional): ids of the prompt's blocks of `hash_block_tokens` tokens that follow the prefix. Equal sequences
  from the root mean equal content, also between sessions.

The gap before step c after its parent p: `tool_s[p] + think_s[p]` when both belong to the same agent, else 0 (a
spawned sub-agent starts at once, and its end releases the step that waits for it at once).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

FORMAT = "saga-rl-trace"
VERSION = 1


@dataclass(frozen=True)
class TraceMeta:
    """What a trace says of itself. `dropped` counts what an importer left out, by reason."""

    name: str
    source: str
    """`generated:...`, `imported:...` or `recorded:...`."""
    seed: int | None = None
    hash_block_tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sessions:
    """One row a session, in order of `arrival_s`."""

    session_id: list[str]
    group: list[str]
    """Sessions that share content or task; a split never separates a group."""
    tenant: I32
    agent_type: I32
    """Codes into `Trace.tenants` and `Trace.agent_types`."""
    arrival_s: F64
    deadline_s: F64
    """On the trace's clock, like `arrival_s`; NaN = none."""


@dataclass(frozen=True)
class Steps:
    """One row a step, session by session, parents before children."""

    session: I32
    agent: I32
    """0 = the session's main agent, 1.. = its sub-agents."""
    parent_offsets: I64
    """(n_steps + 1,): `parents[parent_offsets[i]:parent_offsets[i + 1]]` are step i's parents."""
    parents: I32
    """Step numbers within the session. None: the step is sent when the session arrives."""
    tool: I32
    """Code into `Trace.tools` of the tool that this step calls; -1 = none (final answer or a human's turn)."""
    tool_s: F64
    think_s: F64
    prompt_tokens: I64
    output_tokens: I64
    prefix_step: I32
    prefix_tokens: I64
    shared_prefix: I32
    """Code into `Trace.shared_prefixes`, read where `prefix_step` == -1; -1 = none."""
    hash_offsets: I64
    hashes: I64
    start_s: F64
    """Recorded: when the request was sent, on the trace's clock. NaN where unknown; so are the next two."""
    first_token_s: F64
    end_s: F64
    cached_tokens: I64
    """Recorded prompt tokens found in cache; -1 = unknown."""


@dataclass(frozen=True)
class Trace:
    """Columns plus vocabularies. `session_offsets[s]:session_offsets[s + 1]` are the steps of session s."""

    meta: TraceMeta
    tenants: list[str]
    agent_types: list[str]
    tools: list[str]
    shared_prefixes: list[str]
    sessions: Sessions
    steps: Steps
    session_offsets: I64

    @property
    def n_sessions(self) -> int:
        return len(self.sessions.session_id)

    @property
    def n_steps(self) -> int:
        return len(self.steps.session)

    def select(self, keep: NDArray[np.integer] | list[int], name: str | None = None) -> Trace:
        """The sub-trace of the sessions `keep` (row numbers), in the trace's order. Vocabularies stay whole, so that
        codes mean the same in every part of a split."""
        rows = np.unique(np.asarray(keep, dtype=np.int64))
        off = self.session_offsets
        idx = np.concatenate([np.arange(off[s], off[s + 1]) for s in rows]) if len(rows) else np.zeros(0, np.int64)
        s, t = self.sessions, self.steps
        sessions = Sessions(
            [s.session_id[i] for i in rows], [s.group[i] for i in rows],
            s.tenant[rows], s.agent_type[rows], s.arrival_s[rows], s.deadline_s[rows],
        )
        p_off, parents = _take_ragged(t.parent_offsets, t.parents, idx)
        h_off, hashes = _take_ragged(t.hash_offsets, t.hashes, idx)
        lengths = (off[1:] - off[:-1])[rows]
        new_session = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
        plain = {
            k: getattr(t, k)[idx]
            for k in ("agent", "tool", "tool_s", "think_s", "prompt_tokens", "output_tokens", "prefix_step",
                      "prefix_tokens", "shared_prefix", "start_s", "first_token_s", "end_s", "cached_tokens")
        }
        steps = Steps(session=new_session, parent_offsets=p_off, parents=parents, hash_offsets=h_off, hashes=hashes,
                      **plain)
        meta = replace(self.meta, name=name) if name else self.meta
        return replace(self, meta=meta, sessions=sessions, steps=steps,
                       session_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def _take_ragged(offsets: I64, values: NDArray, idx: NDArray) -> tuple[I64, NDArray]:
    lengths = (offsets[1:] - offsets[:-1])[idx]
    out = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    take = np.repeat(offsets[:-1][idx] - out[:-1], lengths) + np.arange(out[-1])
    return out, values[take]
