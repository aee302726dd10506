"""What a real device could do and an emulated one cannot, refused by name before anything is served."""

from __future__ import annotations

from typing import Any

from saga_rl.errors import UserError
from saga_rl.runtime.config.emulated import Settings

WITHOUT = "leave it out: an emulated device has no such cost or behaviour to imitate"


def refuse(vllm_config: Any, settings: Settings) -> None:
    """Raise `UserError` for a configuration that cannot be honoured on an emulated device."""
    parallel, model, cache = vllm_config.parallel_config, vllm_config.model_config, vllm_config.cache_config
    if vllm_config.speculative_config is not None:
        raise UserError("--speculative-config", "cannot be emulated", WITHOUT)
    if parallel.pipeline_parallel_size > 1:
        raise UserError("--pipeline-parallel-size", f"is {parallel.pipeline_parallel_size}", WITHOUT)
    if getattr(parallel, "decode_context_parallel_size", 1) > 1:
        raise UserError("--decode-context-parallel-size", f"is {parallel.decode_context_parallel_size}", WITHOUT)
    tp = parallel.tensor_parallel_size
    if tp not in (1, settings.gpus):
        raise UserError("--tensor-parallel-size", f"is {tp}, and the profile {settings.cost.name} is of "
                        f"{settings.gpus} GPUs", f"give {settings.gpus} or leave it out, or choose another profile")
    if getattr(cache, "cache_dtype", "auto") not in ("auto", "bfloat16", "float16"):
        raise UserError("--kv-cache-dtype", f"is {cache.cache_dtype}, and profiles are of 16-bit KV", WITHOUT)
    if model is not None and model.runner_type != "generate":
        raise UserError("--runner", f"is {model.runner_type}", "serve a model that generates text")
    if model is not None and getattr(model, "quantization", None):
        raise UserError("quantization", f"is {model.quantization}, and profiles are of 16-bit weights", WITHOUT)
    pool = (cache.num_gpu_blocks_override or 0) * cache.block_size or settings.kv_tokens or settings.cost.kv_tokens
    if model is not None and not cache.kv_cache_memory_bytes and model.max_model_len > pool:
        raise UserError("--max-model-len", f"is {model.max_model_len:,} (the model's own where the flag is not given), "
                        f"and the pool holds {pool:,} tokens", f"add --max-model-len {pool // 1024 * 1024} or less, or "
                        "give the device a larger pool (--kv-tokens)")
    if vllm_config.kv_transfer_config is not None:
        from saga_rl.runtime.emulate.offload import check

        check(vllm_config.kv_transfer_config)


REAL_GPU = ("--gpu-memory-utilization", "--cpu-offload-gb", "--distributed-executor-backend", "--quantization", "-q",
            "--swap-space", "--enable-sleep-mode")
"""Flags that ask something of a real GPU's memory or wiring."""
INSTEAD = {"--gpu-memory-utilization": "the pool is the profile's; --kv-tokens makes it another size",
           "--enable-sleep-mode": "leave it out: vLLM's /pause and /sleep work without it"}


def refuse_flags(flags: list[str]) -> None:
    """Raise `UserError` for flags that vLLM would take and an emulated device could not honour."""
    for flag in flags:
        name = flag.split("=", 1)[0]
        if name in REAL_GPU:
            raise UserError(name, "asks for something of a real GPU, and --emulate serves without one",
                            INSTEAD.get(name, WITHOUT))
