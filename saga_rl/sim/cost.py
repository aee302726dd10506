"""Seconds of one engine iteration, and the profiles that hold its constants.

    seconds = base + prefill * P + attention * A + kv * K + seq * D

P prefill tokens computed, A their attention pairs (tokens x context, each chunk of n tokens at context c counts
n * (c + n / 2)), K tokens of KV read by the D decoding sequences.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.errors import UserError, unknown_name
from saga_rl.files import must_exist, write_json


@dataclass(frozen=True)
class CostProfile:
    """Constants of the iteration's cost, all seconds and >= 0, with where they come from."""

    name: str
    base_s: float
    per_prefill_token_s: float
    per_kv_token_s: float
    per_seq_s: float = 0.0
    per_attn_s: float = 0.0
    kv_tokens: int = 240_000
    """KV pool of one worker on that hardware, the default for `--kv-tokens`."""
    max_batched_tokens: int = 2048
    provenance: dict[str, Any] = field(default_factory=dict)

    def vector(self) -> NDArray[np.float64]:
        """(5,) base, prefill, kv, seq, attention: what compiled code reads."""
        return np.array([self.base_s, self.per_prefill_token_s, self.per_kv_token_s, self.per_seq_s, self.per_attn_s])

    def save(self, path: str | Path) -> None:
        write_json(path, asdict(self))


def profile_names() -> list[str]:
    """Profiles that ship with the package."""
    return sorted(p.name.removesuffix(".json") for p in files("saga_rl.sim").joinpath("profiles").iterdir()
                  if p.name.endswith(".json"))


def load_profile(name: str | Path) -> CostProfile:
    """A shipped profile by name, or a JSON file by path. Raises `UserError`."""
    text = str(name)
    if text in profile_names():
        return _parse(files("saga_rl.sim").joinpath("profiles", f"{text}.json").read_text(), text)
    if not text.endswith(".json"):
        raise unknown_name("profile", text, profile_names())
    return _parse(must_exist(text).read_text(), text)


def _parse(text: str, where: str) -> CostProfile:
    try:
        raw = json.loads(text)
    except ValueError as e:
        raise UserError(where, f"is not JSON ({e})", "write it with `CostProfile.save`") from None
    if not isinstance(raw, dict):
        raise UserError(where, "is not a JSON object", "give the fields of a cost profile")
    known = {f.name: f for f in fields(CostProfile)}
    for key in raw:
        if key not in known:
            raise unknown_name(f"{where}: profile field", key, known)
    missing = [k for k in ("name", "base_s", "per_prefill_token_s", "per_kv_token_s") if k not in raw]
    if missing:
        raise UserError(where, f"lacks {missing[0]}", "add it")
    for key, value in raw.items():
        if key not in ("name", "provenance") and not (
                isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise UserError(f"{where}: {key}", f"is {value!r}", "give a finite number >= 0")
    for key in ("base_s", "per_prefill_token_s", "kv_tokens", "max_batched_tokens"):
        if key in raw and not raw[key] > 0:
            raise UserError(f"{where}: {key}", "is 0", "give a number > 0")
    return CostProfile(**raw)
