"""Split a trace into parts by group: sessions that share content or task never land in different parts."""

from __future__ import annotations

import math

import numpy as np

from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError


def split(trace: Trace, fractions: dict[str, float], seed: int) -> dict[str, Trace]:
    """Part name -> sub-trace. `fractions` (positive, sum 1) are shares of the sessions, met as closely as whole groups
    allow: groups are shuffled by `seed`, the largest placed first, each into the part that lacks most.

    Vocabularies stay whole, arrivals as they are. Raises `UserError` for bad fractions or if a part would be empty.
    """
    total = sum(fractions.values())
    for name, share in fractions.items():
        if not name or any(c in name for c in "/\\"):
            raise UserError("fractions", f"part name {name!r} does not make a file name",
                            "use letters, digits, - and _")
        if not (math.isfinite(share) and share > 0):
            raise UserError(f"fraction {name}", f"is {share}", "give a positive share")
    if not fractions or abs(total - 1.0) > 1e-6:
        raise UserError("fractions", f"sum to {total:g}", "make them sum to 1")
    _, codes, sizes = np.unique(np.array(trace.sessions.group), return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    names = list(fractions)
    wanted = np.array([fractions[n] * trace.n_sessions for n in names])
    part_of = np.zeros(len(sizes), np.int64)
    lack = wanted.copy()
    for g in order:
        part_of[g] = int(np.argmax(lack))
        lack[part_of[g]] -= sizes[g]
    out = {}
    for i, name in enumerate(names):
        rows = np.flatnonzero(part_of[codes] == i)
        if not len(rows):
            raise UserError(f"part {name}", f"would be empty: the trace has {len(sizes)} groups of sessions",
                            "ask for fewer or larger parts")
        out[name] = trace.select(rows, f"{trace.meta.name}-{name}")
    return out
