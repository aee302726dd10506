"""One of vLLM's schedulers with the limits of a `SimConfig`, stock or ours, on a clock of the caller's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

for _name, _value in (("VLLM_LOGGING_LEVEL", "ERROR"), ("HF_HUB_OFFLINE", "1"), ("VLLM_NO_USAGE_STATS", "1")):
    os.environ.setdefault(_name, _value)

import torch  # noqa: E402
from vllm import SamplingParams  # noqa: E402
from vllm.config import (  # noqa: E402
    CacheConfig,
    DeviceConfig,
    KVTransferConfig,
    ModelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheTensor  # noqa: E402
from vllm.v1.request import Request  # noqa: E402
from vllm.v1.structured_output import StructuredOutputManager  # noqa: E402

from saga_rl.policies.base import PolicySet  # noqa: E402
from saga_rl.replay.tiny_model import build_tiny_model  # noqa: E402
from saga_rl.runtime.emulate.offload import CONNECTOR, LAZY, LAZY_MODULE, SIMPLE, Copies  # noqa: E402
from saga_rl.runtime.engine.scheduler import SagaScheduler, SagaSyncScheduler  # noqa: E402
from saga_rl.sim.config import SimConfig  # noqa: E402

MAX_LEN = 1 << 21
CACHE_POLICY = "saga_rl.runtime.engine.offload.cache_policy"
PAGE_ALIGNMENT = 4096
"""vLLM rounds the bytes of a block in CPU memory up to that; the blocks here are smaller."""
PATIENT_S = 1e6
"""Budget of one decision: the machine's speed must not decide what a policy's fallback does. And never, for waiting."""


@cache
def _shared() -> VllmConfig:
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny_model(Path(folder), layers=1, max_len=MAX_LEN)
        scheduler = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=MAX_LEN,
                                    enable_chunked_prefill=True, is_encoder_decoder=False, async_scheduling=False)
        return VllmConfig(
            scheduler_config=scheduler, device_config=DeviceConfig(device="cpu"),
            model_config=ModelConfig(model=str(model), skip_tokenizer_init=True, dtype="float32", seed=0,
                                     max_model_len=MAX_LEN),
            cache_config=CacheConfig(block_size=16, enable_prefix_caching=True))


def make_scheduler(config: SimConfig, policies: PolicySet | None, clock: Callable[[], float],
                   asynchronous: bool = True, priority: bool = False, tier_policy: bool = False, **saga: Any) -> Any:
    """Make a scheduler of ours, or vLLM's own without `policies`, with vLLM's KV offloading where there are
    `cpu_tokens`.

    asynchronous: as on a GPU; priority: vLLM's `--scheduling-policy priority`; tier_policy: the tier evicts by the
    policy, too; saga: further keys of `SagaConfig`.
    """
    vllm = copy(_shared())
    vllm.scheduler_config, vllm.cache_config = copy(vllm.scheduler_config), copy(vllm.cache_config)
    limits = {"max_num_seqs": config.max_num_seqs, "max_num_batched_tokens": config.batched_tokens,
              "scheduler_reserve_full_isl": config.reserve_full_prompt, "async_scheduling": asynchronous}
    for name, value in limits.items():
        setattr(vllm.scheduler_config, name, value)
    vllm.cache_config.block_size = config.block_tokens
    vllm.cache_config.enable_prefix_caching = config.prefix_caching
    vllm.cache_config.num_gpu_blocks = config.pool_blocks + 1  # one is vLLM's null block
    vllm.additional_config = {"saga": {"expiry_s": config.expiry_s, "starve_s": min(config.starve_s, PATIENT_S),
                                       "budget_s": PATIENT_S, **saga}}
    vllm.scheduler_config.policy = "priority" if priority else "fcfs"
    lazy = bool(config.cpu_tokens) and config.offloading == "lazy"
    vllm.kv_transfer_config = _offloading(config, tier_policy, policies is None) if config.cpu_tokens else None
    cls: Any = AsyncScheduler if asynchronous else Scheduler
    if policies is not None:
        base = SagaScheduler if asynchronous else SagaSyncScheduler
        cls = type("Virtual" + base.__name__, (base,), {"clock": staticmethod(clock)})
    spec = FullAttentionSpec(block_size=config.block_tokens, num_kv_heads=1, head_size=1, dtype=torch.float32)
    tensors = []
    if lazy:  # the connector counts its blocks by them; older vLLMs make them otherwise, and have no such connector
        held = (config.pool_blocks + 1) * spec.page_size_bytes
        tensors = [KVCacheTensor(size=held, layers=["layer"], layer_stride=held, block_stride=spec.page_size_bytes,
                                 offset=0)]
    pool = KVCacheConfig(num_blocks=config.pool_blocks + 1, kv_cache_tensors=tensors,
                         kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    with patch("saga_rl.runtime.engine.scheduler.policies_of", lambda _: policies):
        return cls(vllm_config=vllm, kv_cache_config=pool, structured_output_manager=StructuredOutputManager(vllm),
                   block_size=config.block_tokens, hash_block_size=config.block_tokens)


def make_copies(scheduler: Any, config: SimConfig, clock: Callable[[], float],
                wait: Callable[[float], None]) -> Copies | None:
    """The worker's side of the scheduler's KV offloading; None without. wait: let so many seconds pass."""
    if not config.cpu_tokens:
        return None
    page = scheduler.kv_cache_config.kv_cache_groups[0].kv_cache_spec.page_size_bytes
    return Copies.over(scheduler.vllm_config, scheduler.kv_cache_config,
                       config.pcie_tokens_per_s * page / config.block_tokens, clock=clock, sleep=wait)


def _offloading(config: SimConfig, tier_policy: bool, stock: bool) -> KVTransferConfig:
    """What `--kv-offloading-size` makes of itself, for a tier of `cpu_tokens`."""
    if config.offloading == "lazy":
        page = FullAttentionSpec(block_size=config.block_tokens, num_kv_heads=1, head_size=1,
                                 dtype=torch.float32).page_size_bytes
        held = {"cpu_bytes_to_use": (config.cpu_tokens // config.block_tokens + 1) * page, "lazy_offload": True}
        return KVTransferConfig(kv_connector=SIMPLE if stock else LAZY, kv_role="kv_both",
                                kv_connector_module_path=None if stock else LAZY_MODULE,
                                kv_connector_extra_config=held)
    extra: dict[str, Any] = {"cpu_bytes_to_use": config.cpu_tokens // config.block_tokens * PAGE_ALIGNMENT}
    if tier_policy:
        extra |= {"eviction_policy": "SagaCachePolicy", "cache_policy_module_path": CACHE_POLICY}
    return KVTransferConfig(kv_connector=CONNECTOR, kv_role="kv_both", kv_connector_extra_config=extra)


def make_request(name: str, prompt_tokens: int, output_tokens: int, hasher: Any, session: str,
                 extra: dict[str, Any], priority: int = 0, now: float = 0.0) -> Request:
    """Make a request that answers `output_tokens` tokens. Its tokens are all the same: `hasher` says what they are."""
    params = SamplingParams(max_tokens=output_tokens, ignore_eos=True)
    params.update_from_generation_config({}, 2)
    params.extra_args = extra
    request = Request(request_id=name, prompt_token_ids=[0] * prompt_tokens, sampling_params=params,
                      pooling_params=None, block_hasher=hasher, priority=priority, arrival_time=now)
    request.session_id = session
    return request
