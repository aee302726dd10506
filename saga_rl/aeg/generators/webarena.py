"""WebArena as SAGA describes it: 812 tasks of 18 steps, Poisson 8 tasks a minute, one tenant.

4-8K tokens (a page) are appended to the prompt at each step (uniform), answers are 50-200 tokens (uniform). The paper
gives no largest step count and no tool mix: ours are 60 steps and mostly the web.
"""

from __future__ import annotations

from saga_rl.aeg.generators.agents import AgentType, Params, Source, generate_agents, uniform
from saga_rl.aeg.trace import Trace

DEFAULTS = Params(sessions=812, rate_per_min=8.0)
AGENT = AgentType("webarena", mean_steps=18, min_steps=3, max_steps=60, system_tokens=2048,
                  new_tokens=uniform(4000, 8000), output_tokens=uniform(50, 200),
                  mix={"code": 0.03, "file": 0.05, "web": 0.85, "database": 0.07})


def generate(seed: int, params: Params) -> Trace:
    return generate_agents("webarena", seed, params, [Source("default", AGENT, 1.0)])
