"""A small random Qwen2 with a locally trained tokenizer: a model to schedule, made without a network.

Its answers are noise. What it shares with a real model is what a scheduler sees: paged KV, prefill and decode cost, and
a tokenizer and chat template, so that any client can talk to it. Weights are written as safetensors from a seed, so two
engines of a data-parallel group load the same model.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HEAD_DIM = 32
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def build_tiny_model(folder: str | Path, *, layers: int = 4, hidden: int = 128, vocab: int = 2048,
                     max_len: int = 16384, seed: int = 0) -> Path:
    """Write config, weights and tokenizer under `folder` and return it.

    `hidden` must be a multiple of 32 (the head size), `vocab` at least 512. KV per token is
    `layers * 2 * (hidden / 64) * 32 * 4` bytes in float32. Weights: normal, standard deviation 0.02.
    """
    if hidden % (2 * HEAD_DIM) or vocab < 512 or layers < 1:
        raise ValueError(f"hidden {hidden} must be a multiple of {2 * HEAD_DIM}, vocab {vocab} >= 512, layers >= 1")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    heads, kv_heads = hidden // HEAD_DIM, hidden // (2 * HEAD_DIM)
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "float32",
        "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": max_len, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
        "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 2, "use_sliding_window": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(_weights(config, np.random.default_rng(seed)), folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder, vocab, max_len)
    return folder


def _weights(config: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    h, inter = config["hidden_size"], config["intermediate_size"]
    kv = config["num_key_value_heads"] * HEAD_DIM

    def normal(*shape: int) -> np.ndarray:
        return (0.02 * rng.standard_normal(shape)).astype(np.float32)

    out = {"model.embed_tokens.weight": normal(config["vocab_size"], h), "model.norm.weight": np.ones(h, np.float32)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for name, rows in (("q", h), ("k", kv), ("v", kv)):
            out[f"{at}self_attn.{name}_proj.weight"] = normal(rows, h)
            out[f"{at}self_attn.{name}_proj.bias"] = np.zeros(rows, np.float32)
        out[f"{at}self_attn.o_proj.weight"] = normal(h, h)
        out[f"{at}mlp.gate_proj.weight"] = normal(inter, h)
        out[f"{at}mlp.up_proj.weight"] = normal(inter, h)
        out[f"{at}mlp.down_proj.weight"] = normal(h, inter)
        out[f"{at}input_layernorm.weight"] = np.ones(h, np.float32)
        out[f"{at}post_attention_layernorm.weight"] = np.ones(h, np.float32)
    return out


def write_tokenizer(folder: Path, vocab: int, max_len: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(_corpus(), trainer)
    tok.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_len, "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[2], "pad_token": SPECIAL[0], "chat_template": CHAT_TEMPLATE,
    }, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 2}) + "\n")


def _corpus() -> list[str]:
    """English and Python that every installation has: the package's own sources."""
    root = Path(__file__).resolve().parents[1]
    return [p.read_text(encoding="utf-8") for p in sorted(root.rglob("*.py"))]
