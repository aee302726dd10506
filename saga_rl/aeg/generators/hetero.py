"""Four kinds of agents in one trace that differ in tools, latencies, contexts, steps, and in how their sessions end.

Made up, for policies that have to learn who is finished and who returns late: what is true of one kind is false of
another. A *coder* hands in its work with the tool `submit`; a *browser* and a *helper* end with an answer; an
*analyst* ends with a call like any other, whose result nobody sends back: nothing tells its last step from the ones
before. `hitl_share` is of every kind's calls but the last.
"""

from __future__ import annotations

from saga_rl.aeg.generators.agents import ANY_TOOL, AgentType, Params, Source, generate_agents, lognormal, uniform
from saga_rl.aeg.trace import Trace

DEFAULTS = Params(sessions=600, rate_per_min=12.0)
AGENTS = (
    AgentType("coder", mean_steps=28, min_steps=8, max_steps=100, system_tokens=3072, new_tokens=uniform(1000, 3000),
              output_tokens=uniform(100, 500), mix={"code": 0.55, "file": 0.45}, ends="submit"),
    AgentType("browser", mean_steps=14, min_steps=3, max_steps=50, system_tokens=2048, new_tokens=uniform(3000, 7000),
              output_tokens=uniform(50, 200), mix={"web": 0.95, "file": 0.05}),
    AgentType("analyst", mean_steps=22, min_steps=5, max_steps=80, system_tokens=1536,
              new_tokens=lognormal(900, 0.9, 50, 6000), output_tokens=uniform(80, 400),
              mix={"database": 0.6, "code": 0.3, "web": 0.1}, ends=ANY_TOOL),
    AgentType("helper", mean_steps=8, min_steps=2, max_steps=30, system_tokens=1024,
              new_tokens=lognormal(300, 1.0, 16, 4000), output_tokens=lognormal(180, 0.8, 8, 1200),
              mix={"file": 0.5, "database": 0.3, "web": 0.2}),
)
SHARES = (0.3, 0.25, 0.25, 0.2)


def sources() -> list[Source]:
    """One tenant each."""
    return [Source(agent.name, agent, share) for agent, share in zip(AGENTS, SHARES, strict=True)]


def generate(seed: int, params: Params) -> Trace:
    return generate_agents("hetero", seed, params, sources())
