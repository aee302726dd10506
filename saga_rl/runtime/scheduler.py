"""The scheduler class that vLLM runs: `--scheduler-cls saga_rl.runtime.scheduler.SagaScheduler`.

`SagaMixin` owns no policy. It keeps the tracker informed (arrive, schedule, preempt, finish, abort), says whose blocks
are being released, and puts three parts of its own in vLLM's places: the block queue (eviction), the waiting queue
(ordering) and a question before a waiting request gets blocks (admission). Everything else is vLLM's scheduler.

Tried with vLLM 0.28 - 0.32; `versions.check_scheduler_hooks` refuses others before anything is replaced.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from saga_rl.errors import UserError
from saga_rl.policies import chains as ch
from saga_rl.runtime import versions
from saga_rl.runtime.admission import Admission
from saga_rl.runtime.block_queue import PolicyBlockQueue
from saga_rl.runtime.config import SagaConfig, policies_of, read_config
from saga_rl.runtime.hints import read_hints
from saga_rl.runtime.metrics import Metrics
from saga_rl.runtime.recorder import Recorder
from saga_rl.runtime.request_queue import EPOCH_S, PolicyRequestQueue
from saga_rl.runtime.tracker import NOBODY, Served, Tracker
from saga_rl.runtime.victims import Victims
from saga_rl.runtime.warm import warm_up

_LOST = (RequestStatus.FINISHED_ABORTED, RequestStatus.FINISHED_IGNORED, RequestStatus.FINISHED_ERROR)
FORGET_S = 60.0


class SagaMixin(Scheduler):
    """Mix in ahead of one of vLLM's schedulers. `clock` gives seconds; tests replace it."""

    clock = staticmethod(time.monotonic)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = read_config(self.vllm_config.additional_config)
        self.saga_config = config
        version = versions.require_tested(config.allow_untested)
        versions.check_scheduler_hooks()
        versions.check_queue_methods(PolicyBlockQueue)
        self.policies = policies_of(config.policy)
        if self.policies.ordering.name != "fcfs" and self.policy != SchedulingPolicy.FCFS:
            raise UserError("--scheduling-policy", "is set beside an ordering policy of saga-rl",
                            "leave it out, or choose the ordering fcfs")
        self.engine = int(getattr(self.parallel_config, "data_parallel_index", 0) or 0)
        self.metrics = Metrics(f"engine-{self.engine}", config.metrics_s, config.metrics, self._state)
        self.tracker = Tracker(config.expiry_s)
        self.now = self.clock()
        self._served: dict[str, Served] = {}
        self._next_epoch = self._next_forget = -math.inf
        self._install(config)
        self.recorder = None if config.record is None else Recorder(
            config.record, self.engine, config.record_key, self._hash_block(), time.time() - self.now,
            {"vllm": version, "policies": self.policies.names()})
        self.metrics.start()

    def _install(self, config: SagaConfig) -> None:
        manager: Any = self.kv_cache_manager
        pool = manager.block_pool
        blocks = pool.num_gpu_blocks - 1  # one is vLLM's null block
        victims = Victims(self.tracker, self.policies.eviction, blocks, config.budget_s, self._queue_positions)
        self.block_queue = PolicyBlockQueue(pool.free_block_queue, pool.num_gpu_blocks, victims,
                                            pool._maybe_evict_cached_block)
        pool.free_block_queue = self.block_queue
        self.admission = Admission(self.tracker, self.policies.admission, self.block_queue, self.block_size, blocks,
                                   config.budget_s)
        if self.policies.ordering.name != "fcfs":
            self.waiting = PolicyRequestQueue(self.tracker, self.policies.ordering, config.budget_s,
                                              lambda r: self._served[r.request_id], lambda: self.now)
        self._stock_allocate: Callable[..., Any] = manager.allocate_slots
        manager.allocate_slots = self._allocate
        warm_up(self.tracker, victims, self.admission)

    def _hash_block(self) -> int:
        return int(getattr(self, "hash_block_size", None) or self.block_size)

    def _tick(self) -> float:
        self.now = self.block_queue.now = max(self.clock(), self.now)
        return self.now

    # ------------------------------------------------------------------ a request's life
    def add_request(self, request: Request) -> None:
        if request.request_id not in self.requests:
            now = self._tick()
            extra = request.sampling_params.extra_args if request.sampling_params is not None else None
            hints = read_hints(getattr(request, "session_id", None), extra)
            self.metrics.counts["requests"] += 1
            if hints.unread:
                self.metrics.counts["hints unread"] += hints.unread
            self._served[request.request_id] = self.tracker.arrive(hints, now, request.num_prompt_tokens)
        super().add_request(request)

    def _allocate(self, request: Request, num_new_tokens: int, num_new_computed_tokens: int = 0, *args: Any,
                  delay_cache_blocks: bool = False, **kwargs: Any) -> Any:
        """`KVCacheManager.allocate_slots`, preceded by the admission policy's say for a request that waits."""

        def stock() -> Any:
            return self._stock_allocate(request, num_new_tokens, num_new_computed_tokens, *args,
                                        delay_cache_blocks=delay_cache_blocks, **kwargs)

        served = self._served.get(request.request_id)
        if served is None or request.status not in (RequestStatus.WAITING, RequestStatus.PREEMPTED):
            return stock()
        if self.running and request.num_computed_tokens == 0 and not self._admits(request, served,
                                                                                  num_new_computed_tokens):
            return None
        if delay_cache_blocks:  # an asynchronous load of KV: it is scheduled when that has come
            return stock()
        first, started = math.isnan(served.scheduled_s), self.tracker.chains[served.chain, ch.STARTED]
        self.tracker.schedule(served, self.now)
        blocks = stock()
        if blocks is None:
            self.tracker.unschedule(served, first, started)
        elif first:
            served.cached_tokens = num_new_computed_tokens + kwargs.get("num_external_computed_tokens", 0)
        return blocks

    def _admits(self, request: Request, served: Served, cached_tokens: int) -> bool:
        if self.policies.admission.name == "none":
            return True
        started = time.perf_counter()
        running = ((r, self._served[r.request_id]) for r in self.running if r.request_id in self._served)
        yes = self.admission.admits(request, served, cached_tokens // self.block_size, running, self.now)
        self.metrics.took("admission", time.perf_counter() - started)
        self.metrics.counts["admission held"] += not yes
        return yes

    def _update_request_with_output(self, request: Request, new_token_ids: list[int], *args: Any,
                                    **kwargs: Any) -> tuple[list[int], bool]:
        served = self._served.get(request.request_id)
        if served is not None and math.isnan(served.first_token_s):
            served.first_token_s = self.now
        return super()._update_request_with_output(request, new_token_ids, *args, **kwargs)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        served = self._served.get(request.request_id)
        if served is not None:  # ahead of vLLM's part, which queues it again: the order sees that it was preempted
            self.tracker.preempt(served, self.now)
        self.metrics.counts["preemptions"] += 1
        super()._preempt_request(request, *args, **kwargs)

    def _free_request_blocks(self, request: Request) -> None:
        served = self._served.get(request.request_id)
        tables = self.kv_cache_manager.get_blocks(request.request_id).blocks
        before = self.block_queue.begin_release(NOBODY if served is None else served.chain)
        super()._free_request_blocks(request)
        self.block_queue.end_release(before, tables)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        out = super()._free_request(request, *args, **kwargs)
        served = self._served.pop(request.request_id, None)
        if served is None:
            return out
        if request.status in _LOST:
            self.tracker.abort(served, self.now)
            if self.recorder is not None:
                self.recorder.dropped(request.status.name.removeprefix("FINISHED_").lower())
            return out
        self.tracker.finish(served, self.now, request.num_output_tokens)
        if self.recorder is not None:
            full = (request.num_tokens - 1) // self._hash_block()  # the last token's KV is never computed
            self.recorder.finished(served, self.now, request.num_output_tokens, request.block_hashes[:full])
        return out

    # ------------------------------------------------------------------ steps
    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        started, now = time.perf_counter(), self._tick()
        if now >= self._next_epoch:
            self._epoch(now)
        if self.policies.eviction.drop_expired:
            self.block_queue.drop_past_ttl()
        out = super().schedule(*args, **kwargs)
        self.metrics.took("schedule", time.perf_counter() - started)
        return out

    def _epoch(self, now: float) -> None:
        self._next_epoch = now + EPOCH_S
        owners = self.block_queue.owners()
        self.metrics.counts["expired"] += self.tracker.expire(now, owners)
        if isinstance(self.waiting, PolicyRequestQueue):
            self.waiting.refresh(now)
        if now >= self._next_forget:
            self._next_forget = now + FORGET_S
            self.tracker.forget(now, owners)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        self._tick()
        return super().update_from_output(*args, **kwargs)

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        self._tick()
        return super().finish_requests(*args, **kwargs)

    def shutdown(self) -> None:
        if self.recorder is not None:
            self.recorder.close()
        self.metrics.stop()
        super().shutdown()

    def _queue_positions(self) -> None:
        """How many requests stand ahead of each that waits, in the queue's order."""
        rows, ahead = self.tracker.chains, itertools.count()
        for request in self.waiting:
            served = self._served.get(request.request_id)
            if served is not None and rows[served.chain, ch.WAITING] == 1:
                rows[served.chain, ch.QPOS] = next(ahead)

    def _state(self) -> dict[str, Any]:
        queue = self.block_queue
        guards = (queue.victims.guard, self.admission.guard, getattr(self.waiting, "guard", None))
        fallbacks = {f"fallback/{g.policy.seam}/{cause}": n for g in guards if g is not None
                     for cause, n in dict(g.fallbacks).items()}
        evicted = {f"evicted/{k}": v for k, v in dict(queue.evicted).items()}
        return {**evicted, **fallbacks, "chains": len(self.tracker)}


class SagaScheduler(SagaMixin, AsyncScheduler):
    """For servers: vLLM's asynchronous scheduler with our policies."""


class SagaSyncScheduler(SagaMixin, Scheduler):
    """For tests and `--no-async-scheduling`: the same over the synchronous scheduler."""
