"""vLLM's scheduler without a model, stock and ours: what a step costs is what it costs a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.update({"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"})
os.environ.pop("SAGA_RL_CHECK", None)  # walks over everything are not what is measured

import torch
from vllm import SamplingParams
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK = 16
STOCK = "stock"
MOST_LEN = 4096

init_none_hash(sha256)
_HASHER = get_request_block_hasher(BLOCK, sha256)


def make_scheduler(policy: str, model: Path, blocks: int, seqs: int, floors: bool = False) -> Any:
    """vLLM's asynchronous scheduler, or ours with `policy`, over `blocks` blocks of 16 tokens. floors: each tenant
    keeps a tenth of the pool."""
    from saga_rl.runtime.engine.scheduler import SagaScheduler

    config = VllmConfig(
        scheduler_config=SchedulerConfig(max_num_seqs=seqs, max_num_batched_tokens=8192, max_model_len=MOST_LEN,
                                         enable_chunked_prefill=True, is_encoder_decoder=False,
                                         async_scheduling=True),
        model_config=ModelConfig(model=str(model), skip_tokenizer_init=True, dtype="float32", seed=0,
                                 max_model_len=MOST_LEN),
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=True),
        device_config=DeviceConfig(device="cpu"),
        additional_config={} if policy == STOCK else {
            "saga": {"policy": policy, **({"kv_floors": {"*": 0.1}} if floors else {})}})
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    config.cache_config.num_gpu_blocks = blocks
    kv = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    return (AsyncScheduler if policy == STOCK else SagaScheduler)(
        vllm_config=config, kv_cache_config=kv, structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK, hash_block_size=BLOCK, log_stats=True)


def make_request(name: str, tokens: list[int], output: int, session: str | None, tenant: str | None = None) -> Request:
    params = SamplingParams(max_tokens=output, ignore_eos=True,
                            extra_args=None if tenant is None else {"saga_tenant": tenant})
    params.update_from_generation_config({}, 2)
    return Request(request_id=name, prompt_token_ids=tokens, sampling_params=params, pooling_params=None,
                   block_hasher=_HASHER, session_id=session)


def answer(scheduler: Any, out: Any) -> ModelRunnerOutput:
    """What a model would have answered: one token for each request that is past its prompt."""
    ids = list(out.num_scheduled_tokens)
    sampled = [[7] if (r := scheduler.requests[i]).num_computed_tokens >= r.num_tokens else [] for i in ids]
    return ModelRunnerOutput(req_ids=ids, req_id_to_index={r: k for k, r in enumerate(ids)},
                             sampled_token_ids=sampled, logprobs=None, prompt_logprobs_dict={}, pooler_output=[])


def step(scheduler: Any) -> None:
    """One iteration."""
    out = scheduler.schedule()
    scheduler.update_from_output(out, answer(scheduler, out))


def drain(scheduler: Any) -> None:
    while scheduler.has_unfinished_requests():
        step(scheduler)
