"""The scheduler class that vLLM runs: `--scheduler-cls saga_rl.runtime.engine.scheduler.SagaScheduler`.

`SagaMixin` owns no policy. It keeps the tracker and the tenants' service informed (arrive, schedule, preempt, finish,
abort), says whose blocks are being released, tells policies with memory, and puts three parts of its own in vLLM's
places: the block queue (eviction), the waiting queue (ordering) and a question before a waiting request gets blocks
(admission). Everything else is vLLM's scheduler. What is told when is what the simulator does (`sim.engine.batching`).

Tried with vLLM 0.28 - 0.33; `versions.check_scheduler_hooks` refuses others before anything is replaced.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from saga_rl.policies.base import PolicySet
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.config import versions
from saga_rl.runtime.config.ours import STOPPED
from saga_rl.runtime.config.safe import Failures
from saga_rl.runtime.config.settings import SagaConfig, policies_of, read_config, require_free_order
from saga_rl.runtime.engine.invariants import checker
from saga_rl.runtime.engine.kv import prefix_memo
from saga_rl.runtime.engine.kv.block_queue import PolicyBlockQueue
from saga_rl.runtime.engine.kv.floored_queue import FlooredBlockQueue
from saga_rl.runtime.engine.kv.floors import Floors
from saga_rl.runtime.engine.kv.groups import groups_of
from saga_rl.runtime.engine.kv.pinned import Pinned
from saga_rl.runtime.engine.kv.seam import KvSeam
from saga_rl.runtime.engine.kv.victims import Victims
from saga_rl.runtime.engine.lifecycle import RequestLife
from saga_rl.runtime.engine.metrics import Metrics
from saga_rl.runtime.engine.preemption import order_running, yield_to_late
from saga_rl.runtime.engine.queueing.admission import Admission
from saga_rl.runtime.engine.queueing.request_queue import EPOCH_S, PolicyRequestQueue, WatchedQueue
from saga_rl.runtime.engine.queueing.tenants import Service
from saga_rl.runtime.engine.snapshot import snapshot
from saga_rl.runtime.engine.swap import swap
from saga_rl.runtime.engine.warm import warm_up
from saga_rl.runtime.recording.recorder import Recorder
from saga_rl.runtime.sessions.statistics import Keeper
from saga_rl.runtime.sessions.tracker import Served, Tracker

FORGET_S, FORGET_MOST = 60.0, 1000
"""How often rows of forgotten chains are reused, s, and how many at once (then the rest at the next epoch)."""


class SagaMixin(RequestLife):
    """Mix in ahead of one of vLLM's schedulers. `clock` gives seconds; tests replace it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = read_config(self.vllm_config.additional_config)
        self.saga_config = config
        version = versions.require_tested(config.allow_untested)
        versions.check_scheduler_hooks()
        versions.check_queue_methods(PolicyBlockQueue)
        self.policies = policies_of(config.policy)
        require_free_order(self.policies, config.constraints, self.policy.value)
        self.engine = int(getattr(self.parallel_config, "data_parallel_index", 0) or 0)
        self.metrics = Metrics(f"engine-{self.engine}", config.metrics_s, config.metrics, self._state)
        self.lazy: list[Any] = []
        """Managers of tiers that hold what the GPU is about to lose."""
        self._failed = Failures(self.metrics.counts)
        self.tracker = Tracker(config.expiry_s)
        self.rules = config.constraints
        self.service = Service(self.tracker, self.rules.service_gap_tokens)
        self.now = self.clock()
        self.served: dict[str, Served] = {}
        self._epoch_s = self.yielded_s = self._next_forget = -math.inf
        self._preempting: Request | None = None
        self.lost_tokens: dict[str, int] = {}
        self.loading: set[str] = set()
        self._tokenless: dict[str, tuple[Request, Served]] = {}
        self._unread_hints: set[str] = set()
        self.proof_keys: set[str] = set()
        self._stopped: frozenset[str] = frozenset()
        self._refused: tuple | None = None
        self._positions: tuple | None = None
        self._depth = 0
        self._check = None
        self.shown = config.policy if isinstance(config.policy, str) else str(config.policy)
        """What an operator calls the policies in force."""
        self.keeper = None if config.statistics is None else Keeper(self.tracker, config.statistics, self.engine,
                                                                    self.now)
        """Keeps what was learned of tools and agent types over restarts."""
        self._install(config)
        self.recorder = None if config.record is None else Recorder(
            config.record, self.engine, config.record_key, self._hash_block(), time.time() - self.now,
            {"vllm": version, "policies": self.policies.names()},
            rotate_bytes=int(config.record_file_mb * 2**20), rotate_s=config.record_file_s)
        self._check = checker(self, config.check)
        self.metrics.start()

    def _install(self, config: SagaConfig) -> None:
        manager: Any = self.kv_cache_manager
        self.prefix_memo = prefix_memo.install(manager)
        pool = manager.block_pool
        blocks = max(pool.num_gpu_blocks - 1, 1)  # one is vLLM's null block, all that a model without KV has
        victims = Victims(self.tracker, self.policies.eviction, self.block_size, blocks, config.budget_s,
                          self.queue_positions, self.policies.admission,
                          getattr(self, "connector", None) is not None)
        floored = any(self.rules.kv_floors.values())
        self.block_queue = (FlooredBlockQueue if floored else PolicyBlockQueue)(
            pool.free_block_queue, pool.num_gpu_blocks, victims, pool._maybe_evict_cached_block,
            groups_of(manager, self.block_size))
        pool.free_block_queue = self.block_queue
        self.pins = Pinned(self.block_queue.groups, lambda name: manager.get_blocks(name).blocks)
        self._pins_kept = floored
        self.kv = KvSeam(pool, self.block_queue)
        if self.block_queue.groups.skips:
            self.kv.watch_windows(manager.coordinator, self._owner)
        if floored:
            self.block_queue.floors = Floors(self.rules.kv_floors, self.tracker.tenants.codes, blocks, self.pinned)
        self.admission = Admission(self.tracker, self.policies.admission, self.block_queue, self.block_size, blocks,
                                   config.budget_s)
        self._stock_allocate: Callable[..., Any] = manager.allocate_slots
        self._other_queues = [q for name, q in vars(self).items() if isinstance(q, RequestQueue) and name != "waiting"]
        self.waiting = self.empty_queue()
        self.tiers = self.tie_tiers(self.policies)
        warm_up(self.tracker, self.block_queue, self.admission, self.service)

    def tie_tiers(self, policies: PolicySet) -> list[Any]:
        """CPU tiers whose cache policy is ours (`runtime.engine.offload`) choose by the eviction policy from now on."""
        connector = getattr(self, "connector", None)
        if connector is None:
            return []
        from saga_rl.runtime.engine.offload.attach import attach, lazily

        self.lazy = lazily(connector, self.block_queue)
        return [*self.lazy, *attach(
            connector, self.tracker, policies.eviction, self.block_size, self.saga_config.budget_s,
            lambda r: None if (served := self.served.get(r)) is None else served.chain, lambda: self.now)]

    def _hook(self) -> None:
        """From here to the end of the step `allocate_slots` is ours: a request that waits is looked at. What runs needs
        none of ours (except under floors), so a step in which nobody waits costs nothing a request."""
        self.kv_cache_manager.allocate_slots = self._allocate  # type: ignore[method-assign]

    def empty_queue(self) -> RequestQueue:
        """An empty waiting queue of the kind that the policies in force want."""
        if self._orders():
            return self._policy_queue()
        return WatchedQueue(self._hook) if self.policy == SchedulingPolicy.FCFS else self.waiting

    def _orders(self) -> bool:
        """Whether the waiting queue must be ours: for the ordering policy or for a rule between tenants."""
        return (self.policies.ordering.name != "fcfs" or math.isfinite(self.rules.service_gap_tokens)
                or math.isfinite(self.rules.afs_preempt_s))

    def _policy_queue(self) -> PolicyRequestQueue:
        return PolicyRequestQueue(
            self.tracker, self.policies.ordering, self.saga_config.budget_s, lambda r: self.served.get(r.request_id),
            lambda: self.now, self.service, lambda: self.block_queue.runs.owned, self.block_size,
            math.isfinite(self.rules.afs_preempt_s), self._hook, self.saga_config.starve_s)

    def arrival(self, request: Request) -> int:
        """Its place among all that ever came; what we know nothing of goes first."""
        served = self.served.get(request.request_id)
        return 0 if served is None else served.number

    # ------------------------------------------------------------------ steps
    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        started, now = time.perf_counter(), self._tick()
        self._depth += 1
        self.admission.new_step()
        try:
            try:
                self._before_step(now)
            except Exception:
                self._failed("step")
            out = super().schedule(*args, **kwargs)
        finally:
            self._depth -= 1
            self.kv_cache_manager.allocate_slots = self._stock_allocate  # type: ignore[method-assign]
        self.metrics.took("schedule", time.perf_counter() - started)
        self._checked("schedule")
        return out

    def _before_step(self, now: float) -> None:
        if now - self._epoch_s >= EPOCH_S:
            self._epoch(now)
        if self.policies.eviction.drop_expired:
            self.block_queue.drop_past_ttl()
        if self.block_queue.floors is None:
            self._pins_kept = False
        elif not self._pins_kept:  # floors are back in force
            self._count_pins()
            self._pins_kept = True
        waiting = self.waiting
        if self.saga_config.preempt_by_policy and isinstance(waiting, PolicyRequestQueue):
            order_running(self, waiting)
        if (self.block_queue.floors is not None or any(self._other_queues)
                or not (isinstance(waiting, PolicyRequestQueue | WatchedQueue))):
            self._hook()

    def _epoch(self, now: float) -> None:
        self._epoch_s = now
        owners = self.kv.owners()
        self.metrics.counts["expired"] += self.tracker.expire(now, owners)
        self.tracker.heard.leave_silent(self.tracker.chains, now, self.tracker.expiry_s)
        if isinstance(self.waiting, PolicyRequestQueue):
            self.waiting.refresh(now)
            # In a pause nobody begins: who yields would not come back, and the pause waits for the end of what runs.
            if math.isfinite(self.rules.afs_preempt_s) and not getattr(self, "_pause_state", 0):
                yield_to_late(self, self.waiting, now)
        if self.keeper is not None:
            self.keeper.maybe(now)
        if now >= self._next_forget:
            gone = self.tracker.forget(now, owners, FORGET_MOST)
            self._next_forget = now + (FORGET_S if len(gone) < FORGET_MOST else 0.0)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        now, self.service.stale = self._tick(), True
        self._depth += 1
        try:
            out = super().update_from_output(*args, **kwargs)
        finally:
            self._depth -= 1
            self.service.stale = True
        for name, (request, served) in [*self._tokenless.items()] if self._tokenless else ():
            if request.num_output_tokens:
                served.first_token_s = now
                del self._tokenless[name]
        self._checked("update_from_output")
        return out

    def finish_requests(self, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Besides names, `request_ids` may hold marks (`ours.STOPPED`): stop strings are found in the API server, which
        can only abort what has ended by one."""
        self._tick()
        names = [] if request_ids is None or isinstance(request_ids, str) else list(request_ids)
        marks = [name for name in names if name.startswith(STOPPED)]
        if marks:
            request_ids = [name for name in names if not name.startswith(STOPPED)]
            self._stopped = frozenset(mark.removeprefix(STOPPED) for mark in marks)
        try:
            out = super().finish_requests(request_ids, *args, **kwargs)
        finally:
            self._stopped = frozenset()
        self._checked("finish_requests")
        return out

    def shutdown(self) -> None:
        if self.recorder is not None:
            self.recorder.close()
        if self.keeper is not None:
            self.keeper.close()
        self.metrics.stop()
        super().shutdown()

    # ------------------------------------------------------------------ from outside
    def apply_notes(self, notes: Iterable[Mapping[str, Any]]) -> int:
        """What answers called, or that sessions are over (`Tracker.apply_note`). Returns how many notes applied; what
        is not a note is counted."""
        self._tick()
        applied = 0
        for note in notes:
            try:
                applied += self.tracker.apply_note(note)
            except (AttributeError, TypeError, ValueError, OverflowError):
                self.metrics.counts["notes unread"] += 1
        self.metrics.counts["notes"] += applied
        return applied

    def swap(self, policies: PolicySet, shown: str) -> None:
        """Other policies from the next step on, see `runtime.engine.swap`. Raises before anything is changed."""
        swap(self, policies, shown)

    def snapshot(self) -> dict[str, Any]:
        """The engine in numbers, see `runtime.engine.snapshot`."""
        return snapshot(self)

    def queue_positions(self) -> None:
        """How many requests stand ahead of each that waits, in the queue's order."""
        waiting = self.waiting
        if not waiting:
            return
        mark = self.tracker.version, waiting.changes if isinstance(waiting, PolicyRequestQueue) else len(waiting)
        if mark == self._positions:
            return
        self._positions = mark
        rows = self.tracker.chains
        chains = np.array([served.chain for r in waiting if (served := self.served.get(r.request_id)) is not None],
                          np.int64)
        chains = chains[rows[chains, ch.WAITING] == 1]
        rows[chains, ch.QPOS] = np.arange(len(chains))

    def _state(self) -> dict[str, Any]:
        queue = self.block_queue
        guards = (queue.victims.guard, self.admission.guard, getattr(self.waiting, "guard", None))
        fallbacks = {f"fallback/{g.policy.decision}/{cause}": n for g in guards if g is not None
                     for cause, n in dict(g.fallbacks).items()}
        evicted = {f"evicted/{k}": v for k, v in dict(queue.evicted).items()}
        floors = {} if queue.floors is None else {"floor breaks": queue.floors.breaks}
        spread = {"service gap": self.service.spread} if len(self.tracker.tenants.codes) > 1 else {}
        kept = {} if self.keeper is None else {"statistics saved": self.keeper.saves,
                                               "failed/statistics": self.keeper.failures}
        recorded = {} if self.recorder is None else {
            f"record/{k}": n for k, n in {**self.recorder.counts, **self.recorder.lost}.items()}
        tiers: Counter[str] = sum((Counter(t.counts) for t in self.tiers), Counter())
        return {**evicted, **fallbacks, **floors, **spread, **kept, **recorded,
                **{f"cpu tier/{k}": n for k, n in tiers.items()}, "chains": len(self.tracker)}


class SagaScheduler(SagaMixin, AsyncScheduler):
    """vLLM's asynchronous scheduler with our policies. Which of the two runs, vLLM decides (`launch.startup`)."""


class SagaSyncScheduler(SagaMixin, Scheduler):
    """The same over the synchronous scheduler: vLLM wants it for some drafts, with pipelines, and when told so."""
