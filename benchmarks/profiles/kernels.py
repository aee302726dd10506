"""Seconds of one engine iteration: the sum of its measured kernels, and assumptions for what the tables lack."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from tables import VLLM, WALKS, Attention, Gemm, all_reduce

from saga_rl.errors import UserError
from saga_rl.files import must_exist
from saga_rl.sim.cost.models import ModelShape

ELEMENTWISE_A_LAYER = 4
"""Two fused add + RMS norm, rotary embedding with the KV write, SiLU and product; one more with norms of q and k."""
LOGIT_PASSES = 3
"""Passes of sampling over the 4-byte logits."""


@dataclass(frozen=True)
class Work:
    """One iteration: prefill chunks (tokens, context), equal prompts in one call, and decodes (sequences, KV each)."""

    chunks: tuple[tuple[int, int], ...] = ()
    prompts: tuple[int, int] | None = None
    """(how many, tokens each), cold."""
    decode: tuple[int, int] | None = None

    @property
    def arguments(self) -> tuple[float, float, float, float, float]:
        """prefill, pairs, context, kv_read, decoding: as `CostProfile.seconds` takes them."""
        chunks = list(self.chunks) + ([(self.prompts[1], 0)] * self.prompts[0] if self.prompts else [])
        sequences, kv = self.decode or (0, 0)
        return (sum(n for n, _ in chunks), sum(n * (c + n / 2) for n, c in chunks), sum(c for _, c in chunks),
                sequences * kv, sequences)


@dataclass(frozen=True)
class System:
    """A GPU's figures from its system file; only what the tables lack is computed from them."""

    gpu: str
    bytes_per_s: float
    kernel_s: float
    memory_gib: float

    @classmethod
    def read(cls, data: Path, gpu: str) -> System:
        text = must_exist(data / "aiconfigurator" / f"{gpu}_sxm.yaml").read_text()

        def value(key: str) -> float:
            found = re.search(rf"^\s+{key}:\s*([0-9.eE+-]+)", text, re.MULTILINE)
            if not found:
                raise UserError(f"{gpu}_sxm.yaml", f"lacks {key}", "use aiconfigurator's own system file")
            return float(found[1])

        return cls(gpu, value("mem_bw") * value("mem_bw_empirical_scaling_factor"),
                   value("mem_empirical_constant_latency"), value("mem_capacity") / (1 << 30))


class Instance:
    """A model on `tp` GPUs of one kind."""

    def __init__(self, data: Path, gpu: str, model: ModelShape, tp: int) -> None:
        model.check_tp(tp)
        self.model, self.tp, self.system = model, tp, System.read(data, gpu)
        folder = data / "aiconfigurator" / f"{gpu}_sxm"
        here = f"vllm/{VLLM[gpu]}"
        self.gemm = Gemm.read(folder / "gemm" / here / "gemm_perf.parquet")
        self.attention = Attention.read(folder / "attention" / here, model.heads // tp, max(model.kv_heads // tp, 1),
                                        gpu in WALKS)
        self.reduce = all_reduce(folder / "comm" / here / "custom_allreduce_perf.parquet", tp) if tp > 1 else None
        self.linear = cache(self._linear)
        self.head = cache(self._head)

    @property
    def notes(self) -> Counter[str]:
        return self.gemm.notes + self.attention.notes

    def products(self, tokens: float) -> dict[str, float]:
        """Seconds of one layer's four matrix products on one GPU."""
        m, tp = self.model, self.tp
        q, kv = m.heads * m.head_dim // tp, max(m.kv_heads // tp, 1) * m.head_dim
        inner = m.intermediate // tp
        return {"qkv": self.gemm.seconds(tokens, q + 2 * kv, m.hidden), "o": self.gemm.seconds(tokens, m.hidden, q),
                "gate_up": self.gemm.seconds(tokens, 2 * inner, m.hidden),
                "down": self.gemm.seconds(tokens, m.hidden, inner)}

    def _linear(self, tokens: int) -> float:
        """All layers without attention: products, all-reduces (measured), elementwise (assumed bandwidth-bound)."""
        m, tp, s = self.model, self.tp, self.system
        wide = (m.heads + 2 * m.kv_heads) * m.head_dim // tp
        passes = 2 * 4 * m.hidden + 2 * wide * (2 if m.qk_norm else 1) + 3 * m.intermediate // tp
        layer = (sum(self.products(tokens).values()) + (ELEMENTWISE_A_LAYER + m.qk_norm) * s.kernel_s
                 + passes * tokens * m.dtype_bytes / s.bytes_per_s)
        if self.reduce is not None:
            layer += 2 * float(np.interp(tokens * m.hidden * m.dtype_bytes, *self.reduce))
        return m.layers * layer

    def _head(self, sequences: int) -> float:
        """Logits of the last token of every scheduled sequence (measured product) and sampling (assumed)."""
        m, s = self.model, self.system
        return (self.gemm.seconds(sequences, m.vocab // self.tp, m.hidden) + s.kernel_s
                + LOGIT_PASSES * sequences * m.vocab * 4 / s.bytes_per_s)

    def seconds(self, work: Work) -> float:
        """The iteration's kernels, without the host's time."""
        prefill, *_, decoding = work.arguments
        scheduled = len(work.chunks) + (work.prompts[0] if work.prompts else 0) + int(decoding)
        layer = sum(self.attention.chunk(n, c) for n, c in work.chunks)
        if work.prompts:
            measured = self.attention.cold_batch(*work.prompts)
            layer += measured if measured is not None else work.prompts[0] * self.attention.cold(work.prompts[1])
        if work.decode:
            layer += self.attention.step(*work.decode)
        return self.linear(int(prefill + decoding)) + self.head(scheduled) + self.model.layers * layer
