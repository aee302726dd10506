"""The emulated executor in vLLM's own engine core, in this process: real scheduler, real KV manager, asynchronous
scheduling with two batches in flight, under a clock of the test's own."""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live_kit import profile
from runtime_kit import BLOCK, build_tiny_model
from vllm import SamplingParams
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.platforms import current_platform
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore

from saga_rl.runtime.config import emulated as emulation
from saga_rl.runtime.config.emulated import Settings, activate
from saga_rl.runtime.emulate.batch import Batch
from saga_rl.runtime.emulate.executor import Done, EmulatedExecutor
from saga_rl.runtime.emulate.platform import EmulatedPlatform
from saga_rl.runtime.emulate.shapes import write_model

STEP_S = 0.05


class Clock:
    """Ahead of the real one, so that nothing is done before it is waited for: the queue of batches is always full."""

    def __init__(self) -> None:
        self.now = self.start = time.monotonic() + 1e7

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process of a server on emulated devices, and nothing of it left behind."""
    config: Any = importlib.import_module("vllm.config.vllm")
    if hasattr(config, "HAS_TRITON"):
        monkeypatch.setattr(config, "HAS_TRITON", True)  # as `runner_as_on_cuda` has it
    monkeypatch.setattr(type(current_platform), "support_hybrid_kv_cache", classmethod(lambda cls: True))
    monkeypatch.setenv(emulation.EMULATE, "")
    activate(Settings(str(profile(tmp_path, STEP_S))))
    yield
    emulation.active.cache_clear()
    envs: Any = importlib.import_module("vllm.envs")
    getattr(envs, "disable_envs_cache", lambda: None)()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"), layers=1, hidden=64, max_len=2048)


def engine_of(model: Path, *, blocks: int, seqs: int = 8, batched: int = 256, asynchronous: bool = True,
              saga: bool = False, length: int = 600) -> tuple[EngineCore, Clock]:
    scheduler = SchedulerConfig(max_num_seqs=seqs, max_num_batched_tokens=batched, max_model_len=length,
                                enable_chunked_prefill=True, is_encoder_decoder=False)
    config = VllmConfig(
        scheduler_config=scheduler, device_config=DeviceConfig(device="cpu"),
        model_config=ModelConfig(model=str(model), skip_tokenizer_init=True, dtype="float32", seed=0,
                                 max_model_len=length),
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=True),
        additional_config={"saga": {"policy": "saga", "budget_s": 60.0}} if saga else {})
    config.scheduler_config.async_scheduling = asynchronous  # which the CPU's platform switches off
    config.cache_config.num_gpu_blocks_override = blocks
    config.cache_config.block_size = BLOCK
    if saga:
        kind = "SagaScheduler" if asynchronous else "SagaSyncScheduler"
        config.scheduler_config.scheduler_cls = f"saga_rl.runtime.engine.scheduler.{kind}"
    core = EngineCore(config, EmulatedExecutor, log_stats=True)
    clock = Clock()
    device = core.model_executor.device  # type: ignore[attr-defined]
    device.clock, device._sleep = clock, clock.sleep
    return core, clock


def ask(core: EngineCore, name: str, prompt: list[int], tokens: int, *, ignore_eos: bool = True, **extra: Any) -> None:
    params = SamplingParams(max_tokens=tokens, ignore_eos=ignore_eos, extra_args=extra or None)
    params.update_from_generation_config({}, 2)
    request = EngineCoreRequest(
        request_id=name, prompt_token_ids=prompt, mm_features=None, sampling_params=params, pooling_params=None,
        arrival_time=0.0, lora_request=None, cache_salt=None, data_parallel_rank=None)
    core.add_request(*core.preprocess_add_request(request))


def run(core: EngineCore, limit: int = 20_000) -> tuple[dict[str, list[int]], dict[str, int]]:
    """(tokens of every answer in the order in which they came, preemptions by request)."""
    tokens: dict[str, list[int]] = {}
    preempted: dict[str, int] = {}
    preempt = core.scheduler._preempt_request  # type: ignore[attr-defined]

    def counted(request: Any, *args: Any, **more: Any) -> Any:
        preempted[request.request_id] = preempted.get(request.request_id, 0) + 1
        return preempt(request, *args, **more)

    core.scheduler._preempt_request = counted  # type: ignore[attr-defined]
    for _ in range(limit):
        if not core.scheduler.has_requests() and not core.batch_queue:
            return tokens, preempted
        found, _ = core.step_fn()
        for outputs in (found or {}).values():
            for out in outputs.outputs:
                tokens.setdefault(out.request_id, []).extend(out.new_token_ids)
    raise AssertionError(f"not done after {limit} steps")


RUNNERS = pytest.mark.parametrize("runner", ["0", "1"], ids=["runner-1", "runner-2"])
"""Which model runner vLLM's scheduler talks to: the second gets a resumed request as a new one."""


@RUNNERS
@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("saga", [False, True], ids=["stock", "saga"])
def test_every_token_comes_once_and_in_order_through_preemption_and_chunks(tiny, monkeypatch, runner, asynchronous,
                                                                           saga):
    """Twelve requests over a pool for three; prompts longer than a batch; each answer is prescribed."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", runner)
    core, clock = engine_of(tiny, blocks=40, batched=96, asynchronous=asynchronous, saga=saga)
    assert core.scheduler.use_v2_model_runner is (runner == "1")  # type: ignore[attr-defined]
    assert (core.batch_queue is not None) is asynchronous
    rng = random.Random(7)
    shared = [rng.randrange(5, 2000) for _ in range(48)]
    wanted: dict[str, list[int]] = {}
    for k in range(12):
        prompt = shared * (k % 2) + [rng.randrange(5, 2000) for _ in range(rng.randint(20, 200))]
        wanted[f"r{k}"] = [rng.randrange(5, 2000) for _ in range(rng.randint(1, 150))]
        ask(core, f"r{k}", prompt, len(wanted[f"r{k}"]), saga_answer_ids=wanted[f"r{k}"])
    tokens, preempted = run(core)
    assert tokens == wanted
    assert sum(preempted.values()) > 0
    executor: Any = core.model_executor
    assert len(executor._steps) == 0
    device = executor.device
    assert clock.now - clock.start == pytest.approx(device.busy_s, rel=1e-6)  # it never stood still
    assert device.busy_s == pytest.approx(STEP_S * device.batches, rel=1e-3)
    core.shutdown()


@RUNNERS
def test_an_answer_ends_where_the_prescription_ends_and_a_fault_comes_at_its_token(tiny, monkeypatch, runner):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", runner)
    core, clock = engine_of(tiny, blocks=64)
    ask(core, "short", [5] * 40, 100, ignore_eos=False, saga_answer_ids=[9, 8, 7])
    ask(core, "late", [6] * 40, 10, saga_answer_ids=[11] * 10, saga_fault="stall:5@4")
    ask(core, "elsewhere", [7] * 40, 10, saga_answer_ids=[12] * 10, saga_fault="die@4#3")
    tokens, _ = run(core)
    assert tokens == {"short": [9, 8, 7, 2], "late": [11] * 10, "elsewhere": [12] * 10}
    device = core.model_executor.device  # type: ignore[attr-defined]
    assert clock.now - clock.start == pytest.approx(device.busy_s + 5.0, rel=1e-6)
    core.shutdown()


def test_a_step_costs_what_its_requests_ask_of_the_device(tiny):
    """By what the scheduler said of each step, counted here anew."""
    core, _ = engine_of(tiny, blocks=200, batched=64)
    device = core.model_executor.device  # type: ignore[attr-defined]
    given: list[Batch] = []
    submit = device.submit
    device.submit = lambda batch: (given.append(batch), submit(batch))[1]
    ask(core, "a", [5] * 150, 4)
    run(core)
    # Chunks of 64, 64 and 22 tokens, the last of which gives the first token; then three decodes.
    assert given == [
        Batch(prefill=64, pairs=64 * 32.0, context=0), Batch(prefill=64, pairs=64 * 96.0, context=64),
        Batch(prefill=22, pairs=22 * (128 + 11.0), context=128), Batch(decoding=1, kv_read=150),
        Batch(decoding=1, kv_read=151), Batch(decoding=1, kv_read=152)]
    given.clear()
    ask(core, "b", [5] * 150, 1)  # nine blocks of it are there
    run(core)
    assert given == [Batch(prefill=6, pairs=6 * (144 + 3.0), context=144)]
    core.shutdown()


def test_two_kv_groups_are_served_and_the_windows_blocks_are_given_back(tmp_path):
    """One layer in six sees all, the others 1,024 tokens: a pool that full attention alone could not serve from."""
    core, _ = engine_of(write_model("gemma3-27b", tmp_path / "m", window=8192), blocks=1700, length=8192, batched=1024)
    groups = core.scheduler.kv_cache_config.kv_cache_groups  # type: ignore[attr-defined]
    kinds = {type(g.kv_cache_spec).__name__ for g in groups}
    assert kinds == {"FullAttentionSpec", "SlidingWindowSpec"} and len(groups) > 1
    full = [g for g in groups if type(g.kv_cache_spec).__name__ == "FullAttentionSpec"]
    assert sum(len(g.layer_names) for g in full) == 10  # of 62
    wanted = list(range(100, 150))
    ask(core, "long", [k % 1000 + 5 for k in range(8000)], 50, saga_answer_ids=wanted)
    tokens, preempted = run(core)
    assert tokens == {"long": wanted} and not preempted
    core.shutdown()


def test_states_of_linear_attention_are_served_in_blocks_that_hold_one(tmp_path, monkeypatch):
    """As vLLM sizes them on GPUs: a page of full attention is as large as one state, and no token larger."""
    monkeypatch.setattr(type(current_platform), "update_block_size_for_backend",
                        EmulatedPlatform.update_block_size_for_backend)
    core, _ = engine_of(write_model("qwen3-next-80b", tmp_path / "m", window=8192), blocks=80, length=8192,
                        batched=1024)
    config = core.scheduler.kv_cache_config  # type: ignore[attr-defined]
    kinds = [type(g.kv_cache_spec).__name__ for g in config.kv_cache_groups]
    assert sorted(kinds) == ["FullAttentionSpec", "MambaSpec", "MambaSpec", "MambaSpec"]
    (page,) = {g.kv_cache_spec.page_size_bytes for g in config.kv_cache_groups}
    (block,) = {g.kv_cache_spec.block_size for g in config.kv_cache_groups}
    mamba = next(g.kv_cache_spec for g in config.kv_cache_groups if type(g.kv_cache_spec).__name__ == "MambaSpec")
    state = replace(mamba, page_size_padded=None).page_size_bytes
    assert state <= page < state + 16 * page // block and block % 16 == 0
    wanted = list(range(100, 120))
    for name in ("first", "again"):
        ask(core, name, [k % 1000 + 5 for k in range(6000)], 20, saga_answer_ids=wanted)
        tokens, preempted = run(core)
        assert tokens == {name: wanted} and not preempted
    core.shutdown()


def test_adapters_are_taken_in_and_out(tiny):
    core, _ = engine_of(tiny, blocks=64)
    executor = core.model_executor
    lora: Any = SimpleNamespace(lora_int_id=3)
    assert executor.collective_rpc("add_lora", args=(lora,)) == [True]
    assert executor.collective_rpc("list_loras") == [{3}]
    assert executor.collective_rpc("pin_lora", args=(3,)) == [True]
    assert executor.collective_rpc("remove_lora", args=(3,)) == [True]
    assert executor.collective_rpc("remove_lora", args=(3,)) == [False]
    with pytest.raises(NotImplementedError):
        executor.collective_rpc(lambda worker: None)
    core.shutdown()


def test_a_result_is_there_when_the_device_is_done_and_is_made_once():
    clock, made = Clock(), []
    done = Done(clock.now + 3.0, lambda when: setattr(clock, "now", max(clock.now, when)), lambda: made.append(1) or 7)
    assert not done.done()
    with pytest.raises(TimeoutError):
        done.result(timeout=0.0)
    assert done.result() == done.result() == 7
    assert clock.now == clock.start + 3.0 and made == [1] and done.done()


def test_kv_is_copied_at_the_links_rate_each_way_at_once():
    base: Any = pytest.importorskip("vllm.v1.kv_offload.base")
    if not hasattr(getattr(base, "OffloadingWorker", None), "submit_store"):
        pytest.skip("this vLLM calls workers otherwise")
    from saga_rl.runtime.emulate.offload import worker

    clock = Clock()
    clock.now = 50.0
    w = worker([1000, 10], rate=100.0, time_scale=2.0, clock=clock, sleep=clock.sleep)
    blocks = SimpleNamespace(group_sizes=[2, 5])  # 2,050 bytes: 20.5 s of the device, half of that here
    assert w.submit_store(1, blocks, None) and w.submit_store(2, blocks, None) and w.submit_load(3, None, blocks)
    assert w.get_finished() == []
    clock.now = 50.0 + 10.25
    assert {(r.job_id, r.transfer_size, r.success) for r in w.get_finished()} == {(1, 2050, True), (3, 2050, True)}
    w.wait({2, 99})
    assert clock.now == pytest.approx(50.0 + 20.5)
    (last,) = w.get_finished()
    assert (last.job_id, last.transfer_time) == (2, pytest.approx(20.5))
    w.wait({2})
    assert w.get_finished() == []
