"""SWE-bench as SAGA describes it: 500 tasks, 37 steps (10 to 150), Poisson 8 tasks a minute, one tenant.

2-4K tokens are appended to the prompt at each step (uniform), answers are 100-500 tokens (uniform). The paper gives no
tool mix; ours is that of an agent that mostly reads, edits and runs code.
"""

from __future__ import annotations

from saga_rl.aeg.generators.agents import AgentType, Params, Source, generate_agents, uniform
from saga_rl.aeg.trace import Trace

DEFAULTS = Params(sessions=500, rate_per_min=8.0)
AGENT = AgentType("swe-bench", mean_steps=37, min_steps=10, max_steps=150, system_tokens=3072,
                  new_tokens=uniform(2000, 4000), output_tokens=uniform(100, 500),
                  mix={"code": 0.40, "file": 0.45, "web": 0.10, "database": 0.05})


def generate(seed: int, params: Params) -> Trace:
    return generate_agents("swe-bench", seed, params, [Source("default", AGENT, 1.0)])
