"""The scheduler class that vLLM runs: `--scheduler-cls saga_rl.runtime.scheduler.SagaScheduler`.

`SagaMixin` owns no policy. It keeps the tracker and the tenants' service informed (arrive, schedule, preempt, finish,
abort), says whose blocks are being released, tells policies with memory, and puts three parts of its own in vLLM's
places: the block queue (eviction), the waiting queue (ordering) and a question before a waiting request gets blocks
(admission). Everything else is vLLM's scheduler. What is told when is what the simulator does (`sim.engine`).

Tried with vLLM 0.28 - 0.32; `versions.check_scheduler_hooks` refuses others before anything is replaced.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from saga_rl.errors import UserError
from saga_rl.policies import chains as ch
from saga_rl.policies.base import PolicySet
from saga_rl.policies.features import BEGIN, RELEASE
from saga_rl.runtime import versions
from saga_rl.runtime.admission import Admission
from saga_rl.runtime.block_queue import PolicyBlockQueue
from saga_rl.runtime.config import SagaConfig, policies_of, read_config
from saga_rl.runtime.floors import Floors
from saga_rl.runtime.hints import read_hints
from saga_rl.runtime.metrics import Metrics
from saga_rl.runtime.recorder import Recorder
from saga_rl.runtime.request_queue import EPOCH_S, PolicyRequestQueue
from saga_rl.runtime.snapshot import snapshot
from saga_rl.runtime.swap import swap
from saga_rl.runtime.tenants import Service
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
        self.rules = config.constraints
        self.service = Service(self.tracker, self.rules.service_gap_tokens)
        self.now = self.clock()
        self._served: dict[str, Served] = {}
        self._epoch_s = self._yielded_s = self._next_forget = -math.inf
        self._preempting: Request | None = None
        self._lost_tokens: dict[str, int] = {}
        self.shown = config.policy if isinstance(config.policy, str) else str(config.policy)
        """What an operator calls the policies in force."""
        self._install(config)
        self.recorder = None if config.record is None else Recorder(
            config.record, self.engine, config.record_key, self._hash_block(), time.time() - self.now,
            {"vllm": version, "policies": self.policies.names()})
        self.metrics.start()

    def _install(self, config: SagaConfig) -> None:
        manager: Any = self.kv_cache_manager
        pool = manager.block_pool
        blocks = pool.num_gpu_blocks - 1  # one is vLLM's null block
        victims = Victims(self.tracker, self.policies.eviction, self.block_size, blocks, config.budget_s,
                          self._queue_positions, self.policies.admission)
        self.block_queue = PolicyBlockQueue(pool.free_block_queue, pool.num_gpu_blocks, victims,
                                            pool._maybe_evict_cached_block)
        pool.free_block_queue = self.block_queue
        if any(self.rules.kv_floors.values()):
            self.block_queue.floors = Floors(self.rules.kv_floors, self.tracker.tenants.codes, blocks,
                                             self.block_queue.runs, self._pinned)
        self.admission = Admission(self.tracker, self.policies.admission, self.block_queue, self.block_size, blocks,
                                   config.budget_s)
        if self._orders():
            self.waiting = self._policy_queue()
        self._stock_allocate: Callable[..., Any] = manager.allocate_slots
        manager.allocate_slots = self._allocate
        warm_up(self.tracker, self.block_queue, self.admission, self.service)

    def _orders(self) -> bool:
        """Whether the waiting queue must be ours: for the ordering policy or for a rule between tenants."""
        return (self.policies.ordering.name != "fcfs" or math.isfinite(self.rules.service_gap_tokens)
                or math.isfinite(self.rules.afs_preempt_s))

    def _policy_queue(self) -> PolicyRequestQueue:
        return PolicyRequestQueue(
            self.tracker, self.policies.ordering, self.saga_config.budget_s, lambda r: self._served[r.request_id],
            lambda: self.now, self.service, lambda: self.block_queue.runs.owned, self.block_size,
            math.isfinite(self.rules.afs_preempt_s))

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
            served = self._served[request.request_id] = self.tracker.arrive(hints, now, request.num_prompt_tokens)
            self.service.queued(served)
            self.block_queue.victims.returned(served.chain)
        super().add_request(request)

    def _allocate(self, request: Request, num_new_tokens: int, num_new_computed_tokens: int = 0, *args: Any,
                  delay_cache_blocks: bool = False, **kwargs: Any) -> Any:
        """`KVCacheManager.allocate_slots`. A request that waits is first shown to the admission policy; floors are kept
        for any (`policies.constraints`), unless nothing else runs that could make room."""

        def stock() -> Any:
            return self._stock_allocate(request, num_new_tokens, num_new_computed_tokens, *args,
                                        delay_cache_blocks=delay_cache_blocks, **kwargs)

        served, queue = self._served.get(request.request_id), self.block_queue
        if served is None:
            return stock()
        waits = request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
        queue.tenant, queue.withhold = served.tenant, len(self.running) > (0 if waits else 1)
        try:
            if not waits:
                return stock()
            cached = num_new_computed_tokens // self.block_size
            if request.num_computed_tokens == 0 and not self._admits(request, served, cached):
                return None
            if delay_cache_blocks:  # an asynchronous load of KV: it is scheduled when that has come
                return stock()
            found = (request.num_computed_tokens + num_new_computed_tokens
                     + kwargs.get("num_external_computed_tokens", 0))
            queue.before_taking = lambda: self._begins(request, served, found)
            blocks = stock()
            if blocks is not None:
                if queue.before_taking is not None:  # no block had to be taken
                    self._begins(request, served, found)
                if queue.victims.policy.memory:
                    self._tell(BEGIN, served.chain, cached, -(-request.num_tokens // self.block_size))
            return blocks
        finally:
            queue.tenant, queue.withhold, queue.before_taking = None, False, None

    def _begins(self, request: Request, served: Served, found_tokens: int) -> None:
        """The request gets its first blocks, perhaps again."""
        if math.isnan(served.scheduled_s):
            served.cached_tokens = found_tokens
            self.service.left(served, True)
            self.service.charge(served, request.num_tokens - found_tokens, 0)
            had = min(int(self.tracker.chains[served.chain, ch.CONTEXT]), request.num_tokens) - 1
        else:
            self.service.left(served, True)
            had = self._lost_tokens.pop(request.request_id, 0)
        self.metrics.counts["recomputed tokens"] += max(had // self.block_size * self.block_size - found_tokens, 0)
        self.tracker.schedule(served, self.now)
        if isinstance(self.waiting, PolicyRequestQueue) and self.waiting.urgent is request:
            self.waiting.urgent = None
        self.admission.let_in(found_tokens // self.block_size, -(-request.num_tokens // self.block_size))

    def _admits(self, request: Request, served: Served, cached_blocks: int) -> bool:
        policy = self.policies.admission
        if policy.name == "none" or not (self.running or policy.memory):
            return True
        started = time.perf_counter()
        running = ((r, self._served[r.request_id]) for r in self.running if r.request_id in self._served)
        self.admission.look(request, served, cached_blocks, running, self.now)
        yes = not self.running or self.admission.admits()
        self.metrics.took("admission", time.perf_counter() - started)
        self.metrics.counts["admission held"] += not yes
        return yes

    def _tell(self, event: int, chain: int, blocks: float, total: float) -> None:
        """Tell an eviction policy with memory what happened to a chain just now."""
        queue = self.block_queue
        queue.victims.tell(chain, self.now, self.now, queue.runs.owned_by(chain), event, blocks, total)

    def _released(self, chain: int) -> None:
        if self.block_queue.victims.policy.memory:
            owned = self.block_queue.runs.owned_by(chain)
            self._tell(RELEASE, chain, owned, owned)

    def _pinned(self) -> Counter[int]:
        """Blocks of running requests by tenant's code."""
        out: Counter[int] = Counter()
        for r in self.running:
            served = self._served.get(r.request_id)
            if served is not None:
                out[served.tenant] += sum(map(len, self.kv_cache_manager.get_blocks(r.request_id).blocks))
        return out

    def _update_request_with_output(self, request: Request, new_token_ids: list[int], *args: Any,
                                    **kwargs: Any) -> tuple[list[int], bool]:
        served = self._served.get(request.request_id)
        if served is not None and math.isnan(served.first_token_s):
            served.first_token_s = self.now
        tokens, stopped = super()._update_request_with_output(request, new_token_ids, *args, **kwargs)
        if served is not None:
            self.service.charge(served, 0, len(tokens))
        return tokens, stopped

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self._preempting = request
        self._lost_tokens[request.request_id] = request.num_computed_tokens
        self.metrics.counts["preemptions"] += 1
        super()._preempt_request(request, *args, **kwargs)

    def _free_request_blocks(self, request: Request) -> None:
        served = self._served.get(request.request_id)
        tables = self.kv_cache_manager.get_blocks(request.request_id).blocks
        before = self.block_queue.begin_release(NOBODY if served is None else served.chain)
        super()._free_request_blocks(request)
        self.block_queue.end_release(before, tables)
        if request is self._preempting:  # vLLM queues it again right after this: the order sees that it was preempted
            self._preempting = None
            if served is not None:
                self.tracker.preempt(served, self.now)
                self._released(served.chain)
                self.service.queued(served)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        out = super()._free_request(request, *args, **kwargs)
        served = self._served.pop(request.request_id, None)
        self._lost_tokens.pop(request.request_id, None)
        if served is None:
            return out
        self.service.left(served, False)
        if isinstance(self.waiting, PolicyRequestQueue) and self.waiting.urgent is request:
            self.waiting.urgent = None
        if request.status in _LOST:
            self.tracker.abort(served, self.now)
            self._released(served.chain)
            if self.recorder is not None:
                self.recorder.dropped(request.status.name.removeprefix("FINISHED_").lower())
            return out
        self.tracker.finish(served, self.now, request.num_output_tokens)
        self._released(served.chain)
        if self.recorder is not None:
            full = (request.num_tokens - 1) // self._hash_block()  # the last token's KV is never computed
            self.recorder.finished(served, self.now, request.num_output_tokens, request.block_hashes[:full])
        return out

    # ------------------------------------------------------------------ steps
    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        started, now = time.perf_counter(), self._tick()
        if now - self._epoch_s >= EPOCH_S:
            self._epoch(now)
        if self.policies.eviction.drop_expired:
            self.block_queue.drop_past_ttl()
        out = super().schedule(*args, **kwargs)
        self.metrics.took("schedule", time.perf_counter() - started)
        return out

    def _epoch(self, now: float) -> None:
        self._epoch_s = now
        owners = self.block_queue.runs.owners()
        self.metrics.counts["expired"] += self.tracker.expire(now, owners)
        if isinstance(self.waiting, PolicyRequestQueue):
            self.waiting.refresh(now)
            if math.isfinite(self.rules.afs_preempt_s):
                self._yield(self.waiting, now)
        if now >= self._next_forget:
            self._next_forget = now + FORGET_S
            self.tracker.forget(now, owners)

    def _yield(self, waiting: PolicyRequestQueue, now: float) -> None:
        """SAGA section 7: a request that has waited for too long makes one of a tenant with a lower share yield. Both
        as the simulator chooses them; the preemption is vLLM's own."""
        patience = self.rules.afs_preempt_s
        if now - self._yielded_s < patience:
            return  # the last one has not had its turn yet
        late = [r for r in waiting if r.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
                and now - self._served[r.request_id].queued_s > patience and waiting.may_be_served(r)]
        running = [r for r in self.running if r.status == RequestStatus.RUNNING and r.request_id in self._served]
        if not late or not running:
            return
        urgent = max(late, key=waiting.share)
        victim = min(reversed(running), key=waiting.share)  # of equals the one scheduled last
        if waiting.share(victim) >= waiting.share(urgent):
            return
        self.running.remove(victim)
        self._served[victim.request_id].yields += 1
        self.metrics.counts["afs preemptions"] += 1
        self._preempt_request(victim, time.monotonic())
        self.prev_step_scheduled_req_ids.discard(victim.request_id)  # it may be scheduled again in this very step
        waiting.urgent, self._yielded_s = urgent, now

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

    # ------------------------------------------------------------------ asked and told from outside
    def told(self, notes: Iterable[Mapping[str, Any]]) -> int:
        """What answers called, or that sessions are over (`Tracker.told`). Returns how many notes applied; what is not
        a note is counted."""
        self._tick()
        applied = 0
        for note in notes:
            try:
                applied += self.tracker.told(note)
            except (AttributeError, TypeError, ValueError, OverflowError):
                self.metrics.counts["notes unread"] += 1
        self.metrics.counts["notes"] += applied
        return applied

    def swap(self, policies: PolicySet, shown: str) -> None:
        """Other policies from the next step on, see `runtime.swap`. Raises before anything is changed."""
        swap(self, policies, shown)

    def snapshot(self) -> dict[str, Any]:
        """The engine in numbers, see `runtime.snapshot`."""
        return snapshot(self)

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
        floors = {} if queue.floors is None else {"floor breaks": queue.floors.breaks}
        spread = {"service gap": self.service.spread} if len(self.tracker.tenants.codes) > 1 else {}
        return {**evicted, **fallbacks, **floors, **spread, "chains": len(self.tracker)}


class SagaScheduler(SagaMixin, AsyncScheduler):
    """For servers: vLLM's asynchronous scheduler with our policies."""


class SagaSyncScheduler(SagaMixin, Scheduler):
    """For tests and `--no-async-scheduling`: the same over the synchronous scheduler."""
