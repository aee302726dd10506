"""The KV cache of a model that is not there: what each layer would hold, and how many bytes the pool has.

Sizes are the real model's, so that byte-valued flags (`--kv-offloading-size`, `--kv-cache-memory-bytes`) mean what they
mean on a GPU. The model's layers come from its `config.json`: full attention, sliding windows, and linear attention
(Mamba, gated delta nets), each kind a KV group of its own as in vLLM.
"""

from __future__ import annotations

from typing import Any

from saga_rl.runtime.config.emulated import Settings

KERNEL_TOKENS = 16
"""Attention kernels of GPUs work on multiples of so many tokens."""


def specs(vllm_config: Any) -> dict[str, Any]:
    """`KVCacheSpec` by layer name."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    model, parallel, cache = vllm_config.model_config, vllm_config.parallel_config, vllm_config.cache_config
    kinds = layer_kinds(model)
    common = {"block_size": cache.block_size, "num_kv_heads": model.get_num_kv_heads(parallel),
              "head_size": model.get_head_size(), "dtype": model.dtype}
    if "linear_attention" in kinds and cache.mamba_page_size_padded:
        common["page_size_padded"] = None
    window: Any = getattr(model.hf_text_config, "sliding_window", None)
    out: dict[str, Any] = {}
    for i, kind in enumerate(kinds):
        name = f"model.layers.{i}.{kind}"
        if kind == "linear_attention":
            out[name] = _mamba(vllm_config)
        elif kind == "sliding_attention":
            out[name] = SlidingWindowSpec(**common, sliding_window=int(window))
        else:
            out[name] = FullAttentionSpec(**common)
    return out


def layer_kinds(model_config: Any) -> list[str]:
    """`full_attention`, `sliding_attention` or `linear_attention` for each layer."""
    config = model_config.hf_text_config
    count = int(config.num_hidden_layers)
    given = getattr(config, "layer_types", None)
    if given:
        kinds = [str(kind) for kind in given][:count]
        known = ("full_attention", "sliding_attention", "linear_attention")
        return [kind if kind in known else "full_attention" for kind in kinds]
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        return ["sliding_attention"] * count
    return ["full_attention"] * count


def _mamba(vllm_config: Any) -> Any:
    """The state of one linear-attention layer, from the model's own class."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.v1.kv_cache_interface import MambaSpec

    model, cache = vllm_config.model_config, vllm_config.cache_config
    cls: Any = ModelRegistry.resolve_model_cls(model.architecture, model_config=model)[0]
    return MambaSpec(shapes=cls.get_mamba_state_shape_from_config(vllm_config),
                     dtypes=cls.get_mamba_state_dtype_from_config(vllm_config),
                     block_size=cache.mamba_block_size or cache.block_size,
                     page_size_padded=cache.mamba_page_size_padded, mamba_cache_mode=cache.mamba_cache_mode)


def align_hybrid(vllm_config: Any) -> None:
    """Make blocks of a model with linear attention as large as vLLM does on a GPU: a page of full attention holds at
    least one state, and a state is padded to that page."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    model, cache = vllm_config.model_config, vllm_config.cache_config
    if model is None or "linear_attention" not in layer_kinds(model):
        return
    cache.mamba_page_size_padded = None
    state = _mamba(vllm_config).page_size_bytes
    token = FullAttentionSpec(block_size=1, num_kv_heads=model.get_num_kv_heads(vllm_config.parallel_config),
                              head_size=model.get_head_size(), dtype=model.dtype).page_size_bytes
    cache.block_size = max(cache.block_size, -(-state // (token * KERNEL_TOKENS)) * KERNEL_TOKENS)
    if cache.mamba_cache_mode == "align":
        cache.mamba_block_size = cache.block_size
    cache.mamba_page_size_padded = cache.block_size * token


def token_bytes(vllm_config: Any) -> float:
    """Bytes of KV that a token of a long context takes: all layers whose cache grows with it."""
    return sum(spec.page_size_bytes / spec.block_size for spec in specs(vllm_config).values()
               if type(spec).__name__ == "FullAttentionSpec")


def pool_bytes(vllm_config: Any, settings: Settings) -> int:
    """Bytes of the pool: what the user fixed (`--kv-cache-memory-bytes`), else the profile's tokens and vLLM's one
    block that holds nothing."""
    cache = vllm_config.cache_config
    if cache.kv_cache_memory_bytes:
        return int(cache.kv_cache_memory_bytes)
    tokens = settings.kv_tokens or settings.cost.kv_tokens
    blocks = tokens // cache.block_size + 1
    return int(blocks * cache.block_size * sum(
        spec.page_size_bytes / spec.block_size for spec in specs(vllm_config).values()
        if type(spec).__name__ != "MambaSpec"))
