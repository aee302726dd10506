"""Retry loops: tools fail, agents call again with the error in their context, and some attempts lead nowhere.

Made up; the SAGA paper names the shape (backward edges in its agents' graphs) and no figures. A ReAct agent calls one
tool a step. A call fails with probability `fail_share`, a call right after a failed one with `fail_again_share`. The
agent then calls the same tool again: its context grows by the error. When `attempts` calls in a row have failed it
gives the branch up: it goes on from the prompt that led to the first of them, with a note of what did not work. What it
computed in between is dead, and nobody says so. A graph of steps has no loops: each attempt is a step of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.generators.agents import AgentType, Params, Sampler, human_s, step_counts, uniform
from saga_rl.aeg.generators.latency import TOOLS, sample_tools
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.errors import UserError

NAME = "retry"
AGENT = AgentType(NAME, mean_steps=20, min_steps=4, max_steps=80, system_tokens=3072, new_tokens=uniform(500, 3000),
                  output_tokens=uniform(100, 500), mix={"code": 0.5, "file": 0.2, "web": 0.2, "database": 0.1})
"""Its steps are calls that it wants to make; attempts come on top."""
ERROR = uniform(100, 1500)
NOTE = uniform(100, 300)
SUMMARY = uniform(1000, 2000)


@dataclass(frozen=True)
class RetryParams(Params):
    """What a person may set."""

    fail_share: float = 0.3
    """Of calls, that fail at first."""
    fail_again_share: float = 0.6
    """Of calls right after a failed one, that fail, too."""
    attempts: int = 3
    """Failed calls in a row after which the agent goes back."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("fail_share", "fail_again_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"parameter {name}", f"is {getattr(self, name)}", "give a share from 0 to 1")
        if self.attempts < 1:
            raise UserError("parameter attempts", f"is {self.attempts}", "give 1 or more")


DEFAULTS = RetryParams(sessions=400, rate_per_min=6.0)


def generate(seed: int, params: Params) -> Trace:
    assert isinstance(params, RetryParams)
    least = AGENT.system_tokens + 2000 + 3000 + 500
    if params.max_context < least:
        raise UserError("parameter max_context", f"is {params.max_context} tokens, too few for a step of {NAME}",
                        f"give at least {least}")
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(60.0 / params.rate_per_min, params.sessions))
    counts = step_counts(rng, AGENT, params.sessions)
    sessions = [_session(f"{NAME}-{i:05d}", float(at), int(n), params, rng)
                for i, (at, n) in enumerate(zip(arrivals, counts, strict=True))]
    notes = {k: getattr(params, k) for k in ("fail_share", "fail_again_share", "attempts", "max_context",
                                             "rate_per_min", "hitl_share")}
    return build_trace(TraceMeta(NAME, f"generated:{NAME}", seed, notes=notes), sessions)


def _session(session_id: str, arrival: float, wanted: int, params: RetryParams, rng: np.random.Generator
             ) -> SessionSpec:
    tools, tool_s = sample_tools(rng, AGENT.mix, wanted)
    steps: list[StepSpec] = []
    new, back = _one(AGENT.new_tokens, rng), -1
    for k in range(wanted - 1):
        tool, first, failed = TOOLS[tools[k]], len(steps), 0
        _call(steps, back, new, tool, float(tool_s[k]), params, rng)
        new, back = _one(AGENT.new_tokens, rng), -1
        while rng.random() < (params.fail_again_share if failed else params.fail_share):
            failed += 1
            if failed == params.attempts:
                new, back = _one(NOTE, rng), first
                break
            _, again_s = sample_tools(rng, {tool: 1.0}, 1)
            _call(steps, -1, _one(ERROR, rng), tool, float(again_s[0]), params, rng)
    _call(steps, back, new, None, 0.0, params, rng)
    spent = sum(s.tool_s + s.think_s for s in steps)
    return SessionSpec(session_id, arrival, steps, tenant=NAME, agent_type=NAME,
                       deadline_s=arrival + spent + params.deadline_per_step_s * len(steps))


def _call(steps: list[StepSpec], back: int, new: int, tool: str | None, tool_s: float, params: RetryParams,
          rng: np.random.Generator) -> None:
    """Append a step that calls `tool`. Its prompt: the whole context, or if `back` >= 0 the prompt of that step, and
    `new` tokens; a summary in place of the context where it would be too long."""
    output = _one(AGENT.output_tokens, rng)
    calls: dict[str, Any] = {"tool": tool, "tool_s": tool_s, "think_s": human_s(rng, params) if tool else 0.0}
    parents = (len(steps) - 1,) if steps else ()
    at, context = back, 0
    if back >= 0:
        context = steps[back].prompt_tokens
    elif steps:
        at, context = len(steps) - 1, steps[-1].prompt_tokens + steps[-1].output_tokens
    if steps and context + new + output <= params.max_context:
        steps.append(StepSpec(context + new, output, parents, prefix_step=at, prefix_tokens=context, **calls))
        return
    summary = _one(SUMMARY, rng) if steps else 0
    steps.append(StepSpec(AGENT.system_tokens + summary + new, output, parents, prefix_tokens=AGENT.system_tokens,
                          shared_prefix=f"{NAME}/system", **calls))


def _one(sampler: Sampler, rng: np.random.Generator) -> int:
    return int(sampler(rng, 1)[0])
