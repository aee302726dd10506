"""The preset `auto` where memory is not short: its run is as good as stock's with the same tier. The whole table is in
docs/explanation/no-harm.md."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from saga_rl.learn.judge.sessions import DEFINED, Sessions, arranged
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile

PROFILE = load_profile("h100-llama3-70b-tp4")
ALIVE, SESSIONS, WINDOW = 4, 24, 128_000
MEAN, P95 = 1.01, 1.02


@cache
def sessions(name: str, data: str, n: int = SESSIONS):
    drawn = arranged(Sessions(name, True, data), "test", 0, 1_000_000 if data else n, 0.0)
    longest = np.maximum.reduceat(drawn.steps.prompt_tokens + drawn.steps.output_tokens, drawn.session_offsets[:-1])
    return drawn.select(np.flatnonzero(longest <= WINDOW)[:n])


def times(trace, tier, policy, alive):
    config = SimConfig(kv_tokens=PROFILE.kv_tokens, profile=PROFILE, end_hint=False, tool_names=False, population=alive,
                       cpu_tokens=int(tier * PROFILE.kv_tokens), offloading="vllm")
    return simulate(trace, config, preset(policy), slo=False).tct_s


def check(trace, tier, alive=ALIVE):
    stock, auto = times(trace, tier, "lru", alive), times(trace, tier, "auto", alive)
    assert auto.mean() <= MEAN * stock.mean()
    assert np.quantile(auto, 0.95) <= P95 * np.quantile(stock, 0.95)


@pytest.mark.parametrize("tier", [0, 1, 2, 4])
@pytest.mark.parametrize("name", [n for n in DEFINED if n != "drift"])
def test_where_memory_is_not_short_nothing_gets_worse(name, tier):
    check(sessions(name, ""), tier)


@pytest.mark.parametrize(("name", "alive"), [("shift", 19), ("hetero", 13)])
def test_many_sessions_that_fit_with_a_tier(name, alive):
    """What `likely` loses by a third and more: it keeps room for sessions that are over."""
    trace = sessions(name, "", 4 * alive)
    check(trace, 4, alive)
    assert times(trace, 4, "likely", alive).mean() > 1.1 * times(trace, 4, "lru", alive).mean()


@pytest.mark.parametrize("tier", [0, 1, 2, 4])
@pytest.mark.parametrize("name", ["weka", "katas"])
def test_nor_on_recorded_sessions(name, tier, shared_data: Path):
    check(sessions(name, str(shared_data)), tier)
