"""Where to look, found on training sessions with the stock policies alone: the capacity P1 and the sustained load."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import demand_tokens
from saga_rl.experiments.compare.settings import P1_RANGE, P1_RATIO, STOCK, SUSTAINED
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.openloop.bound import LOW_PRESSURE, bound

BISECTIONS = 6
DOUBLINGS = 12


def pressure(traces: Sequence[Trace], config: SimConfig, least_tokens: int) -> dict[str, Any]:
    """P1: the capacity, between `least_tokens` and what live sessions hold when memory is no limit, at which LRU
    computes again nearest to `P1_RATIO` x what Belady does, over all `traces`.

    The ratio grows with capacity until Belady computes next to nothing again (low pressure: counts as too large).
    """
    block = config.block_tokens
    demand = int(np.median([demand_tokens(t, config) for t in traces]))
    low, high = math.ceil(least_tokens / block) * block, max(demand, least_tokens)
    tried: dict[int, float] = {}

    def ratio(kv: int) -> float:
        if kv not in tried:
            runs = [bound(t, replace(config, kv_tokens=kv), [STOCK]) for t in traces]
            best = sum(r["belady_recomputed_tokens"] for r in runs)
            first = sum(r["first_time_tokens"] for r in runs)
            stock = sum(r["policies"][STOCK]["recomputed_tokens"] for r in runs)
            tried[kv] = stock / best if best > 0 and best >= LOW_PRESSURE * first else math.inf
        return tried[kv]

    if ratio(low) < P1_RATIO:
        for _ in range(BISECTIONS):
            middle = max(low, round(math.sqrt(low * high) / block) * block)
            if ratio(middle) < P1_RATIO:
                low = middle
            else:
                high = middle
    usable = {kv: r for kv, r in tried.items() if 0 < r < math.inf}
    chosen = min(usable, key=lambda kv: abs(math.log(usable[kv] / P1_RATIO))) if usable else None
    return {"demand_tokens": demand, "capacity_tokens": chosen, "lru_over_belady": usable.get(chosen or 0),
            "in_range": chosen is not None and P1_RANGE[0] <= usable[chosen] <= P1_RANGE[1]}


def sustained(at: Callable[[float], Sequence[Trace]], config: SimConfig,
              roomy: Callable[[Trace], int]) -> dict[str, Any]:
    """The greatest speed found (arrival rate over the recorded one) that the stock arrangement sustains in each of the
    arrangements.

    limit `memory`: its mean TCT is at most `SUSTAINED` x that of infinite memory at the same speed. If memory limits it
    at no speed, limit `compute`: at most `SUSTAINED` x that of infinite memory when sessions come one by one. `speed`
    is null if neither limits it at any speed, or one does at every speed. at: speed -> arrangements.
    """
    def mean_tct(trace: Trace, kv_tokens: int) -> float:
        return simulate(trace, replace(config, kv_tokens=kv_tokens), preset(STOCK), slo=False).metrics["tct_mean_s"]

    def limited(speed: float) -> list[float]:
        return [mean_tct(t, config.kv_tokens) for t in at(speed)]

    def free(speed: float) -> list[float]:
        return [mean_tct(t, roomy(t)) for t in at(speed)]

    def over(ours: list[float], theirs: list[float]) -> float:
        return max(x / y for x, y in zip(ours, theirs, strict=True))

    limit = "memory"
    speed, found = _greatest(lambda s: over(limited(s), free(s)))
    if speed is None and found <= SUSTAINED:
        apart = free(2.0**-DOUBLINGS)
        limit = "compute"
        speed, found = _greatest(lambda s: over(limited(s), apart))
    if speed is None:
        every = "at every arrival rate" if found > SUSTAINED else "at no arrival rate"
        return {"speed": None, "sessions_per_min": None, "slowdown": found, "limit": None, "why": f"{limit} limits it "
                f"{every}, so there is no load to take fractions of"}
    spans = [(t.n_sessions - 1, float(np.ptp(t.sessions.arrival_s))) for t in at(speed)]
    return {"speed": speed, "sessions_per_min": 60 * sum(n for n, _ in spans) / sum(s for _, s in spans),
            "slowdown": found, "limit": limit, "why": None}


def _greatest(slowdown: Callable[[float], float]) -> tuple[float | None, float]:
    """The greatest speed at which `slowdown` was found at most `SUSTAINED`, and the slowdown there. Doubles or halves
    from 1 until the limit lies between two speeds, then bisects. (None, the last slowdown) if it never does."""
    low, high = 1.0, 1.0
    found = at_low = slowdown(1.0)
    rising = found <= SUSTAINED
    for _ in range(DOUBLINGS):
        if rising:
            low, high, at_low = high, 2 * high, found
            found = slowdown(high)
        else:
            low, high = low / 2, low
            found = at_low = slowdown(low)
        if (found <= SUSTAINED) != rising:
            break
    else:
        return None, found
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        if (found := slowdown(middle)) <= SUSTAINED:
            low, at_low = middle, found
        else:
            high = middle
    return low, at_low
