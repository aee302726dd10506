"""A cost profile from logged iterations: what `CostProfile` needs, and how well it explains them.

Least squares with every iteration weighted by 1 / its predicted time, repeated until the weights settle, no constant
below 0. Noise in an iteration grows with its length, so long iterations must not decide alone, as they would with
absolute errors; and relative errors would let the total drift. With these weights the fitted times of all iterations
add up to the measured total: multiply the normal equations by the constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fidelity_kit.log import COMPOSITION, EngineLog, compositions
from saga_rl.errors import UserError
from saga_rl.sim.cost.fit import hats, nnls, region_errors
from saga_rl.sim.cost.iteration import seconds as iteration_seconds
from saga_rl.sim.cost.profile import CostProfile

KNOTS = (1.0, 8.0, 32.0, 128.0, 256.0)
"""Tokens of a batch between which the table is linear; those above the engine's limit are left out."""
ROUNDS, FLOOR_S, LEAST = 8, 1e-9, 100
CHUNK, MANY = 64, 8
"""Borders between regions of the table of errors: prefill tokens, decoding sequences."""


@dataclass(frozen=True)
class Fit:
    """The profile and what it leaves unexplained."""

    profile: CostProfile
    regions: dict[str, dict[str, Any]]
    """`region_errors`, and each region's share of the time (`share`) and error of its total (`total`)."""
    residual_share: float
    """Sum of |predicted - measured| over the sum of the measured."""
    explained: float
    """Share of the variance of iteration times that the profile explains (R squared)."""


def iterations(logs: list[EngineLog]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, 5) `COMPOSITION` and (n,) seconds of all iterations that computed something."""
    rows = np.concatenate([compositions(log) for log in logs])
    seconds = np.concatenate([np.diff(log.spans, axis=1)[:, 0] for log in logs])
    busy = (rows[:, 0] + rows[:, 4]) > 0
    return rows[busy], seconds[busy]


def begins(logs: list[EngineLog]) -> NDArray[np.float64]:
    """(n,) when the iterations of `iterations` began, seconds from the start of their run."""
    return np.concatenate([log.spans[(compositions(log)[:, [0, 4]] > 0).any(axis=1), 0] for log in logs])


def region_names(rows: NDArray[np.float64]) -> list[str]:
    """What kind of iteration each row is."""
    out = []
    for prefill, _, _, _, decoding in rows.tolist():
        chunk = f"prefill {'<=' if prefill <= CHUNK else '>'} {CHUNK} tokens"
        batch = f"decode {'<=' if decoding <= MANY else '>'} {MANY} sequences"
        out.append(batch if not prefill else chunk if not decoding else f"{chunk} + decode")
    return out


def fit_profile(rows: NDArray[np.float64], seconds: NDArray[np.float64], max_batched_tokens: int,
                name: str = "fidelity", knots: tuple[float, ...] = KNOTS, **notes: Any) -> Fit:
    """Fit the form of `saga_rl/sim/cost/iteration.py`. rows: (n, 5) `COMPOSITION`. Raises `UserError` for too few."""
    if len(rows) < LEAST:
        raise UserError("fit", f"has {len(rows)} iterations, fewer than {LEAST}", "let the engines run longer")
    prefill, pairs, context, kv_read, decoding = rows.T
    knots = (*(k for k in knots if k < max_batched_tokens), float(max_batched_tokens))
    table = hats(prefill + decoding, knots)
    design = np.column_stack([table, pairs, context, kv_read, decoding])
    predicted = np.full(len(seconds), seconds.mean())
    for _ in range(ROUNDS):
        weight = 1.0 / np.sqrt(predicted)
        x = nnls(design * weight[:, None], seconds * weight)
        predicted = np.maximum(design @ x, FLOOR_S)
    steps = x[:len(knots)].copy()
    base, steps[0] = max(float(steps[0]), FLOOR_S), 0.0
    attention, per_context, kv, seq = (float(v) for v in x[len(knots):])
    profile = CostProfile(
        name, base, 0.0, kv, seq, attention, max_batched_tokens=max_batched_tokens, per_context_s=per_context,
        batch_tokens=knots, batch_s=tuple(np.cumsum(steps).tolist()), fitted=_ranges(rows),
        provenance={"kind": "fitted", "iterations": len(rows), "terms": list(COMPOSITION)} | notes)
    predicted = seconds_of(profile, rows)
    return Fit(profile, _regions(rows, predicted, seconds), float(np.abs(predicted - seconds).sum() / seconds.sum()),
               float(1 - np.square(predicted - seconds).sum() / np.square(seconds - seconds.mean()).sum()))


def errors(profile: CostProfile, rows: NDArray[np.float64], seconds: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
    """The errors of a profile by region on iterations that it was not fitted to."""
    return _regions(rows, seconds_of(profile, rows), seconds)


def seconds_of(profile: CostProfile, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) what the profile says of (n, 5) `COMPOSITION`."""
    cost = profile.vector()
    return np.array([iteration_seconds(cost, *row) for row in rows])


def _regions(rows: NDArray, predicted: NDArray, seconds: NDArray) -> dict[str, dict[str, Any]]:
    names = region_names(rows)
    out = region_errors(names, predicted, seconds)
    for name, one in out.items():
        here = np.array([n == name for n in names])
        one["share"] = float(seconds[here].sum() / seconds.sum())
        one["total"] = float(predicted[here].sum() / seconds[here].sum() - 1)
    out["all"] = region_errors(["all"] * len(rows), predicted, seconds)["all"] | {
        "share": 1.0, "total": float(predicted.sum() / seconds.sum() - 1)}
    return out


def _ranges(rows: NDArray) -> dict[str, tuple[float, float]]:
    prefill, _, context, kv_read, decoding = rows.T
    columns = {"prefill_tokens": prefill, "context_tokens": context, "decode_seqs": decoding,
               "decode_kv_tokens": kv_read}
    return {key: (float(v[v > 0].min()), float(v.max())) for key, v in columns.items() if (v > 0).any()}
