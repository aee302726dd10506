"""A child process with one real vLLM engine on one core, which serves its share of a trace in real time.

The engine is vLLM's `EngineCore` in this process, fed with token ids: no HTTP, no tokenizer, no second thread. What is
done between two iterations (collecting requests that are due, hashing their prompts, handing out tokens) happens in the
same thread and counts as part of the iteration that follows it. So iterations cover all time in which there is work.

With a cost profile in the job, time is virtual: nothing waits, and an iteration takes what the profile says. The engine
then does what it would do on a machine that is exactly as fast as the profile, whatever this machine does meanwhile.
"""

from __future__ import annotations

import gc
import heapq
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from fidelity_kit.log import END, EVENT_COLUMNS, GROW, PREEMPT, START, EngineLog, composition
from saga_rl.aeg.trace import Trace
from saga_rl.replay.text import PromptBook

if TYPE_CHECKING:  # it loads numba, whose modules vLLM's search through all modules does not survive
    from saga_rl.sim.cost.profile import CostProfile

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
WARM_UP = ((600, 8), (40, 40), (40, 40))
"""(prompt, answer) tokens that are served before each run and then forgotten."""


@dataclass(frozen=True)
class EngineOptions:
    """One engine. `kv_blocks`: what requests can use; vLLM keeps one more to itself."""

    core: int
    model: str
    kv_blocks: int
    block_tokens: int
    max_num_seqs: int
    max_batched_tokens: int
    max_model_len: int


@dataclass(frozen=True)
class Job:
    """Serve `sessions` of the trace from the moment `t0` of `time.perf_counter`, which all processes share."""

    trace: Trace
    sessions: tuple[int, ...]
    t0: float
    until_s: float = float("inf")
    """Stop there; what is not done is dropped."""
    clock: CostProfile | None = None
    """Virtual time by this profile; None: the real one."""


def serve(pipe: Connection, options: EngineOptions) -> None:
    """The child's main function: says "ready", then answers each `Job` with an `EngineLog`; None ends it."""
    try:
        os.sched_setaffinity(0, {options.core})
        with open(os.devnull, "w") as nowhere:  # vLLM says much at start; what fails is told through the pipe
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        core = build(options)
        pipe.send(("ready", None))
        while (job := pipe.recv()) is not None:
            warm_up(core)
            pipe.send(("warm", None))
            job = pipe.recv()
            pipe.send(("log", Driver(core, job).run()))
    except Exception:
        pipe.send(("failed", traceback.format_exc()))


def build(options: EngineOptions) -> Any:
    """vLLM's engine core, synchronous, without multiprocessing."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    config = EngineArgs(
        model=options.model, skip_tokenizer_init=True, dtype="float32", seed=0, enforce_eager=True,
        max_model_len=options.max_model_len, num_gpu_blocks_override=options.kv_blocks + 1,
        block_size=options.block_tokens, max_num_batched_tokens=options.max_batched_tokens,
        max_num_seqs=options.max_num_seqs, enable_prefix_caching=True, enable_chunked_prefill=True,
        async_scheduling=False).create_engine_config()
    core: Any = EngineCore(config, Executor.get_class(config), log_stats=False)
    blocks = core.scheduler.kv_cache_manager.block_pool.num_gpu_blocks
    if blocks != options.kv_blocks + 1 or core.batch_queue is not None:
        raise RuntimeError(f"vLLM took {blocks} blocks for {options.kv_blocks + 1}, or schedules ahead")
    return core


def make_request(core: Any, name: str, tokens: list[int], answer: int) -> Any:
    from vllm import SamplingParams
    from vllm.v1.request import Request

    params = SamplingParams(max_tokens=answer, ignore_eos=True, temperature=0.0)
    params.update_from_generation_config({}, 2)
    return Request(name, tokens, params, None, block_hasher=core.request_block_hasher)


def flush(core: Any) -> None:
    """Let the engine drop requests that are done, which it does in a step of no tokens."""
    if core.scheduler.has_requests() and not core.scheduler.has_unfinished_requests():
        core.step()


def warm_up(core: Any) -> None:
    """Serve a few requests, then forget them and collect garbage."""
    rng = np.random.default_rng(0)
    for k, (prompt, answer) in enumerate(WARM_UP):
        prompt = min(prompt, core.scheduler.kv_cache_manager.block_pool.num_gpu_blocks * 16)
        core.add_request(make_request(core, f"warm-{k}", rng.integers(300, 500, prompt).tolist(), answer))
    while core.scheduler.has_requests():
        core.step()
    if not core.reset_prefix_cache():
        raise RuntimeError("vLLM did not reset its prefix cache")
    gc.collect()


class Driver:
    """Serves one job in closed loop: a step is sent when its parents are done and its gap has passed."""

    def __init__(self, core: Any, job: Job) -> None:
        self.core, self.job, self.trace = core, job, job.trace
        t, n = job.trace.steps, job.trace.n_steps
        self.ready, self.first, self.done = (np.full(n, np.nan) for _ in range(3))
        self.cached, self.preempted = np.full(n, -1, np.int64), np.zeros(n, np.int64)
        self.earliest = np.zeros(n)
        self.book = PromptBook(job.trace, block_tokens=1 << 30)
        self.kids: dict[int, list[int]] = {}
        self.pending = np.diff(t.parent_offsets)
        self.due: list[tuple[float, int]] = []
        self.events: list[tuple[int, ...]] = []
        self.spans: list[tuple[float, float]] = []
        self.answers: dict[int, list[int]] = {}
        self.target: dict[int, int] = {}
        first = job.trace.session_offsets
        for s in job.sessions:
            for row in range(int(first[s]), int(first[s + 1])):
                parents = t.parents[t.parent_offsets[row]:t.parent_offsets[row + 1]]
                for p in parents.tolist():
                    self.kids.setdefault(int(first[s]) + p, []).append(row)
                if not len(parents):
                    heapq.heappush(self.due, (float(job.trace.sessions.arrival_s[s]), row))

    def now(self) -> float:
        return time.perf_counter() - self.job.t0

    def run(self) -> EngineLog:
        undo = self._watch()
        try:
            self._wait(0.0)
            cpu = time.process_time()
            self._loop()
            cpu = time.process_time() - cpu
        finally:
            undo()
        self.core.abort_requests(list(self.core.scheduler.requests))
        flush(self.core)
        return EngineLog(self.ready, self.first, self.done, self.cached, self.preempted,
                         np.array(self.spans).reshape(-1, 2),
                         np.array(self.events, np.int64).reshape(-1, len(EVENT_COLUMNS)), cpu)

    def _loop(self) -> None:
        scheduler, end = self.core.scheduler, 0.0
        while True:
            start = end
            if not scheduler.has_unfinished_requests():
                if not self.due or self.due[0][0] >= self.job.until_s:
                    return
                flush(self.core)
                start = max(end, self.due[0][0])  # waking up late is part of the iteration
                self._wait(start)
            if start >= self.job.until_s:
                return
            while self.due and self.due[0][0] <= start:
                self._send(*heapq.heappop(self.due))
            at = len(self.events)
            outputs, _ = self.core.step()
            end = self.now() if self.job.clock is None else start + self._priced(at)
            self.spans.append((start, end))
            for one in outputs[0].outputs if outputs else ():
                self._answered(int(one.request_id), one, end)

    def _wait(self, when: float) -> None:
        if self.job.clock is None:
            time.sleep(max(when - self.now(), 0.0))

    def _priced(self, at: int) -> float:
        """Seconds of the iteration whose events begin at `at`, as the job's profile has them."""
        assert self.job.clock is not None
        return self.job.clock.seconds(*composition(self.events[at:], self.target))

    def _send(self, ready: float, row: int) -> None:
        session = int(self.trace.steps.session[row])
        tokens, _ = self.book.prompt(session, row - int(self.trace.session_offsets[session]))
        self.ready[row] = ready
        self.core.add_request(make_request(self.core, str(row), tokens.tolist(),
                                           int(self.trace.steps.output_tokens[row])))

    def _answered(self, row: int, one: Any, end: float) -> None:
        t = self.trace.steps
        if np.isnan(self.first[row]):
            self.first[row] = end
            self.answers[row] = []
        self.answers[row] += one.new_token_ids
        if one.finish_reason is None:
            return
        self.done[row] = end
        self.events.append((len(self.spans) - 1, END, row, int(t.prompt_tokens[row] + t.output_tokens[row]) - 1, 0, 0))
        session = int(t.session[row])
        if not self.book.finish(session, row - int(self.trace.session_offsets[session]), self.answers.pop(row)):
            raise RuntimeError(f"step {row} was answered by fewer tokens than were asked for")
        for kid in self.kids.get(row, ()):
            gap = float(t.tool_s[row] + t.think_s[row]) if t.agent[kid] == t.agent[row] else 0.0
            self.earliest[kid] = max(self.earliest[kid], end + gap)
            self.pending[kid] -= 1
            if self.pending[kid] == 0:
                heapq.heappush(self.due, (float(self.earliest[kid]), kid))

    def _watch(self) -> Callable[[], None]:
        """Log what the scheduler allocates and preempts, in its order. Returns what undoes it."""
        from vllm.v1.request import RequestStatus

        scheduler = self.core.scheduler
        manager = scheduler.kv_cache_manager
        allocate, preempt = manager.allocate_slots, scheduler._preempt_request

        def allocating(request: Any, new: int, computed: int = 0, *args: Any, **kwargs: Any) -> Any:
            computed = kwargs.get("num_new_computed_tokens", computed)
            got = allocate(request, new, *(() if "num_new_computed_tokens" in kwargs else (computed,)), *args, **kwargs)
            if got is not None:
                row, have = int(request.request_id), request.num_computed_tokens + computed
                kind = GROW if request.status == RequestStatus.RUNNING else START
                if kind == START and self.cached[row] < 0:
                    self.cached[row] = have
                self.events.append((len(self.spans), kind, row, have, new, request.num_tokens))
            return got

        def preempting(request: Any, *args: Any, **kwargs: Any) -> Any:
            row = int(request.request_id)
            self.preempted[row] += 1
            self.events.append((len(self.spans), PREEMPT, row, request.num_computed_tokens, 0, 0))
            return preempt(request, *args, **kwargs)

        manager.allocate_slots, scheduler._preempt_request = allocating, preempting

        def undo() -> None:
            del manager.allocate_slots, scheduler._preempt_request

        return undo
