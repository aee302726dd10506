"""The hindsight search of `benchmarks/placement_hindsight.py`: what it computes of an assignment is what happens."""

import sys
from pathlib import Path

import numpy as np
import pytest

from saga_rl.aeg.generators import generate
from saga_rl.env.vector import TaskVectorEnv
from saga_rl.policies.presets import PRESETS, from_specs
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import placement_hindsight as hindsight

CONFIG = SimConfig(workers=2, kv_tokens=100_000, population=8)


@pytest.fixture(scope="module")
def trace():
    return generate("webarena", 5, sessions=20, max_context=32_768)


def test_its_start_is_least_sessions(trace):
    where, tct = hindsight.run(trace, CONFIG, None)
    placed = from_specs(PRESETS["saga+"] | {"placement": "least-sessions"})
    assert tct == simulate(trace, CONFIG, placed, slo=False).metrics["tct_mean_s"]
    assert len(where) == 20 and set(where) == {0, 1}


def test_every_try_is_judged_by_its_own_run(trace):
    env = TaskVectorEnv("placement", 3, trace, config=CONFIG, shuffle=False, policies="saga+", copy=False,
                        autoreset_mode="Disabled")
    tries = np.random.default_rng(0).integers(0, 2, (3, 20))
    costs = hindsight.log_tcts(env, tries)
    assert len(set(costs)) == 3
    for cost, where in zip(costs, tries, strict=True):
        used, tct = hindsight.run(trace, CONFIG, where)
        assert (used == where).all()
        assert 0.5 * tct < np.exp(cost / 20) <= tct  # the geometric mean is at most the mean


def test_what_it_finds_is_no_worse_than_its_start(trace):
    env = TaskVectorEnv("placement", 1, trace, config=CONFIG, shuffle=False, policies="saga+", copy=False,
                        autoreset_mode="Disabled")
    best = hindsight.found(trace, CONFIG, 4, 8, 0, lambda text: None)
    start, _ = hindsight.run(trace, CONFIG, None)
    assert hindsight.log_tcts(env, best[None])[0] <= hindsight.log_tcts(env, start[None])[0]
