"""The measured kernels: read from aiconfigurator's tables, interpolated between their points.

Latencies are of one kernel call on one GPU, seconds. Every extrapolation is counted in `notes`, by what it was.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from saga_rl.errors import UserError

VLLM = {"a100": "0.14.0", "h100": "0.24.0"}
"""The newest measurements of each GPU in the data."""
WALKS = {"a100"}
"""GPUs on which a prefill chunk's context is read by one thread block a head from end to end: FlashAttention 2 splits
the context of decodes only, FlashAttention 3 (H100) of chunks too."""
WALKED = 6144
"""One head's cold prompt up to here leaves most of an A100 idle: its last row block's walk is its time."""


def rows(path: Path, **equal: object) -> list[dict]:
    """Rows of a Parquet table with these values; columns that the table lacks are passed over."""
    if not path.is_file():
        raise UserError(path, "no such table", "give the folder that holds aiconfigurator/ by --data")
    table = pq.read_table(path)
    for key, value in equal.items():
        if key in table.column_names:
            table = table.filter(pc.equal(table[key], value))
    return table.to_pylist()


@dataclass
class Gemm:
    """Seconds of an (m, k) x (k, n) product in bfloat16: linear in the logarithms between measured points; beyond the
    largest n or k in proportion to it, which is right where weights or arithmetic bound the product."""

    m: NDArray
    n: NDArray
    k: NDArray
    log_s: NDArray
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, path: Path) -> Gemm:
        found = {(r["m"], r["n"], r["k"]): r["latency"] / 1e3 for r in rows(path, gemm_dtype="bfloat16")}
        axes = [np.array(sorted({key[i] for key in found})) for i in range(3)]
        log_s = np.full([len(a) for a in axes], np.nan)
        where = [{int(v): i for i, v in enumerate(a)} for a in axes]
        for key, s in found.items():
            log_s[tuple(w[v] for w, v in zip(where, key, strict=True))] = np.log(s)
        # Some products were measured at fewer batch sizes: keep the sizes that all weights up to 16384 have.
        usual = np.isfinite(log_s[:, axes[1] <= 16384][:, :, axes[2] <= 16384]).all((1, 2))
        return cls(axes[0][usual], axes[1], axes[2], log_s[usual])

    def seconds(self, m: float, n: float, k: float) -> float:
        scale, at = 1.0, []
        for label, value, axis in (("batch", m, self.m), ("n", n, self.n), ("k", k, self.k)):
            if value > axis[-1]:
                self.notes[f"product with {label} {value:g} from {axis[-1]} in proportion"] += 1
                scale *= value / axis[-1]
                value = axis[-1]
            hi = min(max(int(np.searchsorted(axis, value)), 1), len(axis) - 1)
            share = np.log(value / axis[hi - 1]) / np.log(axis[hi] / axis[hi - 1])
            if label != "batch" and value not in axis:
                self.notes[f"product with {label} {value:g} between {axis[hi - 1]} and {axis[hi]}"] += 1
            at.append((hi, share))
        total = 0.0
        for corner in np.ndindex(2, 2, 2):
            weight = float(np.prod([s if c else 1 - s for c, (_, s) in zip(corner, at, strict=True)]))
            if weight:
                total += weight * self.log_s[tuple(hi - 1 + c for c, (hi, _) in zip(corner, at, strict=True))]
        return scale * float(np.exp(total))


@dataclass
class Attention:
    """Seconds of one layer's attention with the heads that one GPU holds."""

    prefill: dict[int, tuple[NDArray, NDArray]]
    """By batch: prompt lengths (no context), seconds."""
    decode: dict[int, tuple[NDArray, NDArray]]
    """By batch: KV tokens a sequence, seconds."""
    walked: tuple[NDArray, NDArray] | None
    """KV tokens and seconds of one thread block's walk over them; None where the context is split."""
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, folder: Path, heads: int, kv_heads: int, walks: bool) -> Attention:
        which = {"num_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 128, "kv_cache_dtype": "bfloat16",
                 "window_size": 0}
        out = []
        for name, length in (("context", "isl"), ("generation", "step")):
            found = rows(folder / f"{name}_attention_perf.parquet", **which)
            if not found:
                raise UserError(folder, f"has no {name} attention with {heads} heads, {kv_heads} KV heads",
                                "choose another tensor parallel size")
            by: dict[int, tuple[NDArray, NDArray]] = {}
            for batch in sorted({r["batch_size"] for r in found}):
                # A decode at step s reads s earlier tokens and the new one.
                here = dict(sorted((r[length] + (name == "generation"), r["latency"] / 1e3) for r in found
                                   if r["batch_size"] == batch))
                by[batch] = (np.array(list(here), float), np.array(list(here.values())))
            out.append(by)
        alone = {r["isl"]: r["latency"] / 1e3 for r in sorted(
            rows(folder / "context_attention_perf.parquet", **which | {"num_heads": 1, "num_key_value_heads": 1},
                 batch_size=1), key=lambda r: (r["isl"], r["latency"])) if r["isl"] <= WALKED}
        return cls(out[0], out[1], (np.array(list(alone), float), np.array(list(alone.values()))) if walks else None)

    @property
    def longest(self) -> int:
        return int(self.prefill[1][0][-1])

    def cold(self, n: float) -> float:
        """One prompt of n tokens without context: linear in the logarithms."""
        x, y = self.prefill[1]
        return float(np.exp(np.interp(np.log(n), np.log(x), np.log(y)))) if n >= 1 else 0.0

    def chunk(self, n: int, context: int) -> float:
        """A chunk of n tokens at `context`, for which there is no table: what the whole prompt takes beyond its first
        `context` tokens, but no less than the chunk alone, one sequence's decode at that context, or the walk over it
        where the context is not split."""
        if context == 0:
            return self.cold(n)
        return max(self.cold(context + n) - self.cold(context), self.cold(n), self.step(1, context + n),
                   self.walk(context + n))

    def walk(self, kv: float) -> float:
        """One thread block's walk over kv tokens: linear, beyond the last point too."""
        if self.walked is None:
            return 0.0
        x, y = self.walked
        return float(np.interp(kv, x, y)) + max(kv - x[-1], 0) * float((y[-1] - y[-2]) / (x[-1] - x[-2]))

    def cold_batch(self, batch: int, n: int) -> float | None:
        """`batch` prompts of n tokens in one call, if measured."""
        x, y = self.prefill.get(batch, (np.array([]), np.array([])))
        return float(y[x == n][0]) if (x == n).any() else None

    def step(self, batch: int, kv: float) -> float:
        """One decode of `batch` sequences (a measured batch size) with kv tokens each: linear in kv."""
        x, y = self.decode[batch]
        if kv > x[-1]:
            self.notes[f"decode of {batch} beyond {x[-1]:g} tokens each"] += 1
            slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
            return float(y[-1] + slope * (kv - x[-1]))
        return float(np.interp(kv, x, y))


def all_reduce(path: Path, gpus: int) -> tuple[NDArray, NDArray]:
    """Bytes and seconds of vLLM's all-reduce inside a CUDA graph (without the launch, which prefill hides)."""
    found = sorted((r["message_size"], r["latency"] / 1e3) for r in rows(path, num_gpus=gpus, backend="vllm_graph"))
    if not found:
        raise UserError(path, f"has no all-reduce over {gpus} GPUs", "choose 2, 4 or 8")
    return np.array([b for b, _ in found], float), np.array([s for _, s in found])
