"""What the engine's own modules may see of the scheduler that runs them: state by name, and a few methods.

`scheduler.SagaMixin` has all of it. vLLM's parts are what vLLM's scheduler calls them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

from saga_rl.policies.base import PolicySet
from saga_rl.policies.constraints import Constraints
from saga_rl.runtime.config.settings import SagaConfig
from saga_rl.runtime.engine.metrics import Metrics
from saga_rl.runtime.engine.queueing.admission import Admission
from saga_rl.runtime.engine.queueing.tenants import Service
from saga_rl.runtime.sessions.tracker import Served, Tracker


class EngineView(Protocol):
    """One engine, between two steps or within one, in the thread that schedules."""

    # vLLM's
    block_size: int
    max_num_scheduled_tokens: int
    prev_step_scheduled_req_ids: set[str]
    requests: dict[str, Any]
    running: list[Any]
    waiting: Any
    kv_cache_manager: Any
    connector: Any
    policy: Any
    # ours
    saga_config: SagaConfig
    policies: PolicySet
    shown: str
    rules: Constraints
    metrics: Metrics
    tracker: Tracker
    service: Service
    block_queue: Any
    admission: Admission
    tiers: list[Any]
    lazy: list[Any]
    now: float
    served: dict[str, Served]
    """Requests that have not gone, by their names."""
    lost_tokens: dict[str, int]
    """Of preempted requests: how many of their tokens were computed."""
    loading: set[str]
    """Requests that have blocks and wait for their KV to come into them."""
    yielded_s: float
    """When a request last made room for one that had waited for too long."""

    def get_request_counts(self) -> tuple[int, int]: ...

    def arrival(self, request: Any) -> int: ...

    def empty_queue(self) -> Any: ...

    def queue_positions(self) -> None: ...

    def tie_tiers(self, policies: PolicySet) -> list[Any]: ...

    def pinned(self) -> Counter[int]: ...

    def _preempt_request(self, request: Any, timestamp: float) -> None: ...
