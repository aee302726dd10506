"""Ten tenants with BurstGPT-like lengths: 3 heavy (100 steps, 16 sessions a minute each), 4 medium (30 steps, 8 a
minute), 3 light (10 steps, 4 a minute); 92 sessions a minute in all, in the same proportions at any other rate.

The lengths are chosen in the shape of the BurstGPT traces (heavy-tailed, questions longer than answers), not fitted to
them: appended tokens log-normal with median 300 and sigma 1.1 within 16-4,000, answers log-normal with median 150 and
sigma 0.9 within 4-1,500. Each class is an agent type with a system prompt of its own.
"""

from __future__ import annotations

from saga_rl.aeg.generators.agents import AgentType, Params, Source, generate_agents, lognormal
from saga_rl.aeg.trace import Trace

CLASSES = (("heavy", 100, 30, 300, 3, 16.0), ("medium", 30, 8, 100, 4, 8.0), ("light", 10, 2, 40, 3, 4.0))
"""Name, mean, least and most steps, tenants, sessions a minute of each tenant."""
DEFAULTS = Params(sessions=500, rate_per_min=sum(tenants * rate for *_, tenants, rate in CLASSES))


def sources() -> list[Source]:
    """The ten tenants."""
    sources = []
    for name, mean, low, high, tenants, rate in CLASSES:
        agent = AgentType(f"burstgpt-{name}", mean, low, high, system_tokens=1024,
                          new_tokens=lognormal(300, 1.1, 16, 4000), output_tokens=lognormal(150, 0.9, 4, 1500),
                          mix={"code": 0.25, "file": 0.25, "web": 0.25, "database": 0.25})
        sources += [Source(f"{name}-{i}", agent, rate) for i in range(tenants)]
    return sources


def generate(seed: int, params: Params) -> Trace:
    return generate_agents("burstgpt", seed, params, sources())
