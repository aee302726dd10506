"""Models of real shape without their weights: a configuration, and a tokenizer that knows every id."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from saga_rl.errors import UserError
from saga_rl.replay.tiny_model import build_tiny_model

GIB = 1 << 30
BYTES = 2
"""bfloat16."""
WORKING_GIB = 4.0
"""Of one engine beside weights and KV: context, activations, graphs. A round guess."""


@dataclass(frozen=True)
class Shape:
    """Sizes as the model's own config.json gives them."""

    architecture: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    rope_theta: float
    tied: bool = False
    bias: bool = False
    """Of the projections to queries, keys and values."""
    head_dim: int = 128

    @property
    def parameters(self) -> int:
        kv = 2 * self.hidden * self.kv_heads * self.head_dim
        attention = 2 * self.hidden * self.heads * self.head_dim + kv
        if self.bias:
            attention += (self.heads + 2 * self.kv_heads) * self.head_dim
        layer = attention + 3 * self.hidden * self.inner + 2 * self.hidden
        return self.layers * layer + (1 if self.tied else 2) * self.vocab * self.hidden + self.hidden

    @property
    def kv_bytes(self) -> int:
        """Of one token."""
        return self.layers * 2 * self.kv_heads * self.head_dim * BYTES


SHAPES = {
    "qwen2.5-3b": Shape("Qwen2ForCausalLM", 2048, 11008, 36, 16, 2, 151936, 1e6, tied=True, bias=True),
    "qwen2.5-7b": Shape("Qwen2ForCausalLM", 3584, 18944, 28, 28, 4, 152064, 1e6, bias=True),
    "llama3.1-8b": Shape("LlamaForCausalLM", 4096, 14336, 32, 32, 8, 128256, 5e5),
}


def write_model(shape: Shape, folder: Path, max_len: int) -> Path:
    """A folder for `--load-format dummy`: no weights. Answers are noise in any of the `vocab` ids, so the tokenizer
    (the tiny model's, trained here) gets a word for each."""
    build_tiny_model(folder, layers=1, max_len=max_len)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": [shape.architecture],
               "model_type": "qwen2" if shape.architecture.startswith("Qwen2") else "llama",
               "torch_dtype": "bfloat16", "hidden_size": shape.hidden, "intermediate_size": shape.inner,
               "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
               "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim, "vocab_size": shape.vocab,
               "rope_theta": shape.rope_theta, "tie_word_embeddings": shape.tied}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words |= {f"<{i}>": i for i in range(len(words), shape.vocab)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def check_memory(shape: Shape, kv_tokens: int, card_gib: float) -> float:
    """GiB that a server with a pool of `kv_tokens` wants. `UserError` if the card has not as much."""
    want = shape.parameters * BYTES / GIB + WORKING_GIB + kv_tokens * shape.kv_bytes / GIB
    if want > card_gib:
        raise UserError("--kv-tokens", f"needs about {want:.0f} GiB on a card of {card_gib:.0f}",
                        "give fewer, or a smaller --shape")
    return want
