"""How vLLM and we know each other: the class that it is told to schedule with, and the variable that emulates a device.

Imports nothing: each process of vLLM loads it, before anything of ours is wanted.
"""

from __future__ import annotations

from typing import Any

SCHEDULER = "saga_rl.runtime.engine.scheduler.SagaScheduler"
SYNC_SCHEDULER = "saga_rl.runtime.engine.scheduler.SagaSyncScheduler"
METHOD = "saga_control"
"""Of vLLM's `EngineCore`: how the API server reaches an engine's scheduler."""
STOPPED = "\0saga_rl stopped "
"""Ahead of a request's name in a list of aborts: it is no abort, the request has ended by a stop string."""
EMULATE = "SAGA_RL_EMULATE"
"""The environment variable that says what is emulated, see `runtime.config.emulated`."""


def is_ours(vllm_config: Any) -> bool:
    """Whether the engines of this configuration run our scheduler."""
    cls = getattr(getattr(vllm_config, "scheduler_config", None), "scheduler_cls", None)
    if isinstance(cls, str):
        return cls.startswith("saga_rl.")
    return isinstance(cls, type) and any(c.__module__.startswith("saga_rl.") for c in cls.__mro__)
