"""Our router in the place of vLLM's choice among data-parallel engines, in the API server's process.

`client_hooks` calls it. vLLM's own code does all the booking: our choice reaches it as the request's data-parallel
rank. Whatever fails in ours is counted, logged, and decided by vLLM.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from saga_rl.policies.base import Policy
from saga_rl.policies.registry import make
from saga_rl.runtime.config import clock
from saga_rl.runtime.config.emulated import active
from saga_rl.runtime.config.safe import SafeGuard
from saga_rl.runtime.config.settings import SagaConfig
from saga_rl.runtime.engine.metrics import Metrics
from saga_rl.runtime.routing.router import Router
from saga_rl.runtime.routing.router_shared import SharedRouter
from saga_rl.runtime.routing.router_table import TableRouter
from saga_rl.runtime.routing.shared_table import opened
from saga_rl.runtime.sessions.hints import Hints, read_hints

log = logging.getLogger("vllm.saga_rl")


def _profiles_rate() -> float | None:
    """Prompt tokens that an emulated device works off in a second; None on a real one."""
    emulated = active()
    return None if emulated is None else emulated.cost.prefill_tokens_per_s


class Placement:
    """The state of one API server, whose counters are called `name`."""

    def __init__(self, policy: Policy, config: SagaConfig, name: str = "router") -> None:
        self.policy, self.config = policy, config
        self.metrics = Metrics(name, config.metrics_s, config.metrics, self._state)
        self.router: Router | None = None
        self.stock = False
        """vLLM's own choice serves; what it chooses is still booked, so that a policy finds everything in its place."""

    def begin(self) -> None:
        """Count, log and write from now on; link compiled code before the first request."""
        self.metrics.start()
        warm = Router(self.policy, 1, 1, 1)
        warm.choose(Hints(), 1, 0.0)
        warm.book("", Hints(), 1, 0, 0.0)
        warm.output("", 1, True, 0.0)

    def swap(self, policy: Policy, stock: bool = False) -> None:
        """Another policy from the next request on; homes, loads and counters stay. Raises before anything changed."""
        guard = SafeGuard(policy, make("placement", "sticky"), self.config.budget_s)
        if self.router is not None:
            guard.fallbacks.update(self.router.guard.fallbacks)
            guard.decisions += self.router.guard.decisions
            self.router.guard = guard
        self.policy, self.stock = policy, stock

    def router_for(self, client: Any) -> Router:
        """The router of `client`, made when its engines are known (and anew when their number changes)."""
        engines = len(client.core_engines)
        if self.router is None or len(self.router.engines) != engines:
            vllm = client.vllm_config
            cache = vllm.cache_config
            blocks = (cache.num_gpu_blocks or engines) / engines  # vLLM's client adds all engines' up
            # Where several KV groups share a pool, blocks say nothing of tokens; vLLM's own figure is not in 0.28.
            kv_tokens = int(getattr(cache, "kv_cache_size_tokens", None) or blocks * cache.block_size)
            about = (self.policy, engines, vllm.scheduler_config.max_num_seqs, kv_tokens)
            options: dict[str, Any] = {"expiry_s": self.config.expiry_s, "budget_s": self.config.budget_s,
                                       "tokens_per_s": self.config.prefill_tokens_per_s or _profiles_rate()}
            self.router = self._one_of_several(client, about, options) if client.client_count > 1 else Router(
                *about, **options)
        return self.router

    def _one_of_several(self, client: Any, about: Any, options: dict[str, Any]) -> Router:
        """A router that shares a table with those of the other servers, or draws homes from names without one."""
        table = opened()
        if table is not None and table.servers == client.client_count and table.engines == len(client.core_engines):
            return TableRouter(*about, **options, table=table, server=client.client_index)
        return SharedRouter(*about, **options, servers=client.client_count, counts=lambda: client.lb_engines)

    def route(self, client: Any, request: Any, stock: Any) -> Any:
        """What `get_core_engine_for_request` returns."""
        if request.request_id in client.reqs_in_flight:
            return stock(client, request)  # a later part of a streamed input follows the first
        now, prompt, hints, chosen = clock.seconds(), 0, Hints(), None
        try:
            params = request.sampling_params
            hints = read_hints(getattr(request, "session_id", None), params.extra_args if params is not None else None)
            prompt = len(request.prompt_token_ids or ())
            if request.data_parallel_rank is None and params is not None and not self.stock:
                started = time.perf_counter()
                chosen = self.router_for(client).choose(hints, prompt, now)
                self.metrics.took("placements", time.perf_counter() - started)
        except Exception as e:
            self._failed("choice", e)
        engine = self._stock(client, request, stock, chosen)
        try:
            self.router_for(client).book(request.request_id, hints, prompt, client.core_engines.index(engine), now)
        except Exception as e:
            self._failed("booking", e)
        return engine

    def seen(self, outputs: Any) -> None:
        """Outputs came back from an engine."""
        if self.router is None:
            return
        try:
            now = clock.seconds()
            for o in outputs.outputs:
                self.router.output(o.request_id, len(o.new_token_ids), o.finish_reason is not None, now)
            for request_id in outputs.finished_requests or ():
                self.router.gone(request_id, now)
        except Exception as e:
            self._failed("outputs", e)

    def stopped(self, names: list[str]) -> None:
        """Answers ended by a stop string; their engines will be told to take the requests out."""
        if self.router is not None:
            for name in names:
                self.router.stopped(name)

    def _stock(self, client: Any, request: Any, stock: Any, chosen: int | None) -> Any:
        if chosen is None:
            return stock(client, request)
        request.data_parallel_rank = chosen
        try:
            return stock(client, request)
        finally:
            request.data_parallel_rank = None

    def _failed(self, what: str, e: Exception) -> None:
        cause = f"fallback/placement/{what} {type(e).__name__}"
        self.metrics.counts[cause] += 1
        if self.metrics.counts[cause] in (1, 10, 100) or self.metrics.counts[cause] % 1000 == 0:
            log.error("saga-rl placement: %s; vLLM's own choice serves (%d times so far)", cause,
                      self.metrics.counts[cause], exc_info=e)

    def _state(self) -> dict[str, Any]:
        r = self.router
        if r is None:
            return {}
        return {"migrations": r.migrations, "chains": len(r.tracker), "homed": [e.homed for e in r.engines],
                "engines live": sum(not e.lost for e in r.engines),
                **{f"fallback/placement/{k}": v for k, v in dict(r.guard.fallbacks).items()}}
