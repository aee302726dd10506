"""A trace as the stream of requests that a scheduler sees: who asks when, and when the answer is complete.

Open loop: recorded times stand; where a time was not recorded, a request is sent when its parents' gaps are over, and a
call takes `importers.building.graph.estimated_service_s`. A chain's call ends before its next request at the latest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.importers.building.graph import estimated_service_s
from saga_rl.aeg.trace import Trace
from saga_rl.errors import unknown_name

TYPES = ("session", "agent", "text")
"""What counts as an agent type: the session's, as in the simulator; main and sub-agents apart; the text that an agent's
first call begins with (a system prompt says what kind of agent it is without a hint)."""


@dataclass(frozen=True)
class Stream:
    """Arrays over steps (n,), and over chains (m,): one chain an agent of a session."""

    chain: NDArray[np.int64]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    prompt: NDArray[np.float64]
    output: NDArray[np.float64]
    tool: NDArray[np.int64]
    """Code into `tools`, -1 = none."""
    after: NDArray[np.int64]
    """The chain's next step, -1 = it was the last."""
    session: NDArray[np.int64]
    tenant: NDArray[np.int64]
    agent_type: NDArray[np.int64]
    """Of each chain; `agent_type` is a code into `types`."""
    tools: list[str]
    types: list[str]

    @property
    def gap_s(self) -> NDArray[np.float64]:
        """(n,) from the end of a step to its chain's next request; inf after the last."""
        return np.where(self.after >= 0, self.start_s[self.after] - self.end_s, np.inf)


def stream(trace: Trace, types: str = "session") -> Stream:
    """The stream of `trace`; `types`: one of `TYPES`, else `UserError`."""
    if types not in TYPES:
        raise unknown_name("kind of agent type", types, TYPES)
    t, s = trace.steps, trace.sessions
    key = t.session.astype(np.int64) << 32 | t.agent
    values, first, chain = np.unique(key, return_index=True, return_inverse=True)
    session = values >> 32
    start, end = _times(trace)
    after = _after(chain, start)
    has = after >= 0
    end[has] = np.minimum(end[has], start[after[has]])
    names = [trace.agent_types[k] for k in s.agent_type[session]]
    if types == "agent":
        names = [n if values[c] & 0xFFFFFFFF == 0 else f"{n}/sub-agent" for c, n in enumerate(names)]
    elif types == "text":
        texts = t.shared_prefix[first]
        names = [trace.shared_prefixes[texts[c]] if texts[c] >= 0 else n for c, n in enumerate(names)]
    known = list(dict.fromkeys(names))
    code = {n: k for k, n in enumerate(known)}
    return Stream(chain.astype(np.int64), start, end, t.prompt_tokens.astype(float), t.output_tokens.astype(float),
                  t.tool.astype(np.int64), after, session.astype(np.int64), s.tenant[session].astype(np.int64),
                  np.array([code[n] for n in names], np.int64), list(trace.tools), known)


def _after(chain: NDArray[np.int64], start: NDArray[np.float64]) -> NDArray[np.int64]:
    order = np.lexsort((np.arange(len(chain)), chain))  # steps of a chain are in order in a trace
    after = np.full(len(chain), -1, np.int64)
    same = chain[order[1:]] == chain[order[:-1]]
    after[order[:-1][same]] = order[1:][same]
    return after


def _times(trace: Trace) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    t, off = trace.steps, trace.session_offsets
    start, end = t.start_s.copy(), t.end_s.copy()
    service = np.array([estimated_service_s(int(o)) for o in t.output_tokens])
    known = np.isfinite(start)
    for s in np.unique(t.session[~known]):
        for i in range(off[s], off[s + 1]):
            if not known[i]:
                at = float(trace.sessions.arrival_s[s])
                for p in t.parents[t.parent_offsets[i]:t.parent_offsets[i + 1]] + off[s]:
                    at = max(at, end[p] + (t.tool_s[p] + t.think_s[p] if t.agent[p] == t.agent[i] else 0.0))
                start[i] = at
            if not np.isfinite(end[i]):
                end[i] = start[i] + service[i]
    return start, np.where(np.isfinite(end), np.maximum(end, start), start + service)


def joined(first: Stream, second: Stream) -> tuple[Stream, float]:
    """`second` after the end of `first`, and when it begins. Tools and agent types of equal name are one."""
    cut = float(first.end_s.max()) + 1.0
    shift = cut - float(second.start_s.min())
    tools, tool = _merged(first.tools, second.tools)
    types, agent_type = _merged(first.types, second.types)
    chains, steps = len(first.session), len(first.chain)
    both = Stream(
        np.concatenate([first.chain, second.chain + chains]), np.concatenate([first.start_s, second.start_s + shift]),
        np.concatenate([first.end_s, second.end_s + shift]), np.concatenate([first.prompt, second.prompt]),
        np.concatenate([first.output, second.output]),
        np.concatenate([first.tool, np.append(tool, -1)[second.tool]]),
        np.concatenate([first.after, np.where(second.after >= 0, second.after + steps, -1)]),
        np.concatenate([first.session, second.session + first.session.max() + 1]),
        np.concatenate([first.tenant, second.tenant]),
        np.concatenate([first.agent_type, agent_type[second.agent_type]]), tools, types)
    return both, cut


def _merged(first: Sequence[str], second: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    names = list(dict.fromkeys([*first, *second]))
    return names, np.array([names.index(n) for n in second], np.int64)


def slowed(s: Stream, factor: float) -> tuple[Stream, float]:
    """Every gap that begins in the second half of the stream (by time of a step's end) lasts `factor` times as long,
    and when that half begins. Chains do not wait for each other here."""
    cut = float(np.median(s.end_s))
    start, end = s.start_s.copy(), s.end_s.copy()
    for i in np.lexsort((s.start_s, s.chain)):  # a chain's steps in order
        then = s.after[i]
        if then >= 0:
            gap = (s.start_s[then] - s.end_s[i]) * (factor if end[i] >= cut else 1.0)
            start[then] = end[i] + gap
            end[then] = start[then] + s.end_s[then] - s.start_s[then]
    return replace(s, start_s=start, end_s=end), cut
