"""What the policy will serve in, and whether there is anything to win there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from saga_rl.errors import UserError
from saga_rl.learn.own.settings import NO_PRESSURE, WANTED, Settings
from saga_rl.runtime.emulate.shapes import SHAPES
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import CostProfile, load_profile

NEAR = 1.2
"""Populations so many times apart count as one."""
SCOUTS = (1, 2)
"""Arrangements of training sessions that pressure is measured on."""


def window_of(s: Settings, profile: CostProfile, pool: int) -> tuple[int, str]:
    """(longest context, tokens; what says so)."""
    model = str(profile.provenance.get("model", ""))
    own = int(SHAPES[model]["max_position_embeddings"]) if model in SHAPES else 0
    if s.window:
        window, said = s.window, "--window"
    elif own:
        window, said = own, f"the window of {model}"
    else:
        return pool, "the KV pool of a worker"
    return (window, said) if window <= pool else (pool, "the KV pool of a worker")


def config_of(s: Settings, population: int) -> dict[str, Any]:
    """`SimConfig` as JSON; its profile by name or file."""
    pool = s.kv_tokens or load_profile(s.profile).kv_tokens
    tier: dict[str, Any] = {} if not s.cpu_tokens else {
        "cpu_tokens": s.cpu_tokens, "offloading": "lazy" if s.lazy_offload else "vllm"}
    return {"profile": s.profile, "workers": s.workers, "kv_tokens": pool, "population": population,
            "end_hint": s.ends, "tool_names": False, "expiry_s": s.expiry_s, "max_num_seqs": s.max_num_seqs,
            "max_batched_tokens": s.max_batched_tokens, **tier}


def with_vllms_tier(config: dict[str, Any]) -> dict[str, Any]:
    """The same memory below the GPU, used as vLLM itself does."""
    return config | {"offloading": "vllm"} if config.get("cpu_tokens") else config


@dataclass(frozen=True)
class Pressure:
    """population: alive at once, 0 with open arrivals; ratio: stock's mean completion over that of infinite memory,
    with the same tier; tried: (population, ratio)."""

    population: int
    ratio: float
    tried: list[tuple[int, float]]


def population_at(ratio: Callable[[int], float], first: int, most: int) -> Pressure:
    """The population from 1 to `most` at which `ratio` comes nearest to `WANTED`, of a search that begins at `first`:
    doubled or halved until `WANTED` lies between two, then halved geometrically."""
    tried: dict[int, float] = {}

    def at(n: int) -> float:
        if n not in tried:
            tried[n] = ratio(n)
        return tried[n]

    low = high = max(1, min(first, most))
    if at(low) < WANTED:
        while at(high) < WANTED and high < most:
            low, high = high, min(2 * high, most)
    else:
        while at(low) >= WANTED and low > 1:
            low, high = low // 2, low
    while high / low > NEAR and high - low > 1 and at(low) < WANTED <= at(high):
        middle = max(low + 1, min(high - 1, round((low * high) ** 0.5)))
        low, high = (middle, high) if at(middle) < WANTED else (low, middle)
    best = min(tried, key=lambda n: (abs(np.log(tried[n] / WANTED)), n))
    return Pressure(best, tried[best], sorted(tried.items()))


@dataclass(frozen=True)
class World:
    """The configuration, the sessions of an episode, and what was found about pressure. JSON but for its methods."""

    config: dict[str, Any]
    load: float
    pressure: Pressure
    sessions: dict[str, int]
    """Of an episode, by part."""

    def sim(self) -> SimConfig:
        given = dict(self.config)
        return SimConfig(profile=load_profile(given.pop("profile")), **given)

    def described(self) -> str:
        """One line."""
        c = self.config
        tier = f" and {c['cpu_tokens']:,} below the GPU" if c.get("cpu_tokens") else ""
        if c.get("offloading") == "lazy":
            tier += " (under our policies --lazy-offload)"
        alive = f"{self.load:g} times the trace's arrivals" if self.load else f"{c['population']} sessions alive"
        return (f"{c['workers']} worker{'s' * (c['workers'] > 1)} of {c['kv_tokens']:,} KV tokens{tier}, {alive}, ends "
                f"{'announced' if c['end_hint'] else 'not announced'}, costs of {load_profile(c['profile']).name}")


def check_pressure(p: Pressure, where: str, anyway: bool, most: int) -> None:
    """`UserError` where stock is about as fast as with infinite memory."""
    if p.ratio >= NO_PRESSURE or anyway:
        return
    raise UserError("no pressure", f"with {where} vLLM as it is takes {p.ratio:.3f} times as long as with infinite "
                    "memory: no policy can win anything" + (
                        f" (more than {most} alive at once are not tried: the smallest part of the trace holds too few "
                        "sessions)" if p.population >= most else ""),
                    "give a smaller --kv-tokens, a larger --population or --load, or --anyway")


def most_alive(parts: dict[str, int]) -> int:
    """Sessions alive at once that every part of the trace can feed."""
    return max(1, 2 * min(parts.values()) // 3)


def of_an_episode(population: int, rounds: int, there: int) -> int:
    """Sessions of an episode; all that are there with open arrivals."""
    return min(rounds * population, there) if population else there


def first_guess(config: dict[str, Any], median_longest: float) -> int:
    """A population whose contexts fill the pools about once."""
    return max(1, round(config["workers"] * config["kv_tokens"] / max(median_longest, 1.0)))

