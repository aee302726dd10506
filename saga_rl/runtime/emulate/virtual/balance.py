"""vLLM's own choice among the engines of one server: its data-parallel client's method, on what that client keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from vllm.v1.engine.coordinator import EngineState
from vllm.v1.engine.core_client import DPLBAsyncMPClient

PUBLISHED_S = 0.1
"""vLLM's coordinator publishes what engines count at most so often."""


class StockBalancer:
    """In the place of our router. What engines count is known up to `PUBLISHED_S` late, as in service."""

    migrations = 0

    def __init__(self, schedulers: Sequence[Any]) -> None:
        self.schedulers, self._published_s = schedulers, -1.0
        n = len(schedulers)
        self._client = SimpleNamespace(
            reqs_in_flight={}, core_engines=list(range(n)), engine_inflight=Counter(), client_count=1,
            eng_start_index=0, lb_engines=[list(EngineState().request_counts) for _ in range(n)])

    def choose(self, name: str, now: float) -> int:
        """Return the engine that the request goes to."""
        if now - self._published_s >= PUBLISHED_S:
            self._published_s = now
            for counts, s in zip(self._client.lb_engines, self.schedulers, strict=True):
                what = (len(s.waiting), len(s.running), s.kv_cache_manager.usage)
                counts[:] = what[:len(counts)]  # older versions do not publish the usage
        request = SimpleNamespace(request_id=name, data_parallel_rank=None, pooling_params=None)
        return int(DPLBAsyncMPClient.get_core_engine_for_request(self._client, request))  # type: ignore[arg-type]

    def finished(self, name: str) -> None:
        """Note that the client has the whole answer."""
        engine = self._client.reqs_in_flight.pop(name, None)
        if engine is not None:
            self._client.engine_inflight[engine] -= 1
