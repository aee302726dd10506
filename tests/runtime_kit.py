"""A real vLLM scheduler without a model: what the runtime tests drive. Answers are made up, block by block real."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("SAGA_RL_CHECK", "raise")  # every step of every scheduler here: runtime.invariants
vllm = pytest.importorskip("vllm", reason="vLLM is not installed (extra serve or serve-cpu)")

import torch  # noqa: E402
from vllm import SamplingParams  # noqa: E402
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.utils.hashing import sha256  # noqa: E402
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec  # noqa: E402
from vllm.v1.outputs import ModelRunnerOutput  # noqa: E402
from vllm.v1.request import Request  # noqa: E402
from vllm.v1.structured_output import StructuredOutputManager  # noqa: E402

from saga_rl.policies.base import PolicySet  # noqa: E402
from saga_rl.replay.tiny_model import build_tiny_model  # noqa: E402

BLOCK = 16


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_config(folder: Path, *, seqs: int = 16, batched: int = 512, max_len: int = 1024,
                saga: dict[str, Any] | None = None, asynchronous: bool | None = None, scheduler: str | None = None,
                **config: Any) -> VllmConfig:
    """vLLM's configuration of a tiny model in `folder`. scheduler: the class it is told to run."""
    model = build_tiny_model(folder, max_len=max_len) if not (folder / "config.json").exists() else folder
    return VllmConfig(
        scheduler_config=SchedulerConfig(max_num_seqs=seqs, max_num_batched_tokens=batched, max_model_len=max_len,
                                         enable_chunked_prefill=True, is_encoder_decoder=False,
                                         async_scheduling=asynchronous, scheduler_cls=scheduler),
        model_config=ModelConfig(model=str(model), skip_tokenizer_init=True, dtype="float32", seed=0,
                                 max_model_len=max_len),
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=True),
        device_config=DeviceConfig(device="cpu"), additional_config={"saga": saga or {}}, **config)


def make_scheduler(cls: type, folder: Path, *, blocks: int = 64, seqs: int = 16, batched: int = 512,
                   max_len: int = 1024, clock: Clock | None = None, saga: dict[str, Any] | None = None,
                   policies: PolicySet | None = None, specs: Sequence[Any] | None = None,
                   change: Callable[[Any], None] = lambda _: None, **config: Any) -> Any:
    """A scheduler of class `cls` over `blocks` KV blocks (one of them vLLM's null block). policies: instead of those
    that `saga` names; specs: of the KV groups, one of full attention unless given; config: more of `VllmConfig`, which
    `change` may change."""
    asynchronous = "Async" in cls.__name__ or cls.__name__ == "SagaScheduler"
    vllm_config = make_config(folder, seqs=seqs, batched=batched, max_len=max_len, saga=saga, asynchronous=asynchronous,
                              **config)
    change(vllm_config)
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    kv = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[],
                       kv_cache_groups=[KVCacheGroupSpec([f"layer.{k}"], one)
                                        for k, one in enumerate([spec] if specs is None else specs)])
    vllm_config.cache_config.num_gpu_blocks = blocks
    if clock is not None:
        cls = type(cls.__name__, (cls,), {"clock": staticmethod(clock)})
    given = patch("saga_rl.runtime.engine.scheduler.policies_of", lambda _: policies)
    with given if policies is not None else nullcontext():
        return cls(vllm_config=vllm_config, kv_cache_config=kv,
                   structured_output_manager=StructuredOutputManager(vllm_config),
                   block_size=BLOCK, hash_block_size=BLOCK, log_stats=True)


init_none_hash(sha256)
_HASHER = get_request_block_hasher(BLOCK, sha256)


def make_request(name: str, tokens: list[int], *, output: int = 4, session: str | None = None, adapter: int = 0,
                 **hints: Any) -> Request:
    """A request for `output` tokens after the prompt `tokens`; adapter: number of a LoRA adapter, 0 = none; hints
    without their prefix `saga_`."""
    params = SamplingParams(max_tokens=output, ignore_eos=True,
                            extra_args={f"saga_{k}": v for k, v in hints.items()} or None)
    params.update_from_generation_config({}, 2)
    return Request(request_id=name, prompt_token_ids=list(tokens), sampling_params=params, pooling_params=None,
                   block_hasher=_HASHER, session_id=session,
                   lora_request=LoRARequest(f"adapter-{adapter}", adapter, "/nowhere") if adapter else None)


def step(scheduler: Any, token: int = 7, **said: Any) -> list[str]:
    """One iteration: schedule, answer `token` for all that finished their prefill. Returns the requests that ended.
    said: more of what the model runner says."""
    out = scheduler.schedule()
    ids = list(out.num_scheduled_tokens)
    sampled = []
    for rid in ids:
        r = scheduler.requests[rid]
        sampled.append([token] if r.num_computed_tokens >= r.num_tokens else [])
    before = set(scheduler.requests)
    scheduler.update_from_output(out, ModelRunnerOutput(
        req_ids=ids, req_id_to_index={r: i for i, r in enumerate(ids)}, sampled_token_ids=sampled, logprobs=None,
        prompt_logprobs_dict={}, pooler_output=[], **said))
    return sorted(before - set(scheduler.requests))


def drain(scheduler: Any, clock: Clock | None = None, limit: int = 2000) -> list[str]:
    """Step until nothing is left; requests in the order in which they ended."""
    done: list[str] = []
    for _ in range(limit):
        if not scheduler.has_unfinished_requests():
            return done
        done += step(scheduler)
        if clock is not None:
            clock.now += 0.05
    raise AssertionError(f"not done after {limit} steps: {sorted(scheduler.requests)}")
