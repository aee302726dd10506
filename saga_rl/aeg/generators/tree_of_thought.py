"""Tree of thought: a session forks into agents that share all that came before, the best go on, the others die.

Made up; the SAGA paper names the shape (its agents' graphs may branch) and no figures. The main agent (0) reads the
task. Each of `branches` agents then goes on from its context: it thinks and calls a tool once to three times, and rates
itself in a short answer. When the last of a level has done so, the best `keep` are known: each goes on, and `branches`
- 1 new agents go on from the same context beside it. All others are dead, and nobody says so. After the last level the
main agent answers on top of the best context. Which are best is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.generators.agents import Params, human_s
from saga_rl.aeg.generators.latency import TOOLS, sample_tools
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.errors import UserError

NAME = "tree-of-thought"
SYSTEM = 2048
MIX = {"code": 0.6, "web": 0.2, "file": 0.2}
MOST_THOUGHTS = 3
TASK, NEW, THOUGHT, ASKED, RATING, ANSWER = (500, 4000), (50, 1200), (200, 800), (40, 80), (8, 40), (200, 1000)
"""Least and most tokens, uniform: of the task, of what a tool returns, of a thought, of the order to rate it, of the
rating, of the answer. An agent's first thought is asked for in as many tokens as its rating."""


@dataclass(frozen=True)
class TreeParams(Params):
    """What a person may set. Human pauses follow tool calls; no agent compacts."""

    branches: int = 4
    """Agents that go on from one context."""
    keep: int = 2
    """Agents of a level that go on."""
    levels: int = 4
    """Most levels of a session; drawn from half of it on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("branches", "keep", "levels"):
            if getattr(self, name) < 1:
                raise UserError(f"parameter {name}", f"is {getattr(self, name)}", "give 1 or more")
        if self.keep > self.branches:
            raise UserError("parameter keep", f"is {self.keep}, but the first level has {self.branches} branches",
                            "keep as many or fewer")


DEFAULTS = TreeParams(sessions=300, rate_per_min=6.0)


def generate(seed: int, params: Params) -> Trace:
    assert isinstance(params, TreeParams)
    longest = (SYSTEM + TASK[1] + THOUGHT[1] + params.levels * (MOST_THOUGHTS * (NEW[1] + THOUGHT[1]) + ASKED[1] * 2
                                                                + RATING[1]) + ASKED[1] + ANSWER[1])
    if params.max_context < longest:
        raise UserError("parameter max_context", f"is {params.max_context} tokens, too few for {params.levels} levels",
                        f"give at least {longest}, or fewer levels")
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(60.0 / params.rate_per_min, params.sessions))
    sessions = [_Tree(params, rng).session(i, float(at)) for i, at in enumerate(arrivals)]
    notes = {name: getattr(params, name) for name in ("branches", "keep", "levels", "rate_per_min", "hitl_share")}
    return build_trace(TraceMeta(NAME, f"generated:{NAME}", seed, notes=notes), sessions)


class _Tree:
    """One session in the making. A place in `steps` stands for the context that ends there."""

    def __init__(self, params: TreeParams, rng: np.random.Generator) -> None:
        self.params, self.rng, self.steps, self.agents = params, rng, list[StepSpec](), 0

    def session(self, number: int, arrival: float) -> SessionSpec:
        p = self.params
        self.steps.append(StepSpec(SYSTEM + self._draw(TASK), self._draw(THOUGHT), prefix_tokens=SYSTEM,
                                   shared_prefix=f"{NAME}/system"))
        waits, alive = [0], [(0, -1)]  # (context, the agent that goes on from it; -1 = none does)
        for _ in range(int(self.rng.integers(-(-p.levels // 2), p.levels + 1))):
            rated = [self._branch(at, agent if k == 0 else -1, waits) for at, agent in alive for k in range(p.branches)]
            waits = [at for at, _ in rated]
            best = self.rng.choice(len(rated), size=min(p.keep, len(rated)), replace=False)
            alive = [rated[k] for k in best]
        self._add(alive[0][0], 0, sorted({0, *waits}), self._draw(ASKED), self._draw(ANSWER))
        return SessionSpec(f"{NAME}-{number:05d}", arrival, self.steps, tenant=NAME, agent_type=NAME,
                           deadline_s=arrival + longest_path_s(self.steps, p.deadline_per_step_s))

    def _branch(self, at: int, agent: int, waits: list[int]) -> tuple[int, int]:
        """Let `agent` (-1: a new one) go on from context `at` once `waits` are done. Returns its rating's place, and
        its number."""
        if agent < 0:
            self.agents += 1
            agent = self.agents
        n = int(self.rng.integers(1, MOST_THOUGHTS + 1))
        tools, tool_s = sample_tools(self.rng, MIX, n)
        parents, new = waits, self._draw(ASKED)
        for tool, seconds in zip(tools, tool_s, strict=True):
            at = self._add(at, agent, parents, new, self._draw(THOUGHT))
            step = self.steps[at]
            step.tool, step.tool_s, step.think_s = TOOLS[tool], float(seconds), human_s(self.rng, self.params)
            parents, new = [at], self._draw(NEW)
        return self._add(at, agent, parents, new + self._draw(ASKED), self._draw(RATING)), agent

    def _add(self, at: int, agent: int, parents: list[int], new: int, output: int) -> int:
        """Append a step whose prompt is the whole context `at` and `new` tokens; returns its place."""
        context = self.steps[at].prompt_tokens + self.steps[at].output_tokens
        self.steps.append(StepSpec(context + new, output, parents, agent, prefix_step=at, prefix_tokens=context))
        return len(self.steps) - 1

    def _draw(self, between: tuple[int, int]) -> int:
        return int(self.rng.integers(*between, endpoint=True))


def longest_path_s(steps: list[StepSpec], each_s: float) -> float:
    """Seconds from a session's first request to its end if every step took `each_s`: tools and humans are waited for by
    their own agent, and a step waits for all of its parents."""
    ends: list[float] = []
    for step in steps:
        starts = [ends[p] + (steps[p].tool_s + steps[p].think_s if steps[p].agent == step.agent else 0.0)
                  for p in step.parents]
        ends.append(max(starts, default=0.0) + each_s)
    return ends[-1]
