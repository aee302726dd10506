"""The generator that the named workloads share: ReAct agents whose context grows until it has to be compacted.

A session begins with its agent type's system prompt, which all sessions of the type share, followed by the task. Every
later prompt is the whole context so far (previous prompt and output) plus the tool's answer. An agent whose next call
would pass `max_context` compacts instead: its new context is the system prompt, a summary, and the tool's answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.build import NAN, SessionSpec, StepSpec, build_trace
from saga_rl.aeg.generators.latency import TOOLS, sample_tools
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.errors import UserError

Sampler = Callable[[np.random.Generator, int], NDArray[np.int64]]
STEP_SIGMA = 0.6
HUMAN_MEDIAN_S, HUMAN_SIGMA, HUMAN_RANGE_S = 120.0, 0.8, (30.0, 3600.0)
SUMMARY_TOKENS = (1000, 2000)
ANSWER, ANY_TOOL = "answer", "any tool"


@dataclass(frozen=True)
class AgentType:
    """One kind of agent. `new_tokens`: appended to the prompt by a task or tool answer; `mix`: share of each tool.

    `ends`: how its last step ends the session: `ANSWER` calls no tool; `ANY_TOOL` calls one of the mix, whose result
    nobody sends back; any other string is the name of a tool that only a last step calls.
    """

    name: str
    mean_steps: float
    min_steps: int
    max_steps: int
    system_tokens: int
    new_tokens: Sampler
    output_tokens: Sampler
    mix: dict[str, float]
    ends: str = ANSWER


@dataclass(frozen=True)
class Source:
    """A tenant's stream of sessions: its agent type and its share of all arrivals."""

    tenant: str
    agent: AgentType
    share: float


@dataclass(frozen=True)
class Params:
    """What a person may set; every workload gives its own defaults."""

    sessions: int = 500
    rate_per_min: float = 8.0
    """Poisson arrivals, all tenants together."""
    max_context: int = 131_072
    """Tokens of prompt + output at which an agent compacts."""
    hitl_share: float = 0.0
    """Share of tool calls after which a human is waited for, minutes long (log-normal, median 2 min,
    within 30 s - 1 h)."""
    deadline_per_step_s: float = NAN
    """If given, a session's deadline is its arrival + its tool and human seconds + this many seconds a step."""

    def __post_init__(self) -> None:
        for name, good, mend in (
            ("sessions", self.sessions >= 1, "ask for 1 or more"),
            ("rate_per_min", 0 < self.rate_per_min < float("inf"), "give a positive number of sessions a minute"),
            ("hitl_share", 0 <= self.hitl_share <= 1, "give a share from 0 to 1"),
            ("deadline_per_step_s", not self.deadline_per_step_s <= 0, "give positive seconds, or leave it out"),
        ):
            if not good:
                raise UserError(f"parameter {name}", f"is {getattr(self, name)}", mend)


def uniform(low: int, high: int) -> Sampler:
    """Integers from `low` to `high`, both included."""
    return lambda rng, n: rng.integers(low, high + 1, n)


def lognormal(median: float, sigma: float, low: int, high: int) -> Sampler:
    """Log-normal integers, clipped to [low, high]."""
    return lambda rng, n: np.clip(np.rint(median * np.exp(sigma * rng.standard_normal(n))), low, high).astype(np.int64)


def step_counts(rng: np.random.Generator, agent: AgentType, n: int) -> NDArray[np.int64]:
    """Steps of `n` sessions: log-normal (sigma 0.6), clipped to the type's range, its median solved so that the mean
    after clipping is the stated one."""
    z = np.random.default_rng(0).standard_normal(20_000)
    low, high = np.log(agent.min_steps), np.log(agent.max_steps)
    for _ in range(40):
        mid = (low + high) / 2
        mean = np.clip(np.rint(np.exp(mid + STEP_SIGMA * z)), agent.min_steps, agent.max_steps).mean()
        low, high = (mid, high) if mean < agent.mean_steps else (low, mid)
    drawn = np.rint(np.exp(low + STEP_SIGMA * rng.standard_normal(n)))
    return np.clip(drawn, agent.min_steps, agent.max_steps).astype(np.int64)


def human_s(rng: np.random.Generator, params: Params) -> float:
    """Seconds for which a human is waited for after one tool call; mostly none."""
    if rng.random() >= params.hitl_share:
        return 0.0
    return float(np.clip(HUMAN_MEDIAN_S * np.exp(HUMAN_SIGMA * rng.standard_normal()), *HUMAN_RANGE_S))


def generate_agents(name: str, seed: int, params: Params, sources: list[Source]) -> Trace:
    """Sessions of `sources`; arrivals are one Poisson stream, split over the sources by share (so each source's own
    arrivals are Poisson too)."""
    rng = np.random.default_rng(seed)
    n = params.sessions
    arrivals = np.cumsum(rng.exponential(60.0 / params.rate_per_min, n))
    share = np.array([s.share for s in sources])
    source = rng.choice(len(sources), size=n, p=share / share.sum())
    return agents_at(name, seed, params, sources, arrivals, source, rng)


def agents_at(name: str, seed: int, params: Params, sources: list[Source], arrivals: NDArray[np.float64],
              source: NDArray[np.int64], rng: np.random.Generator) -> Trace:
    """One session for each of `arrivals` (s, not decreasing), of the source whose number `source` holds."""
    sessions = []
    for i, s in enumerate(sources):
        mine = np.flatnonzero(source == i)
        counts = step_counts(rng, s.agent, len(mine))
        columns = _step_columns(rng, s.agent, params, int(counts.sum()))
        ends = np.cumsum(counts)
        for row, first, last in zip(mine, ends - counts, ends, strict=True):
            sessions.append(_session(f"{name}-{row:05d}", float(arrivals[row]), s, params,
                                     [c[first:last].tolist() for c in columns]))
    notes = {"max_context": params.max_context, "rate_per_min": params.rate_per_min, "hitl_share": params.hitl_share}
    return build_trace(TraceMeta(name, f"generated:{name}", seed, notes=notes), sessions)


def _step_columns(rng: np.random.Generator, agent: AgentType, params: Params, n: int) -> list[NDArray]:
    tools, tool_s = sample_tools(rng, agent.mix, n)
    human = np.clip(HUMAN_MEDIAN_S * np.exp(HUMAN_SIGMA * rng.standard_normal(n)), *HUMAN_RANGE_S)
    think_s = np.where(rng.random(n) < params.hitl_share, human, 0.0)
    columns = [agent.new_tokens(rng, n), agent.output_tokens(rng, n), rng.integers(*SUMMARY_TOKENS, n, endpoint=True),
               tools, tool_s, think_s]
    worst = agent.system_tokens + max(SUMMARY_TOKENS) + sum(int(c.max()) for c in columns[:2]) if n else 0
    if params.max_context < worst:
        raise UserError("parameter max_context", f"is {params.max_context} tokens, too few for a step of {agent.name}",
                        f"give at least {worst}")
    return columns


def _session(session_id: str, arrival: float, source: Source, params: Params, columns: list[list]) -> SessionSpec:
    agent = source.agent
    system = agent.name + "/system"
    steps: list[StepSpec] = []
    context = 0
    last = len(columns[0]) - 1
    for i, (new, out, summary, tool, tool_s, think_s) in enumerate(zip(*columns, strict=True)):
        if i < last:
            calls = {"tool": TOOLS[tool], "tool_s": tool_s, "think_s": think_s}
        elif agent.ends == ANY_TOOL:
            calls = {"tool": TOOLS[tool], "tool_s": tool_s}
        else:
            calls = {} if agent.ends == ANSWER else {"tool": agent.ends}
        parents = (i - 1,) if i else ()
        if i and context + new + out <= params.max_context:
            steps.append(StepSpec(context + new, out, parents, prefix_step=i - 1, prefix_tokens=context, **calls))
        else:
            fresh = agent.system_tokens + (summary if i else 0) + new
            steps.append(StepSpec(fresh, out, parents, prefix_tokens=agent.system_tokens, shared_prefix=system,
                                  **calls))
        context = steps[-1].prompt_tokens + out
    spent = sum(s.tool_s + s.think_s for s in steps[:-1])
    deadline = arrival + spent + params.deadline_per_step_s * len(steps)
    return SessionSpec(session_id, arrival, steps, tenant=source.tenant, agent_type=agent.name, deadline_s=deadline)
