"""One engine core in virtual time: what `EngineCore.step_with_batch_queue` does, with a device that takes as long as a
cost profile says. Two batches are under way at once under asynchronous scheduling, one otherwise."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

from saga_rl.runtime.emulate.virtual.setup import make_copies
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import CostProfile
from saga_rl.sim.engine.arrival import TAKE_IN_S
from saga_rl.sim.engine.loop import NAP_S


@dataclass
class Batch:
    """What was sent to the device."""

    out: Any
    """vLLM's `SchedulerOutput`."""
    samples: dict[str, bool]
    """By request: whether a token comes of it."""
    start_s: float
    end_s: float
    moved: Any = None
    """What vLLM's KV connector says of copies that ended."""


@dataclass
class Answer:
    """What an engine says of a request: tokens that came, and whether they are its last."""

    name: str
    tokens: int
    finished: bool


class VirtualEngine:
    """pass_time: let the scheduler's clock go on by so many seconds.

    `go` lets the engine's loop run until it blocks; the caller calls again at the time that it returns (None: when a
    request comes). `receive` puts a request before it."""

    def __init__(self, scheduler: Any, profile: CostProfile, depth: int, config: SimConfig,
                 pass_time: Callable[[float], None]) -> None:
        self.scheduler, self.profile, self.depth, self.pass_time = scheduler, profile, depth, pass_time
        self.now = 0.0
        """Where the engine's loop is: it waits for copies out of blocks that are taken again."""
        self.copies = make_copies(scheduler, config, lambda: self.now, self._wait)
        self.inbox: deque[Any] = deque()
        self.batches: deque[Batch] = deque()
        """Oldest first."""
        self.device_free_s = 0.0
        self.blocked = self.idle = False
        """On the oldest batch; the call that blocks ran nothing."""
        self.iterations = self.preemptions = 0
        self.busy_s = 0.0
        self.cached: dict[str, int] = {}
        """Tokens that each request found cached when it first ran."""
        self._target: dict[str, int] = {}
        """Tokens known when the request was last taken in: up to there it prefills, beyond it decodes."""

    @property
    def has_work(self) -> bool:
        return bool(self.batches or self.inbox or self.scheduler.has_requests())

    def receive(self, request: Any) -> None:
        self.inbox.append(request)

    def finish(self, now: float) -> tuple[list[Answer], float]:
        """The batch that the loop is blocked on is done. Returns what it gave, and when to call `go`."""
        batch = self.batches.popleft()
        self.blocked = False
        ids = list(batch.samples)
        model = EMPTY_MODEL_RUNNER_OUTPUT if not ids and batch.moved is None else ModelRunnerOutput(
            req_ids=ids, req_id_to_index={r: i for i, r in enumerate(ids)},
            sampled_token_ids=[[0] if batch.samples[r] else [] for r in ids], logprobs=None, prompt_logprobs_dict={},
            pooler_output=[], kv_connector_output=batch.moved)
        outputs = self.scheduler.update_from_output(batch.out, model)
        answers = [Answer(o.request_id, len(o.new_token_ids), o.finish_reason is not None)
                   for some in outputs.values() for o in some.outputs]
        for a in answers:
            if a.finished:
                self._target.pop(a.name, None)
        return answers, now + NAP_S if self.idle and self.scheduler.has_requests() else now

    def go(self, now: float) -> float | None:
        """When to call again: `finish` if `blocked` then, else `go`; None if there is nothing to do."""
        while True:
            while self.inbox:
                self.scheduler.add_request(self.inbox.popleft())
                self.pass_time(TAKE_IN_S)
            ran = False
            if self.scheduler.has_requests():
                batch = self._send(now)
                self.batches.append(batch)
                ran = bool(batch.samples)
                if len(self.batches) < self.depth and (ran or self.scheduler.has_requests()):
                    if not ran:
                        return self.now + NAP_S
                    if self.now > now:
                        return self.now
                    continue
            elif not self.batches:
                return None
            self.blocked, self.idle = True, not ran
            return max(now, self.now, self.batches[0].end_s)

    def _wait(self, seconds: float) -> None:
        self.now += seconds

    def _send(self, now: float) -> Batch:
        s, self.now = self.scheduler, now
        out = s.schedule()
        self.preemptions += len(out.preempted_req_ids or ())
        moved = None if self.copies is None else self.copies.step(out)
        now = self.now
        fresh = {r.req_id: r.num_computed_tokens for r in out.scheduled_new_reqs}
        cached = out.scheduled_cached_reqs
        again = set(cached.resumed_req_ids)
        have = fresh | dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        prefill, pairs, context, kv_read, decoding = 0, 0.0, 0, 0, 0
        for name, n in out.num_scheduled_tokens.items():
            at = have[name]
            if name in fresh or name in again:
                self._target[name] = s.requests[name].num_tokens
                self.cached.setdefault(name, at)
            if at < self._target[name]:
                prefill += n
                pairs += n * (at + 0.5 * n)
                context += at
            else:
                decoding += 1
                kv_read += at
        if not out.num_scheduled_tokens:
            return Batch(out, {}, now, now, moved)
        self.iterations += 1
        start = max(now, self.device_free_s)
        seconds = self.profile.seconds(prefill, pairs, context, kv_read, decoding)
        self.busy_s += seconds
        self.device_free_s = start + seconds
        samples = {name: not s.requests[name].is_prefill_chunk for name in out.num_scheduled_tokens}
        return Batch(out, samples, start, self.device_free_s, moved)
