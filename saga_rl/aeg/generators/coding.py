"""Coding agents that start sub-agents: long sessions, joins, chains that die in living sessions, silence of any length.

Made up, in the shape of two recorded collections of Claude Code sessions (orders of magnitude of their training
sessions; nothing is fitted). Two kinds, a tenant each:

- *attended*: a human reads and answers after a tenth of the calls (log-normal, median 40 s, sigma 1.8, within 3 s to
  1 h), tools take seconds (log-normal, median 6 s); a fifth of the sessions start sub-agents.
- *unattended*: nobody is waited for, tools take milliseconds to seconds (median 50 ms); half of the sessions start
  sub-agents, again and again.

A call of the tool `agent` starts one to four sub-agents at once, each a chain of its own behind a system prompt that
all sub-agents share; the calling agent goes on when they have ended, but for a tenth of them, which run in the
background.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.generators.agents import SUMMARY_TOKENS, AgentType, Params, lognormal, step_counts
from saga_rl.aeg.generators.latency import TOOLS
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.errors import UserError

SPAWN = "agent"
HUMAN_MEDIAN_S, HUMAN_SIGMA, HUMAN_RANGE_S = 40.0, 1.8, (3.0, 3600.0)
BACKGROUND = 0.1
MOST_AT_ONCE = 4
LONGEST_TASK = 20_000
TASK = lognormal(5000, 0.8, 500, LONGEST_TASK)
"""Tokens of what a session begins with; a third of it is what a sub-agent is given."""
SUB_STEPS = lognormal(5, 0.5, 2, 16)
SYSTEM, LONGEST_ANSWER = 14_000, 5000


@dataclass(frozen=True)
class CodingParams(Params):
    """hitl_share: of an attended session's calls; the pauses are those of this module."""

    unattended_share: float = 0.5
    """Share of sessions that nobody attends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.unattended_share <= 1:
            raise UserError("parameter unattended_share", f"is {self.unattended_share}", "give a share from 0 to 1")


@dataclass(frozen=True)
class Kind:
    """agent: the main one; sub: the sub-agents. spawning: share of sessions that start any; spawn: in those, share of
    calls that do. tool_s: median and sigma of a tool's seconds."""

    agent: AgentType
    sub: AgentType
    spawning: float
    spawn: float
    tool_s: tuple[float, float]
    attended: bool


def _type(name: str, mean: float, low: int, high: int, system: int) -> AgentType:
    return AgentType(name, mean, low, high, system, lognormal(420, 1.3, 16, 12_000),
                     lognormal(250, 1.0, 16, LONGEST_ANSWER), {"code": 0.5, "file": 0.5})


SUB = _type("coding-sub", 6, 2, 16, 12_000)
KINDS = {True: Kind(_type("coding-attended", 55, 4, 220, SYSTEM), SUB, 0.2, 0.05, (6.0, 1.1), True),
         False: Kind(_type("coding-unattended", 55, 4, 220, SYSTEM), SUB, 0.5, 0.2, (0.05, 1.8), False)}
DEFAULTS = CodingParams(sessions=400, rate_per_min=3.0, hitl_share=0.1)


def generate(seed: int, params: Params) -> Trace:
    assert isinstance(params, CodingParams)
    least = SYSTEM + max(SUMMARY_TOKENS) + LONGEST_TASK + LONGEST_ANSWER
    if params.max_context < least:
        raise UserError("parameter max_context", f"is {params.max_context} tokens, too few for a step of "
                        f"{KINDS[True].agent.name}", f"give at least {least}")
    rng = np.random.default_rng(seed)
    n = params.sessions
    arrivals = np.cumsum(rng.exponential(60.0 / params.rate_per_min, n))
    attended = rng.random(n) >= params.unattended_share
    counts = np.where(attended, step_counts(rng, KINDS[True].agent, n), step_counts(rng, KINDS[False].agent, n))
    sessions = [_session(f"coding-{i:05d}", float(arrivals[i]), KINDS[bool(attended[i])], int(counts[i]), params, rng)
                for i in range(n)]
    notes = {"max_context": params.max_context, "rate_per_min": params.rate_per_min, "hitl_share": params.hitl_share,
             "unattended_share": params.unattended_share}
    return build_trace(TraceMeta("coding", "generated:coding", seed, notes=notes), sessions)


def _session(session_id: str, arrival: float, kind: Kind, count: int, params: CodingParams, rng: np.random.Generator
             ) -> SessionSpec:
    spawns = rng.random(count) < (kind.spawn if rng.random() < kind.spawning else 0.0)
    spawns[-1] = False
    steps: list[StepSpec] = []
    before: StepSpec | None = None
    at, agents = -1, 0
    waits: list[int] = []
    for i, row in enumerate(_rows(kind, kind.agent, count, params, rng)):
        parents = (at, *waits) if before else ()
        before, at, waits = _next(kind.agent, before, at, parents, row, params), len(steps), []
        steps.append(before)
        if i + 1 == count:
            before.tool, before.tool_s, before.think_s = None, 0.0, 0.0
        elif spawns[i]:
            before.tool, before.tool_s, before.think_s = SPAWN, 0.01, 0.0
            for _ in range(int(rng.integers(1, MOST_AT_ONCE + 1))):
                agents += 1
                last = _sub_agent(steps, at, agents, kind, params, rng)
                if rng.random() >= BACKGROUND:
                    waits.append(last)
    spent = sum(s.tool_s + s.think_s for s in steps if s.agent == 0)
    return SessionSpec(session_id, arrival, steps, tenant=kind.agent.name, agent_type=kind.agent.name,
                       deadline_s=arrival + spent + params.deadline_per_step_s * len(steps))


def _sub_agent(steps: list[StepSpec], parent: int, agent: int, kind: Kind, params: CodingParams,
               rng: np.random.Generator) -> int:
    """Append a sub-agent's chain; returns the number of its last step."""
    before: StepSpec | None = None
    at = parent
    for row in _rows(kind, kind.sub, int(SUB_STEPS(rng, 1)[0]), params, rng):
        before = _next(kind.sub, before, at, (at,), row, params)
        before.agent, at = agent, len(steps)
        steps.append(before)
    assert before is not None
    before.tool, before.tool_s = None, 0.0
    return at


def _next(agent: AgentType, before: StepSpec | None, at: int, parents: tuple[int, ...], row: tuple, params: Params
          ) -> StepSpec:
    """The step after `before`, which is number `at`: the whole context and what is new, or compacted."""
    new, out, summary, tool, tool_s, think_s = row
    calls = {"tool": TOOLS[tool], "tool_s": tool_s, "think_s": think_s}
    context = before.prompt_tokens + before.output_tokens if before else 0
    if before and context + new + out <= params.max_context:
        return StepSpec(context + new, out, parents, prefix_step=at, prefix_tokens=context, **calls)
    return StepSpec(agent.system_tokens + (summary if before else 0) + new, out, parents,
                    prefix_tokens=agent.system_tokens, shared_prefix=agent.name + "/system", **calls)


def _rows(kind: Kind, agent: AgentType, n: int, params: CodingParams, rng: np.random.Generator) -> list[tuple]:
    """(new tokens, answer, summary, tool, tool seconds, human seconds) of every step."""
    median, sigma = kind.tool_s
    human = np.clip(HUMAN_MEDIAN_S * np.exp(HUMAN_SIGMA * rng.standard_normal(n)), *HUMAN_RANGE_S)
    waited = rng.random(n) < (params.hitl_share if kind.attended and agent is kind.agent else 0.0)
    new: NDArray[np.int64] = agent.new_tokens(rng, n)
    new[0] = TASK(rng, 1)[0] // (1 if agent is kind.agent else 3)
    tools = [TOOLS.index(name) for name in agent.mix]
    return list(zip(new.tolist(), agent.output_tokens(rng, n).tolist(),
                    rng.integers(*SUMMARY_TOKENS, n, endpoint=True).tolist(), rng.choice(tools, n).tolist(),
                    np.clip(median * np.exp(sigma * rng.standard_normal(n)), 1e-3, 600.0).tolist(),
                    np.where(waited, human, 0.0).tolist(), strict=True))

