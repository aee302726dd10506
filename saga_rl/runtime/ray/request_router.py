"""`RequestRouterConfig(request_router_class="saga_rl.runtime.ray.SagaRequestRouter")`: Ray asks it for a replica.

Ray has one in each process that calls the deployment (the replicas of its front). Tried with Ray 2.60, whose interface
is alpha. What fails in ours is counted and logged, and Ray's own choice of two serves.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from typing import Any

from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.serve._private.request_router.request_router import LocalityMixin, MultiplexMixin, RequestRouter

from saga_rl.errors import UserError
from saga_rl.runtime.config.settings import KEY, policies_of, read_config
from saga_rl.runtime.engine.metrics import Metrics
from saga_rl.runtime.ray.replicas import Replicas
from saga_rl.runtime.ray.requests import read_request, write_hints

log = logging.getLogger("vllm.saga_rl")
NO_POOL = 1 << 50


class SagaRequestRouter(LocalityMixin, MultiplexMixin, RequestRouter):
    """Places by our policy; see docs/how-to/several-engines.md for `request_router_kwargs`."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Get ready, in a thread: until then, and if it fails, Ray's own choice serves. kwargs: of `_prepare`."""
        self._lock = threading.Lock()
        self._ours: Replicas | None = None
        self._failures: Counter[str] = Counter()
        threading.Thread(target=self._prepare, kwargs=kwargs, name="saga-rl placement", daemon=True).start()

    def _prepare(self, saga: dict[str, Any] | None = None, max_num_seqs: int = 256, kv_tokens: int | None = None,
                 routers: int = 1) -> None:
        """Make what decides.

        saga: as the engines' `additional_config["saga"]`; max_num_seqs, kv_tokens: of one replica; routers: processes
        that route to this deployment."""
        try:
            config = read_config({KEY: saga or {}})
            ours = Replicas(
                policies_of(config.policy).placement, max_seqs=max_num_seqs, kv_tokens=kv_tokens or NO_POOL,
                routers=routers, expiry_s=config.expiry_s, budget_s=config.budget_s,
                tokens_per_s=config.prefill_tokens_per_s)
            self._metrics = Metrics(f"ray-router-{os.getpid()}", config.metrics_s, config.metrics, self._state)
            self._metrics.start()
            self._ours = ours
        except UserError as e:
            self._failures["fallback/placement/configuration"] += 1
            log.error("saga-rl: request_router_kwargs: %s. Ray's own choice among replicas serves", e)
        except Exception:
            self._failed("start")

    def _state(self) -> dict[str, Any]:
        with self._lock:
            return {"ready": self._ours is not None, **self._failures,
                    **({} if self._ours is None else self._ours.state())}

    def _failed(self, what: str) -> None:
        """Count it; to be called while the exception is handled."""
        name = f"fallback/placement/{what}"
        self._failures[name] += 1
        if self._failures[name] in (1, 10, 100) or self._failures[name] % 1000 == 0:
            log.exception("saga-rl placement: %s; Ray's own choice serves (%d times so far)", what,
                          self._failures[name])

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Return the replica that our policy chooses and, should it refuse, all others."""
        ours = self._ours
        if ours is None:
            self._failures["fallback/placement/not ready"] += 1
        chosen = None if ours is None else self._place(ours, candidate_replicas, pending_request)
        if chosen is None:
            two: Any = PowerOfTwoChoicesRequestRouter
            return await two.choose_replicas(self, candidate_replicas, pending_request)
        pending_request.routing_context.should_backoff = True
        return [[chosen], [r for r in candidate_replicas if r is not chosen]]

    def _place(self, ours: Replicas, candidates: list[Any], pending: Any) -> Any:
        try:
            asked = None if pending is None else read_request(pending.args)
            if asked is None or not candidates:
                return None
            body, hints, prompt = asked
            write_hints(body, hints)
            by_name = {r.replica_id.unique_id: r for r in candidates}
            with self._lock:
                ours.update(by_name)
                return by_name[ours.send(
                    pending.metadata.internal_request_id, hints, prompt,
                    lambda name: self.replica_queue_len_cache.get(by_name[name].replica_id))]
        except Exception as e:
            self._failed(f"choice {type(e).__name__}")
            return None

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        """Note which replica took the request."""
        self._notify("routed", pending_request.metadata.internal_request_id, replica_id.unique_id)

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        """Note that its answer ended, whole or not."""
        self._notify("completed", internal_request_id)

    def _notify(self, what: str, *about: str) -> None:
        if self._ours is None:
            return
        try:
            with self._lock:
                getattr(self._ours, what)(*about)
        except Exception as e:
            self._failed(f"{what} {type(e).__name__}")
