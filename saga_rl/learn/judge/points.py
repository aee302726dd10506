"""Where workloads are looked at, found on their training sessions with stock alone, and kept so that it is done once.

Kept below the cache folder (`compile_cache.py`), by workload and by the code that the figures depend on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import demand_tokens
from saga_rl.env.tasks import ROUNDS
from saga_rl.errors import unknown_name
from saga_rl.experiments.closed import roomy
from saga_rl.experiments.compare.scout import sustained as sustained_by
from saga_rl.experiments.compare.settings import MARGIN, P1_RANGE, P1_RATIO, STOCK
from saga_rl.files import atomic
from saga_rl.learn.judge.sessions import Sessions, arranged, cache_folder
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile
from saga_rl.sim.openloop.bound import LOW_PRESSURE, bound
from saga_rl.source_hash import code_hash

SEEDS = (1, 2)
WORKERS = 4
"""Of the closed loop that points are found with; rates are kept by worker."""
OF_DEMAND = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0, 1.15, 1.3)
PEAK_OF = ("lru", "saga", "saga+")
"""Presets whose best throughput is the peak. Named here so that a new preset moves no point."""
SAFE = 4.0
"""Stock's mean completion time over that of infinite memory, beyond which a point is too near a collapse."""
PROFILE = "a100-llama3-70b-tp4"
"""The assumed costs that the shipped checkpoints were found and judged with: points stay where they were."""
_ROOT = Path(__file__).resolve().parents[2]


@lru_cache(maxsize=1)
def code() -> str:
    """Of what a workload's sessions and points follow from."""
    files = [p for folder in ("aeg", "sim") for p in sorted((_ROOT / folder).rglob("*.py"))]
    files += [_ROOT / "learn" / "judge" / f for f in ("sessions.py", "points.py")]
    files += sorted((_ROOT / "policies" / "features").glob("*.py"))
    files += [_ROOT / "policies" / f for f in ("state/chains.py", "state/tables.py", "eviction/lru.py")]
    return code_hash(*(p.read_text(encoding="utf-8") for p in files))


def _kept(what: str, name: str, data: str, find: Callable[[Sessions], dict[str, Any]]) -> dict[str, Any]:
    w = Sessions(name, data=data)
    text = json.dumps([what, w.identity, code(), SEEDS, WORKERS], sort_keys=True, default=dict)
    path = cache_folder() / f"{what}-{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    found = find(w)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as tmp:
        tmp.write_text(json.dumps(found, allow_nan=False))
    return found


POINTS = ("P1", "P2", "P3")


def config_at(w: Sessions, point: str, workers: int) -> SimConfig:
    """`workers` workers of the capacity of P1; a closed population at P1, the trace's arrivals elsewhere. Raises
    `UserError` for an unknown point."""
    if point not in POINTS:
        raise unknown_name("point", point, POINTS)
    closed = w.definition.population * workers if point == "P1" else 0
    return SimConfig(workers=workers, kv_tokens=pressure(w.name, w.data)["kv_tokens"], population=closed,
                     profile=load_profile(PROFILE), end_hint=not w.hidden)


@lru_cache(maxsize=64)
def pressure(name: str, data: str = "") -> dict[str, Any]:
    """P1: `kv_tokens`, `lru_over_belady`, `stock_over_infinite` (closed loop, mean completion time), `in_range`,
    `sound`, and everything tried.

    Tried are `OF_DEMAND` x what live sessions hold in unlimited memory (never under `MARGIN` x the longest context).
    Of the capacities whose LRU / Belady ratio lies within `P1_RANGE` and at which stock is `SAFE` from a collapse, the
    smallest: the most pressure. If none is safe, the safest in range; if none is in range, the nearest to `P1_RATIO`.
    """
    return _kept("pressure", name, data, _pressure)


def _pressure(w: Sessions) -> dict[str, Any]:
    population = w.definition.population
    config = SimConfig(population=population, profile=load_profile(PROFILE), end_hint=True)
    alone = [arranged(w, "train", s, max(100, 2 * ROUNDS * population), 0.0) for s in SEEDS]
    cluster = [arranged(w, "train", s, ROUNDS * population * WORKERS, 0.0) for s in SEEDS]
    together = replace(config, workers=WORKERS, population=WORKERS * population)
    longest = int((w.split("train").steps.prompt_tokens + w.split("train").steps.output_tokens).max())
    for part in ("validation", "test"):  # a pool has to hold whatever will run on it
        steps = w.split(part).steps
        longest = max(longest, int((steps.prompt_tokens + steps.output_tokens).max()))
    demand = max(demand_tokens(t, config) for t in alone)
    free = _mean([_tct(t, replace(together, kv_tokens=roomy(t, 0))) for t in cluster])
    tried = []
    for kv in sorted({math.ceil(max(MARGIN * longest, m * demand) / 16) * 16 for m in OF_DEMAND}):
        runs = [bound(t, replace(config, kv_tokens=kv), [STOCK]) for t in alone]
        best, first, lru = (sum(x) for x in zip(*((r["belady_recomputed_tokens"], r["first_time_tokens"],
                            r["policies"][STOCK]["recomputed_tokens"]) for r in runs), strict=True))
        slow = _mean([_tct(t, replace(together, kv_tokens=kv)) for t in cluster]) / free
        tried.append({"kv_tokens": kv, "lru_over_belady": lru / best if best > LOW_PRESSURE * first else None,
                      "stock_over_infinite": slow})
    chosen = choose(tried)
    ratio = chosen["lru_over_belady"]
    return chosen | {"in_range": ratio is not None and P1_RANGE[0] <= ratio <= P1_RANGE[1],
                     "sound": chosen["stock_over_infinite"] <= SAFE, "demand_tokens": demand,
                     "population_per_worker": population, "tried": tried}


def choose(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The rule of `pressure`; without any ratio the smallest capacity."""
    known = [t for t in tried if t["lru_over_belady"]]
    inside = [t for t in known if P1_RANGE[0] <= t["lru_over_belady"] <= P1_RANGE[1]]
    sound = [t for t in inside if t["stock_over_infinite"] <= SAFE]
    if sound:
        return dict(min(sound, key=lambda t: t["kv_tokens"]))
    if inside:
        return dict(min(inside, key=lambda t: t["stock_over_infinite"]))
    return dict(min(known, key=lambda t: abs(math.log(t["lru_over_belady"] / P1_RATIO))) if known else tried[0])


@lru_cache(maxsize=64)
def sustained(name: str, data: str = "") -> dict[str, Any]:
    """P2: sessions a minute and worker that stock sustains with the capacity of P1
    (`experiments.compare.scout.sustained`)."""
    return _kept("sustained", name, data, _sustained)


def _sustained(w: Sessions) -> dict[str, Any]:
    config = config_at(w, "P2", WORKERS)
    start = peak(w.name, w.data)["per_worker_per_min"] * WORKERS
    n = 2 * ROUNDS * w.definition.population * WORKERS
    found = sustained_by(lambda speed: [arranged(w, "train", s, n, start * speed) for s in SEEDS], config,
                         lambda t: roomy(t, config.kv_tokens))
    rate = start * (found["speed"] or 1.0)
    return {"per_worker_per_min": rate / WORKERS, "limit": found["limit"], "slowdown": found["slowdown"],
            "why": found["why"]}


@lru_cache(maxsize=64)
def peak(name: str, data: str = "") -> dict[str, Any]:
    """Sessions a minute and worker that P1's population completes under the best preset: the peak that P3 is of."""
    return _kept("peak", name, data, _peak)


def _peak(w: Sessions) -> dict[str, Any]:
    n = ROUNDS * w.definition.population * WORKERS
    config = config_at(w, "P1", WORKERS)
    rates = {name: _mean([_throughput(arranged(w, "train", seed, n, 0.0), config, name) for seed in SEEDS])
             for name in PEAK_OF}
    return {"per_worker_per_min": max(rates.values()) / WORKERS, "of": max(rates, key=lambda name: rates[name])}


def _throughput(trace: Trace, config: SimConfig, name: str) -> float:
    """Sessions a minute over the middle half of the completions: neither the start together nor the last ones alone."""
    done = simulate(trace, config, preset(name), slo=False).steps["done_s"]
    last = sorted(float(done[b - 1]) for b in trace.session_offsets[1:])
    low, high = len(last) // 4, 3 * len(last) // 4
    return 60 * (high - low) / (last[high] - last[low])


def _tct(trace: Trace, config: SimConfig) -> float:
    return simulate(trace, config, preset(STOCK), slo=False).metrics["tct_mean_s"]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
