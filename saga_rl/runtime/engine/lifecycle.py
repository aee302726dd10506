"""What happens to one request in vLLM's scheduler, told to the tracker, the tenants' service and the block queue.

The base of `scheduler.SagaMixin`, which makes everything that is used here. A hook of ours that fails is counted
(`failed/WHERE`) and logged, and vLLM goes on.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from saga_rl.policies.base import PolicySet
from saga_rl.policies.features import BEGIN, RELEASE
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.config import clock
from saga_rl.runtime.config.safe import Failures
from saga_rl.runtime.config.settings import SagaConfig
from saga_rl.runtime.engine.invariants import Checker
from saga_rl.runtime.engine.kv.block_queue import PolicyBlockQueue
from saga_rl.runtime.engine.kv.pinned import Pinned
from saga_rl.runtime.engine.kv.seam import KvSeam
from saga_rl.runtime.engine.metrics import Metrics
from saga_rl.runtime.engine.queueing.admission import Admission
from saga_rl.runtime.engine.queueing.request_queue import WAITS, PolicyRequestQueue
from saga_rl.runtime.engine.queueing.tenants import Service
from saga_rl.runtime.recording.recorder import Recorder
from saga_rl.runtime.sessions.hints import read_hints
from saga_rl.runtime.sessions.tracker import NOBODY, Served, Tracker

log = logging.getLogger("vllm.saga_rl")
_LOST = (RequestStatus.FINISHED_ABORTED, RequestStatus.FINISHED_IGNORED, RequestStatus.FINISHED_ERROR)


class RequestLife(Scheduler):
    """`clock` gives seconds; tests replace it."""

    clock = staticmethod(clock.seconds)
    saga_config: SagaConfig
    policies: PolicySet
    metrics: Metrics
    tracker: Tracker
    service: Service
    block_queue: PolicyBlockQueue
    kv: KvSeam
    pins: Pinned
    admission: Admission
    recorder: Recorder | None
    now: float
    served: dict[str, Served]
    _stock_allocate: Callable[..., Any]
    _failed: Failures
    _check: Checker | None
    _depth: int
    """How many of vLLM's calls we are in: nothing is checked in the middle of one."""
    _epoch_s: float
    _preempting: Request | None
    lost_tokens: dict[str, int]
    """Tokens that preempted requests had computed."""
    lazy: list[Any]
    loading: set[str]
    """Requests that have blocks and wait for their KV to come into them."""
    _other_queues: list[RequestQueue]
    """vLLM's own queues beside `waiting`: of requests that wait for something else than a place."""
    _tokenless: dict[str, tuple[Request, Served]]
    """Requests that have begun and have no token yet."""
    _unread_hints: set[str]
    proof_keys: set[str]
    """Secrets of API servers that tell tenants apart: a tenant counts with a proof made with one (`hints.proof_of`)."""
    _stopped: frozenset[str]
    """Requests that are being taken out because their answer has ended: by a stop string, or as their input did."""
    _refused: tuple | None
    """What the last refusal of a steady admission policy was about."""

    def _tick(self) -> float:
        self.now = self.block_queue.now = max(self.clock(), self.now)
        return self.now

    def _hash_block(self) -> int:
        return int(getattr(self, "hash_block_size", None) or self.block_size)

    def _checked(self, after: str) -> None:
        if self._check is not None and not self._depth:
            self._check(after)

    def add_request(self, request: Request) -> None:
        if request.request_id not in self.requests:
            try:
                self._arrives(request, self._tick())
            except Exception:
                self._failed("arrival")
        elif not getattr(request, "resumable", False):  # the end of a streaming input, which vLLM takes for an abort
            self._stopped = frozenset({request.request_id})
        try:
            super().add_request(request)
        finally:
            self._stopped = frozenset()
        self._checked("add_request")

    def _arrives(self, request: Request, now: float) -> None:
        extra = request.sampling_params.extra_args if request.sampling_params is not None else None
        hints = read_hints(getattr(request, "session_id", None), extra, self.proof_keys)
        self.metrics.counts["requests"] += 1
        if hints.unread:
            self.metrics.counts["hints unread"] += len(hints.unread)
            for key in set(hints.unread) - self._unread_hints:
                self._unread_hints.add(key)
                log.warning("saga-rl: a request's %s is %.80r and cannot be read; said once, counted each time (hints "
                            "unread)", key, (extra or {}).get(key))
        served = self.served[request.request_id] = self.tracker.arrive(hints, now, request.num_prompt_tokens)
        self.service.queued(served)
        self.block_queue.victims.returned(served.chain)

    @property
    def busy(self) -> bool:
        """Whether something runs, or will as soon as its KV has come: an engine without either is idle and admits.
        While vLLM takes requests from a queue of its own, loads may stand there behind the one that is looked at. vLLM
        does not reach them before that one has started, so they are no reason to hold it back."""
        return bool(self.running or (self.loading and not any(self._other_queues)))

    def _allocate(self, request: Request, num_new_tokens: int, num_new_computed_tokens: int = 0, *args: Any,
                  delay_cache_blocks: bool = False, **kwargs: Any) -> Any:
        """`KVCacheManager.allocate_slots`. A request that waits is first shown to the admission policy; floors are kept
        for any (`policies.constraints`), unless nothing else runs that could make room."""

        def stock() -> Any:
            return self._stock_allocate(request, num_new_tokens, num_new_computed_tokens, *args,
                                        delay_cache_blocks=delay_cache_blocks, **kwargs)

        served, queue = self.served.get(request.request_id), self.block_queue
        if served is None:
            return stock()
        if request.status not in WAITS:
            return stock() if queue.floors is None else self._grow(request, served, num_new_tokens, stock, kwargs)
        self.loading.discard(request.request_id)
        queue.tenant, queue.withhold = served.tenant, self.busy
        if queue.floors is not None:
            queue.at_least = self._wanted(request.num_tokens + num_new_tokens, kwargs)
        try:
            if self.running and isinstance(self.waiting, PolicyRequestQueue) and self.waiting.holds_back(request):
                self.metrics.counts["held for an adapter"] += 1
                return None
            cached = num_new_computed_tokens // self.block_size
            fresh = request.num_computed_tokens == 0  # else the KV that it waited for has come
            if fresh and not self._admits(request, served, cached):
                return None
            if self.lazy:
                wanted = (num_new_tokens + kwargs.get("num_external_computed_tokens", 0)) // self.block_size
                if not all(tier.ready(wanted) for tier in self.lazy):
                    self.metrics.counts["held for a copy"] += 1
                    return None
            if delay_cache_blocks:  # an asynchronous load of KV: it is scheduled when that has come
                blocks = stock()
                if blocks is not None:
                    self._found_below(request, served, cached, kwargs)
                    self.loading.add(request.request_id)
                self.pins.update(request.request_id, served.tenant)
                return blocks
            found = (request.num_computed_tokens + num_new_computed_tokens
                     + kwargs.get("num_external_computed_tokens", 0))
            queue.before_taking = lambda: self._begins(request, served, found)
            blocks = stock()
            if blocks is not None:
                if fresh:
                    self._found_below(request, served, cached, kwargs)
                if queue.floors is not None:
                    self.pins.update(request.request_id, served.tenant)
                if queue.before_taking is not None:  # no block had to be taken
                    queue.before_taking()
                if queue.victims.policy.memory:
                    self._notify(BEGIN, served.chain, cached, -(-request.num_tokens // self.block_size))
            return blocks
        finally:
            queue.tenant, queue.withhold, queue.before_taking = None, False, None

    def _found_below(self, request: Request, served: Served, cached_blocks: int, kwargs: Mapping[str, Any]) -> None:
        """A waiting request got its blocks: note what memory below the GPU's has of its context."""
        try:
            found = kwargs.get("num_external_computed_tokens", 0) // self.block_size
            self.admission.found_below(request, served, cached_blocks, found, self.now)
        except Exception:
            self._failed("tier")

    def _grow(self, request: Request, served: Served, new_tokens: int, stock: Callable[[], Any],
              kwargs: Mapping[str, Any]) -> Any:
        """`stock` for a request that runs, under floors. Most need no block, and are told so without a count."""
        queue, name = self.block_queue, request.request_id
        tokens = new_tokens + kwargs.get("num_lookahead_tokens", 0)
        if len(queue.groups.tokens) > 1:
            queue.at_least = self._wanted(tokens, kwargs)
        else:
            queue.at_least = -(-(request.num_computed_tokens + tokens) // queue.groups.block) - self.pins.of(name)
        queue.tenant, queue.withhold = served.tenant, len(self.running) > 1
        try:
            blocks = stock()
        finally:
            queue.tenant, queue.withhold = None, False
        if blocks is not None and any(blocks.blocks):
            self.pins.update(name, served.tenant)
        return blocks

    def _wanted(self, tokens: int, kwargs: Mapping[str, Any]) -> float:
        """At most so many blocks are what `allocate_slots` can ask for, for so many tokens and what it is told of."""
        tokens += kwargs.get("num_lookahead_tokens", 0)
        spare = kwargs.get("reserved_blocks", 0) + getattr(self.kv_cache_manager, "watermark_blocks", 0)
        return float((np.ceil(tokens / self.block_queue.groups.tokens) + 2).sum()) + spare

    def _begins(self, request: Request, served: Served, found_tokens: int) -> None:
        """The request gets its first blocks, perhaps again."""
        try:
            self.service.left(served, True)
            if math.isnan(served.scheduled_s):
                served.cached_tokens = found_tokens
                self._tokenless[request.request_id] = request, served
                self.service.begins(request, served, request.num_tokens - found_tokens)
                had = min(int(self.tracker.chains[served.chain, ch.CONTEXT]), request.num_tokens) - 1
            else:
                had = self.lost_tokens.pop(request.request_id, 0)
            again = max(had // self.block_size * self.block_size - found_tokens, 0)
            self.metrics.counts["recomputed tokens"] += again
            self.tracker.schedule(served, self.now)
            if isinstance(self.waiting, PolicyRequestQueue) and self.waiting.urgent is request:
                self.waiting.urgent = None
            self.admission.let_in(found_tokens // self.block_size, -(-request.num_tokens // self.block_size))
        except Exception:
            self._failed("start of a request")

    def _admits(self, request: Request, served: Served, cached_blocks: int) -> bool:
        policy = self.policies.admission
        if policy.name == "none" or not (self.busy or policy.memory):
            return True
        queue = self.block_queue
        mark = request.request_id, self.tracker.version, queue.taken, self._epoch_s
        if policy.steady and mark == self._refused:
            yes = False  # nothing has changed that could make it another answer
        else:
            started = time.perf_counter()
            try:
                self.admission.make_row(request, served, cached_blocks, self.running, self.served, self.now)
                yes = not self.busy or self.admission.admits()
            except Exception:
                self._failed("admission")
                yes = True
            self.metrics.took("admission", time.perf_counter() - started)
        if not yes and self.now - served.since_s > self.saga_config.starve_s:
            yes = True
            self.metrics.counts["let in starving"] += 1
        self._refused = None if yes else mark
        self.metrics.counts["admission held"] += not yes
        return yes

    def _notify(self, event: int, chain: int, blocks: float, total: float) -> None:
        """Notify an eviction policy with memory of what happened to a chain just now."""
        queue = self.block_queue
        queue.victims.notify(chain, self.now, self.now, queue.runs.owned_by(chain), event, blocks, total)

    def _released(self, chain: int) -> None:
        if self.block_queue.victims.policy.memory:
            owned = self.block_queue.runs.owned_by(chain)
            self._notify(RELEASE, chain, owned, owned)

    def pinned(self) -> Counter[int]:
        """Blocks that requests hold, by tenant's code: kept under floors, else counted now."""
        if self.block_queue.floors is None:
            self._count_pins()
        return self.pins.by_tenant

    def _count_pins(self) -> None:
        self.pins.rebuild((name, served.tenant) for name, served in self.served.items())

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self._preempting = request
        self.lost_tokens[request.request_id] = request.num_computed_tokens
        self.metrics.counts["preemptions"] += 1
        super()._preempt_request(request, *args, **kwargs)

    def _owner(self, request_id: str) -> int:
        """The row of the request's chain; `NOBODY` if nothing is known of it."""
        served = self.served.get(request_id)
        return NOBODY if served is None else served.chain

    def _free_request_blocks(self, request: Request) -> None:
        served = self.served.get(request.request_id)
        owner = self.kv.left(request.request_id) if served is None else served.chain
        tables = self.kv_cache_manager.get_blocks(request.request_id).blocks
        with self.kv.released(owner, tables, getattr(self, "deferred_frees", None)):
            super()._free_request_blocks(request)
        self.pins.drop(request.request_id)
        if request is self._preempting:  # vLLM queues it again right after this: the order sees that it was preempted
            self._preempting = None
            if served is not None:
                try:
                    self.tracker.preempt(served, self.now)
                    self._released(served.chain)
                    self.service.queued(served)
                except Exception:
                    self._failed("preemption")

    def _drain_deferred_frees(self) -> None:
        self.kv.drained(self, super()._drain_deferred_frees)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        out = super()._free_request(request, *args, **kwargs)
        served = self.served.pop(request.request_id, None)
        if served is not None and request.request_id in self.requests:
            self.kv.leaves(request.request_id, served.chain)
        self.lost_tokens.pop(request.request_id, None)
        self.loading.discard(request.request_id)
        self._tokenless.pop(request.request_id, None)
        if served is not None:
            try:
                self._leaves(request, served)
            except Exception:
                self._failed("end of a request")
        return out

    def _leaves(self, request: Request, served: Served) -> None:
        if math.isnan(served.first_token_s) and request.num_output_tokens:
            served.first_token_s = self.now
        self.service.done(request, served)
        served.prompt_tokens = request.num_prompt_tokens  # a streaming input has grown
        if isinstance(self.waiting, PolicyRequestQueue) and self.waiting.urgent is request:
            self.waiting.urgent = None
        if request.status in _LOST and request.request_id not in self._stopped:
            self.tracker.abort(served, self.now, min(request.num_computed_tokens, request.num_tokens))
            self._released(served.chain)
            if self.recorder is not None:
                self.recorder.dropped(request.status.name.removeprefix("FINISHED_").lower())
            return
        self.tracker.finish(served, self.now, request.num_output_tokens)
        self._released(served.chain)
        if self.recorder is not None:
            full = (request.num_tokens - 1) // self._hash_block()  # the last token's KV is never computed
            self.recorder.finished(served, self.now, request.num_output_tokens, request.block_hashes[:full])
