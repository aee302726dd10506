"""What a model weighs on a GPU: bytes of weights and of KV per token, and the KV pool that the memory leaves.

    pool = (GPU memory * utilisation - weights / TP - reserve) / KV bytes of a token on one GPU
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError, unknown_name
from saga_rl.files import must_exist

GIB = 1 << 30
UTILISATION = 0.9
"""vLLM's --gpu-memory-utilization: its default was 0.9 for years and is 0.92 in 0.32."""
RESERVE_GIB = 3.5
"""Activations, CUDA graphs and the runtime's own memory a GPU; the figure of aiconfigurator's system tables."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BLOCK_TOKENS = 16


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer with grouped-query attention, dense or with routed experts in every layer."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    experts: int = 0
    """Routed experts a layer, each of `intermediate`; 0: one dense MLP."""
    shared_intermediate: int = 0
    dtype_bytes: float = 2
    quantised: bool = False
    """The weights are stored in fewer bytes than their parameters say."""

    @property
    def parameters(self) -> int:
        """Weights of the whole model, norms and biases included."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * q + 2 * kv) + (q + 2 * kv if self.qkv_bias else 0)
        mlp = 3 * self.hidden * (self.intermediate * max(self.experts, 1) + self.shared_intermediate)
        router = self.hidden * self.experts
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * (attention + mlp + router + norms) + embeddings + self.hidden

    def kv_bytes_per_token(self, tp: int = 1, kv_dtype_bytes: float | None = None) -> float:
        """Bytes of keys and values of one token on one of `tp` GPUs; heads are copied where there are fewer than GPUs.

        `kv_dtype_bytes` None: the model's own type.
        """
        self.check_tp(tp)
        each = self.dtype_bytes if kv_dtype_bytes is None else kv_dtype_bytes
        return 2 * self.layers * max(self.kv_heads // tp, 1) * self.head_dim * each

    def check_tp(self, tp: int) -> None:
        """`UserError` if the model cannot be split over `tp` GPUs."""
        if tp < 1 or self.heads % tp or (self.kv_heads % tp and tp % self.kv_heads):
            raise UserError(f"--tp {tp}", f"does not divide {self.name}'s {self.heads} heads and {self.kv_heads} "
                            "KV heads", "use a power of two up to the number of heads")


@dataclass(frozen=True)
class Pool:
    """How one GPU's memory is shared out. Bytes are of one GPU; `tokens` is the pool of the whole instance."""

    usable: float
    weights: float
    reserve: float
    kv_per_token: float
    tokens: int


def pool(shape: ModelShape, gpu_gib: float, tp: int = 1, *, utilisation: float = UTILISATION,
         reserve_gib: float = RESERVE_GIB, kv_dtype_bytes: float | None = None,
         weights_gib: float | None = None) -> Pool:
    """KV pool of an instance of `tp` GPUs of `gpu_gib` GiB each, in whole blocks. Raises `UserError` when none is left.

    `weights_gib`: of the whole model, when its parameters in its dtype are not what is loaded (quantised weights).
    """
    if not 0 < utilisation <= 1:
        raise UserError(f"--utilisation {utilisation:g}", "is no share of the memory", "give a number above 0, up to 1")
    if shape.quantised and weights_gib is None:
        raise UserError(shape.name, "has quantised weights, whose size its config.json does not tell",
                        "give the size of its weight files by --weights-gib")
    per_token = shape.kv_bytes_per_token(tp, kv_dtype_bytes)
    weights = (shape.parameters * shape.dtype_bytes if weights_gib is None else weights_gib * GIB) / tp
    usable, reserve = gpu_gib * GIB * utilisation, reserve_gib * GIB
    tokens = int((usable - weights - reserve) / per_token) // BLOCK_TOKENS * BLOCK_TOKENS
    if tokens <= 0:
        raise UserError(f"{shape.name} on {tp} x {gpu_gib:g} GiB",
                        f"leaves no room for KV: {weights / GIB:.1f} GiB of weights and {reserve_gib:g} GiB of reserve "
                        f"a GPU, {usable / GIB:.1f} GiB usable", "use more GPUs (--tp) or larger ones")
    return Pool(usable, weights, reserve, per_token, tokens)


MODELS = {m.name: m for m in (
    ModelShape("llama3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256),
    ModelShape("llama3-70b", 80, 8192, 64, 8, 128, 28672, 128256),
    ModelShape("llama2-70b", 80, 8192, 64, 8, 128, 28672, 32000),
    ModelShape("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936, qk_norm=True),
)}
"""Shapes from the models' published config.json; llama3.1-70b and llama3.3-70b have llama3-70b's."""


def model_shape(name: str | Path) -> ModelShape:
    """A known model by name, or the `config.json` of any other by path. Raises `UserError`."""
    text = str(name)
    if text in MODELS:
        return MODELS[text]
    if Path(text).is_dir():
        return from_config(Path(text) / "config.json")
    if not text.endswith(".json"):
        raise unknown_name("model", text, [*MODELS, "a path to config.json"])
    return from_config(text)


def from_config(path: str | Path) -> ModelShape:
    """The shape that a Hugging Face `config.json` describes. Refuses what it would count wrongly, with `UserError`."""
    try:
        raw = json.loads(must_exist(path).read_text())
    except ValueError as e:
        raise UserError(path, f"is not JSON ({e})", "give the model's config.json") from None
    if not isinstance(raw, dict):
        raise UserError(path, "is not a JSON object", "give the model's config.json")
    c: dict[str, Any] = raw.get("text_config", raw)
    _refuse_unmodelled(path, c)

    def count(*keys: str, default: int | None = None) -> int:
        for key in keys:
            if c.get(key) is not None:
                value = c[key]
                if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                    raise UserError(f"{path}: {key}", f"is {value!r}", "it must be an integer > 0")
                return value
        if default is None:
            raise UserError(path, f"lacks {keys[0]}", "give the config.json of a decoder-only transformer")
        return default

    hidden, heads = count("hidden_size", "n_embd"), count("num_attention_heads", "n_head")
    dtype = str(c.get("dtype", c.get("torch_dtype", raw.get("dtype", raw.get("torch_dtype", "bfloat16")))))
    if dtype not in DTYPE_BYTES:
        raise UserError(f"{path}: dtype", f"is {dtype!r}", "it must be one of: " + ", ".join(DTYPE_BYTES))
    experts = count("num_experts", "num_local_experts", "n_routed_experts", default=0) if any(
        c.get(k) for k in ("num_experts", "num_local_experts", "n_routed_experts")) else 0
    inner = count("intermediate_size", "n_inner", default=4 * hidden)
    kind = str(c.get("model_type", "model"))
    return ModelShape(
        str(raw.get("_name_or_path") or kind), count("num_hidden_layers", "n_layer"), hidden, heads,
        count("num_key_value_heads", default=heads), count("head_dim", default=hidden // heads),
        count("moe_intermediate_size", default=inner) if experts else inner, count("vocab_size"),
        tied=bool(c.get("tie_word_embeddings", raw.get("tie_word_embeddings", False))),
        qkv_bias=bool(c.get("attention_bias", kind.startswith("qwen2"))), qk_norm=kind.startswith("qwen3"),
        experts=experts, shared_intermediate=int(c.get("shared_expert_intermediate_size") or 0),
        dtype_bytes=DTYPE_BYTES[dtype], quantised=bool(raw.get("quantization_config") or c.get("quantization_config")))


def _refuse_unmodelled(path: str | Path, c: dict[str, Any]) -> None:
    """Layouts whose KV is not heads x dimension in every layer would be counted wrongly."""
    other = {"full_attention", "attention"}
    cause = None
    if c.get("kv_lora_rank"):
        cause = "has latent attention (kv_lora_rank), whose KV this does not count"
    elif set(c.get("layer_types") or ()) - other:
        cause = f"has layers of other kinds ({', '.join(sorted(set(c['layer_types']) - other))})"
    elif c.get("sliding_window") and c.get("use_sliding_window", True):
        cause = "has sliding-window attention, whose KV does not grow with the context"
    elif c.get("first_k_dense_replace") or c.get("mlp_only_layers"):
        cause = "mixes dense and routed layers"
    if cause:
        raise UserError(path, cause, "take the pool from the engine's log (GPU KV cache size) and pass --kv-tokens")
