"""A small cluster of vLLM's real schedulers in virtual time, beside a simulated row of the paper's tables."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from saga_rl.aeg.trace import Trace
from saga_rl.experiments.cell import Result
from saga_rl.experiments.closed import policies_of
from saga_rl.experiments.paper.arms import Arm
from saga_rl.runtime.config.settings import SagaConfig
from saga_rl.sim.config import SimConfig

WORKERS = 2
ROUNDS = 2
"""Tasks for each that is alive at once."""
SCALE = 1 / 16
"""Of lengths, pool and tools' times: at the paper's a run of vLLM's schedulers takes minutes."""


def missing() -> str:
    """Why nothing can be played here; empty if it can."""
    return "" if importlib.util.find_spec("vllm") else "vLLM is not installed (extra serve or serve-cpu)"


def as_served(config: SimConfig) -> SimConfig:
    """What the simulator is told so that it foretells engines in service: iterations composed ahead, a tool's name
    known only with the request that follows it, nobody waits for ever."""
    return replace(config, async_scheduling=True, tool_names=False, starve_s=SagaConfig().starve_s)


def play_engines(trace: Trace, config: SimConfig, arm: Arm) -> Result:
    """Completion times of the trace on vLLM's schedulers: its own ones where the arm evicts, orders and admits as vLLM
    does, else ours inside it. Our router places in both."""
    from saga_rl.runtime.emulate.virtual import VirtualConfig, play

    policies = policies_of(arm.specs)
    stock = (policies.eviction.name, policies.ordering.name, policies.admission.name) == ("lru", "fcfs", "none")
    found = play(trace, VirtualConfig(config, stock_engines=stock), policies).figures()
    return {k: found[k] for k in ("tct_mean_s", "tct_p95_s", "hit_share")}
