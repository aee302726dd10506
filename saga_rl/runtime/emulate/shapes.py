"""Model folders without weights: the `config.json` of a known shape and a small tokenizer, for emulated devices.

Shapes are those of the models' published configurations, as `sim.cost.models` counts them. The tokenizer is trained on
this package's own source, so that any client can talk to the server; what it says means nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError, unknown_name
from saga_rl.replay.tiny_model import write_tokenizer

EOS = 2
_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
          "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "rope_theta": 500000.0,
          "max_position_embeddings": 131072, "tie_word_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    "llama3.1-8b": _LLAMA | {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
                             "num_attention_heads": 32},
    "llama3-70b": _LLAMA | {"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672,
                            "num_attention_heads": 64},
    "qwen3-32b": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
                  "rms_norm_eps": 1e-6, "num_hidden_layers": 64, "hidden_size": 5120, "intermediate_size": 25600,
                  "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
                  "rope_theta": 1000000.0, "max_position_embeddings": 131072, "tie_word_embeddings": False},
    # One full-attention layer to five with a window of 1,024 tokens, as in Gemma 3.
    "gemma3-27b": {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
                   "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "num_hidden_layers": 62,
                   "hidden_size": 5376, "intermediate_size": 21504, "num_attention_heads": 32,
                   "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 168, "vocab_size": 262208,
                   "sliding_window": 1024, "max_position_embeddings": 131072,
                   "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(62)],
                   "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "tie_word_embeddings": True},
    # One full-attention layer to three with linear attention, whose state vLLM keeps as it keeps Mamba's.
    "qwen3-next-80b": {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "hidden_act": "silu",
                       "rms_norm_eps": 1e-6, "num_hidden_layers": 48, "hidden_size": 2048, "intermediate_size": 5120,
                       "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 151936,
                       "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
                       "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "num_experts": 512,
                       "num_experts_per_tok": 10, "moe_intermediate_size": 512,
                       "shared_expert_intermediate_size": 512, "partial_rotary_factor": 0.25,
                       "rope_theta": 10000000.0, "max_position_embeddings": 262144, "tie_word_embeddings": False,
                       "layer_types": ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(48)]},
}
"""By name; hybrid are `gemma3-27b` (sliding windows) and `qwen3-next-80b` (linear attention)."""
PROFILE_OF = {"llama3.1-8b": "h100-llama3.1-8b-tp1", "llama3-70b": "h100-llama3-70b-tp4",
              "qwen3-32b": "h100-qwen3-32b-tp2", "gemma3-27b": "h100-qwen3-32b-tp2",
              "qwen3-next-80b": "h100-llama3.1-8b-tp1"}
"""A profile to serve each with. None was fitted for the hybrid ones: `gemma3-27b` borrows that of a dense model of its
size, `qwen3-next-80b` that of a dense model with as few weights active."""


def write_model(shape: str, folder: str | Path, window: int | None = None) -> Path:
    """Write `folder` (created; must be empty) and return it. window: longest context, tokens; None: the model's.

    Raises `UserError` for an unknown shape or a folder that holds something else.
    """
    if shape not in SHAPES:
        raise unknown_name("model shape", shape, SHAPES)
    config = dict(SHAPES[shape])
    if window is not None:
        if window < 1024:
            raise UserError("--window", f"is {window}", "give at least 1024 tokens")
        config["max_position_embeddings"] = window
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(folder, "is not an empty folder", "name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    config |= {"torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": EOS, "saga_rl_emulated_shape": shape}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(folder, 2048, config["max_position_embeddings"])
    return folder
