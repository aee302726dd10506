"""Seconds of one engine iteration and the profiles that hold its constants; the form is in `iteration_cost.py`.

A profile is either assumed or fitted; its `provenance` says which, from what, and with what error. `fitted` holds the
ranges that the fit saw: beyond them the form is extrapolated, which `CostProfile.outside` puts in words.
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
from saga_rl.sim.cost.iteration import seconds as iteration_seconds

RANGES = {
    "prefill_tokens": "prefill tokens in an iteration",
    "context_tokens": "tokens of context before a prefill chunk",
    "decode_seqs": "sequences decoded in an iteration",
    "decode_kv_tokens": "KV tokens read by the decodes of an iteration",
}
"""What `CostProfile.fitted` may bound, in words."""


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
    per_context_s: float = 0.0
    """A token of context that a prefill chunk reads."""
    batch_tokens: tuple[float, ...] = ()
    """Knots of the table over the tokens of a batch, increasing."""
    batch_s: tuple[float, ...] = ()
    """Seconds at the knots, never falling."""
    fitted: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Least and greatest value that the fit saw of each of `RANGES`; empty: not known."""

    def vector(self) -> NDArray[np.float64]:
        """(7 + 2 x knots,) what compiled code reads; the layout of `saga_rl/sim/cost/iteration.py`."""
        return np.array([self.base_s, self.per_prefill_token_s, self.per_kv_token_s, self.per_seq_s, self.per_attn_s,
                         self.per_context_s, len(self.batch_tokens), *self.batch_tokens, *self.batch_s])

    def seconds(self, prefill: float = 0, pairs: float = 0, context: float = 0, kv_read: float = 0,
                decoding: float = 0) -> float:
        """Seconds of one iteration, by the compiled function. For the meaning of the arguments see there."""
        return float(iteration_seconds(self.vector(), float(prefill), float(pairs), float(context), float(kv_read),
                                       float(decoding)))

    @property
    def prefill_tokens_per_s(self) -> float:
        """Rate at which full chunks of cold prompts are computed, beyond what an iteration costs anyway."""
        n = self.max_batched_tokens
        return n / (self.seconds(n, n ** 2 / 2) - self.seconds())

    def outside(self, seen: dict[str, float]) -> list[str]:
        """A sentence for each value of `seen` (keys of `RANGES`) beyond what was fitted; none where that is unknown.

        Zero is never outside: an iteration without decodes says nothing about them.
        """
        out = []
        for key, value in seen.items():
            if key not in RANGES:
                raise unknown_name("range", key, RANGES)
            low, high = self.fitted.get(key, (0.0, math.inf))
            if value > high:
                out.append(f"{self.name}: {value:,.0f} {RANGES[key]}, fitted up to {high:,.0f}: extrapolated")
            elif 0 < value < low:
                out.append(f"{self.name}: {value:,.0f} {RANGES[key]}, fitted from {low:,.0f}: extrapolated")
        return out

    def save(self, path: str | Path) -> None:
        write_json(path, asdict(self))


def profile_names() -> list[str]:
    """Profiles that ship with the package."""
    return sorted(p.name.removesuffix(".json") for p in files("saga_rl.sim.cost").joinpath("profiles").iterdir()
                  if p.name.endswith(".json"))


def load_profile(name: str | Path) -> CostProfile:
    """A shipped profile by name, or a JSON file by path. Raises `UserError`."""
    text = str(name)
    if text in profile_names():
        return _parse(files("saga_rl.sim.cost").joinpath("profiles", f"{text}.json").read_text(), text)
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
    if not isinstance(raw["name"], str):
        raise UserError(f"{where}: name", f"is {raw['name']!r}", "give a text")
    if not isinstance(raw.get("provenance", {}), dict):
        raise UserError(f"{where}: provenance", f"is {raw['provenance']!r}", "give a JSON object")
    for key, value in raw.items():
        if key not in ("name", "provenance", "batch_tokens", "batch_s", "fitted") and not _number(value):
            raise UserError(f"{where}: {key}", f"is {value!r}", "give a finite number >= 0")
    for key in ("base_s", "kv_tokens", "max_batched_tokens"):
        if key in raw and not raw[key] > 0:
            raise UserError(f"{where}: {key}", "is 0", "give a number > 0")
    tokens, seconds = _knots(raw, where)
    if not raw["per_prefill_token_s"] > 0 and not (seconds and seconds[-1] > seconds[-2]):
        raise UserError(f"{where}: per_prefill_token_s", "is 0, and no table over batch tokens rises at its end",
                        "give a number > 0: prefill must take time")
    return CostProfile(**raw | {"batch_tokens": tokens, "batch_s": seconds, "fitted": _ranges(raw, where)})


def _number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0)


def _knots(raw: dict[str, Any], where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The table of batch tokens, checked: it must rise, and be no less than 0 where its first piece meets 0 tokens."""
    out: list[tuple[float, ...]] = []
    for key in ("batch_tokens", "batch_s"):
        value = raw.get(key, [])
        if not isinstance(value, list) or not all(map(_number, value)):
            raise UserError(f"{where}: {key}", f"is {value!r}", "give a list of finite numbers >= 0")
        out.append(tuple(float(v) for v in value))
    x, y = out
    if len(x) != len(y):
        raise UserError(f"{where}: batch_s", f"has {len(y)} numbers for {len(x)} batch_tokens", "give one a knot")
    if len(x) == 1:
        raise UserError(f"{where}: batch_tokens", "has one knot", "give two or more, or none")
    if (np.diff(x) <= 0).any():
        raise UserError(f"{where}: batch_tokens", "does not increase", "sort the knots, each once")
    if (np.diff(y) < 0).any():
        raise UserError(f"{where}: batch_s", "falls", "more tokens must not take less time")
    if x and y[0] * (x[1] - x[0]) < (y[1] - y[0]) * x[0]:
        raise UserError(f"{where}: batch_s", "is below 0 at 0 tokens when its first piece goes on",
                        "add a knot at 1 token")
    return x, y


def _ranges(raw: dict[str, Any], where: str) -> dict[str, tuple[float, float]]:
    value = raw.get("fitted", {})
    if not isinstance(value, dict):
        raise UserError(f"{where}: fitted", f"is {value!r}", "give an object of [least, greatest] pairs")
    for key, pair in value.items():
        if key not in RANGES:
            raise unknown_name(f"{where}: fitted range", key, RANGES)
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(_number, pair)) and pair[0] <= pair[1]):
            raise UserError(f"{where}: fitted: {key}", f"is {pair!r}", "give [least, greatest], finite numbers >= 0")
    return {key: (float(low), float(high)) for key, (low, high) in value.items()}
