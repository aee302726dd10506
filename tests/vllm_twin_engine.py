"""vLLM's real `Scheduler` in closed loop under a virtual clock: no model, answers made up, an iteration lasts what the
cost profile says of the composition that vLLM chose."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.structured_output import StructuredOutputManager
from vllm_twin import Places, Watch, contexts, kv_config, make_request

from saga_rl.aeg.trace import Trace
from saga_rl.replay.tiny_model import build_tiny_model
from saga_rl.sim.config import SimConfig

MAX_LEN = 1 << 17


@dataclass
class Turn:
    """One iteration of one worker."""

    start_s: float
    seconds: float
    tokens: list[tuple[int, int]]
    """(step, tokens computed) in the order of scheduling."""
    preempted: list[int]
    """In the order of preemption."""


@dataclass
class Served:
    """What a run gave, by step."""

    turns: list[Turn] = field(default_factory=list)
    first_s: dict[int, float] = field(default_factory=dict)
    done_s: dict[int, float] = field(default_factory=dict)
    cached_tokens: dict[int, int] = field(default_factory=dict)
    preemptions: dict[int, int] = field(default_factory=dict)


@cache
def vllm_config() -> VllmConfig:
    """What every scheduler here shares; the limits are set on it before each is built."""
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny_model(Path(folder), layers=1, max_len=MAX_LEN)
        scheduler = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=MAX_LEN,
                                    enable_chunked_prefill=True, is_encoder_decoder=False, async_scheduling=False,
                                    scheduler_reserve_full_isl=False)
        return VllmConfig(
            scheduler_config=scheduler, device_config=DeviceConfig(device="cpu"),
            model_config=ModelConfig(model=str(model), skip_tokenizer_init=True, dtype="float32", seed=0,
                                     max_model_len=MAX_LEN),
            cache_config=CacheConfig(block_size=16, enable_prefix_caching=True))


def make_scheduler(config: SimConfig, **options: Any) -> Scheduler:
    """A stock scheduler with the limits of `config`; options: further fields of `SchedulerConfig`."""
    shared = vllm_config()
    limits = {"max_num_seqs": config.max_num_seqs, "max_num_batched_tokens": config.batched_tokens,
              "scheduler_reserve_full_isl": config.reserve_full_prompt, "watermark": 0.0,
              "long_prefill_token_threshold": 0, **options}
    for name, value in limits.items():
        assert hasattr(shared.scheduler_config, name)
        setattr(shared.scheduler_config, name, value)
    shared.cache_config.num_gpu_blocks = config.pool_blocks + 1
    shared.cache_config.enable_prefix_caching = config.prefix_caching
    return Scheduler(vllm_config=shared, kv_cache_config=kv_config(config.pool_blocks, config.block_tokens),
                     structured_output_manager=StructuredOutputManager(shared), block_size=config.block_tokens,
                     hash_block_size=config.block_tokens)


class VllmEngine:
    """One worker. `run()` serves the trace to its end; a step's children arrive when its tool has answered."""

    def __init__(self, trace: Trace, config: SimConfig, **options: Any) -> None:
        self.trace, self.config, self.tokens = trace, config, contexts(trace, config.block_tokens)
        self.scheduler = make_scheduler(config, **options)
        self.places = Places(trace, config.block_tokens)
        self.watch = Watch(self.scheduler.kv_cache_manager.block_pool, self.places)
        self._preempted: list[int] = []
        self._preempt = self.scheduler._preempt_request
        self.scheduler._preempt_request = self._preempting  # type: ignore[method-assign]
        self.target: dict[int, int] = {}
        """Tokens known when the step was last taken in: up to there it prefills, beyond it decodes."""
        self.served = Served(preemptions=dict.fromkeys(range(trace.n_steps), 0))
        self.arrivals: list[tuple[float, int]] = []

    def run(self, after: Callable[[VllmEngine], None] = lambda engine: None) -> Served:
        """after: called after every iteration."""
        t, trace = self.trace.steps, self.trace
        self._pending = {i: int(t.parent_offsets[i + 1] - t.parent_offsets[i]) for i in range(trace.n_steps)}
        self._ready = dict.fromkeys(range(trace.n_steps), 0.0)
        self.arrivals = [(float(trace.sessions.arrival_s[t.session[i]]), i) for i, n in self._pending.items() if n == 0]
        now = 0.0
        while self.arrivals or self.scheduler.has_unfinished_requests():
            self.arrivals.sort()
            if not self.scheduler.has_unfinished_requests():
                now = max(now, self.arrivals[0][0])
            while self.arrivals and self.arrivals[0][0] <= now:
                self._add(self.arrivals.pop(0)[1])
            turn = self._iterate(now)
            self.served.turns.append(turn)
            now += turn.seconds
            self._finish(turn, now)
            after(self)
        return self.served

    def _add(self, step: int) -> None:
        prompt = int(self.trace.steps.prompt_tokens[step])
        request = make_request(str(step), self.tokens[step], prompt, self.config.block_tokens)
        self.places.learn(step, request.block_hashes)
        self.scheduler.add_request(request)

    def _preempting(self, request: Any, *args: Any, **options: Any) -> None:
        self._preempted.append(int(request.request_id))
        self.served.preemptions[int(request.request_id)] += 1
        self._preempt(request, *args, **options)

    def _iterate(self, now: float) -> Turn:
        preempted: list[int] = []
        self._preempted = preempted
        self._out = out = self.scheduler.schedule()
        tokens = [(int(r), n) for r, n in out.num_scheduled_tokens.items()]
        fresh = {int(r.req_id): r.num_computed_tokens for r in out.scheduled_new_reqs}
        cached = out.scheduled_cached_reqs
        again = {int(r) for r in cached.resumed_req_ids}
        have = fresh | {int(r): n for r, n in zip(cached.req_ids, cached.num_computed_tokens, strict=True)}
        prefill, pairs, context, kv_read, decoding = 0, 0.0, 0, 0, 0
        for step, n in tokens:
            if step in fresh or step in again:
                self.target[step] = self.scheduler.requests[str(step)].num_tokens
            if step in fresh:
                self.served.cached_tokens.setdefault(step, have[step])  # with model runner V2 it may be fresh again
            if have[step] < self.target[step]:
                prefill += n
                pairs += n * (have[step] + 0.5 * n)
                context += have[step]
            else:
                decoding += 1
                kv_read += have[step]
        assert tokens, "requests wait and nothing runs"
        return Turn(now, self.config.profile.seconds(prefill, pairs, context, kv_read, decoding), tokens, preempted)

    def _finish(self, turn: Turn, now: float) -> None:
        ids = [str(step) for step, _ in turn.tokens]
        sampled: list[list[int]] = []
        complete = []
        for step, _ in turn.tokens:
            r = self.scheduler.requests[str(step)]
            if r.num_computed_tokens < r.num_tokens:
                sampled.append([])
                continue
            sampled.append([int(self.tokens[step][r.num_tokens])])
            self.served.first_s.setdefault(step, now)
            complete.append(step)
        before = {step: self.scheduler.requests[str(step)] for step in complete}
        self.scheduler.update_from_output(self._out, ModelRunnerOutput(
            req_ids=ids, req_id_to_index={r: i for i, r in enumerate(ids)}, sampled_token_ids=sampled, logprobs=None,
            prompt_logprobs_dict={}, pooler_output=[]))
        for step, request in before.items():
            self.places.learn(step, request.block_hashes)
            if request.is_finished():
                self._done(step, now)

    def _done(self, step: int, now: float) -> None:
        t, trace = self.trace.steps, self.trace
        self.served.done_s[step] = now
        base, end = (int(trace.session_offsets[t.session[step] + k]) for k in (0, 1))
        for child in range(step + 1, end):
            if step - base in t.parents[t.parent_offsets[child]:t.parent_offsets[child + 1]]:
                gap = float(t.tool_s[step] + t.think_s[step]) if t.agent[child] == t.agent[step] else 0.0
                self._ready[child] = max(self._ready[child], now + gap)
                self._pending[child] -= 1
                if self._pending[child] == 0:
                    self.arrivals.append((self._ready[child], child))
