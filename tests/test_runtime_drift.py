"""A learned eviction policy that errs more than the heuristic where they disagree gives way to it, loudly."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numba import njit
from runtime_kit import Clock, drain, make_request, make_scheduler
from test_skew_pool import PROFILE, SagaEngine

from saga_rl.aeg.generators import generate
from saga_rl.aeg.scale import scale_lengths
from saga_rl.policies.base import SCORE, Policy, PolicySet
from saga_rl.policies.features import EV, EVICTION
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.runtime.engine.kv.victims import HEURISTIC
from saga_rl.runtime.engine.scheduler import SagaSyncScheduler
from saga_rl.sim.config import SimConfig

pytestmark = pytest.mark.vllm
BLOCK = 16
PATIENT = {"budget_s": 60.0}
"""A decision may take as long as a busy machine wants: what is looked at is drift."""
TRAINED = Path(__file__).resolve().parents[1] / "checkpoints" / "eviction"


@njit(SCORE)
def newest_first(x, params, scratch):
    return -x[EV.idle_s]


@njit(SCORE)
def oldest_first(x, params, scratch):
    return x[EV.idle_s]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


def serve(folder, score, doc, rounds=60, between=1, idle=8):
    """`idle` sessions lie idle for good; one comes back again and again, each time after `between` others came."""
    trained = Policy("eviction", "trained", score, np.zeros(1), doc=doc)
    policies: PolicySet = replace(preset("lru"), eviction=trained)
    clock = Clock()
    s = make_scheduler(SagaSyncScheduler, folder, clock=clock, blocks=5 * idle, policies=policies, saga=PATIENT)

    def ask(name: str, token: int, k: int) -> None:
        s.add_request(make_request(f"{name}.{k}", [token] * (4 * BLOCK + 3), output=2, session=name))
        drain(s, clock)
        clock.now += 1.0

    for i in range(idle):
        ask(f"idle{i}", 1000 + i, 0)
    for k in range(rounds):
        ask("busy", 5, k)
        for j in range(between):
            ask(f"new{k}.{j}", 100 + between * k + j, 0)
    return s


def test_a_policy_that_takes_who_comes_back_is_replaced(folder, caplog):
    with caplog.at_level(logging.ERROR):
        s = serve(folder, newest_first, {"pair_error": 0.3}, idle=80)
    victims = s.block_queue.victims
    assert victims.drift.fallbacks == 1 and victims.drift.errors > 10
    assert victims.guard.fallbacks["drift"] > 0
    assert victims.guard.heuristic.name == HEURISTIC
    assert sum("ranks the other way round" in r.getMessage() for r in caplog.records) == 1
    assert s._state()["fallback/eviction/drift"] == victims.guard.fallbacks["drift"]
    rows, out = np.zeros((1, len(EVICTION))), np.zeros(1)
    rows[0, EV.idle_s] = 3.0
    out[0] = victims.guard.heuristic.score(rows[0], victims.guard.heuristic.params, np.zeros(1))
    np.testing.assert_array_equal(victims.guard.scores(rows, 1), out)


def test_one_cause_is_one_error(folder):
    """A session loses its blocks one by one to a request that grows, and comes back: one error, not one a block."""
    trained = Policy("eviction", "trained", newest_first, np.zeros(1), doc={"pair_error": 0.3})
    clock = Clock()
    s = make_scheduler(SagaSyncScheduler, folder, clock=clock, blocks=56, saga=PATIENT,
                       policies=replace(preset("lru"), eviction=trained))

    def ask(name: str, token: int, blocks: int, output: int = 2) -> None:
        s.add_request(make_request(name, [token] * (blocks * BLOCK), output=output, session=name.split(".")[0]))
        drain(s, clock)
        clock.now += 1.0

    for i in range(6):
        ask(f"idle{i}.0", 10 + i, 2)
    ask("large.0", 7, 30)
    before = s.block_queue.evicted["idle"]
    ask("grows.0", 8, 2, output=20 * BLOCK)
    assert s.block_queue.evicted["idle"] - before > 5
    drift = s.block_queue.victims.drift
    assert drift.pairs == 0 and not drift.fresh(s.tracker.chain_of("large"))
    ask("large.1", 7, 31)
    assert drift.pairs == drift.errors == 1 and not drift.fallen_back


def test_a_policy_that_takes_who_stays_away_stays(folder):
    victims = serve(folder, oldest_first, {"pair_error": 0.3}, between=4).block_queue.victims
    assert victims.drift.fallbacks == 0 and victims.drift.errors == 0
    assert victims.guard.decisions > 10 and victims.guard.fallbacks["drift"] == 0


def test_what_carries_no_figure_is_not_watched(folder):
    s = serve(folder, newest_first, {}, rounds=2)
    assert s.block_queue.victims.drift is None


def test_what_a_compacting_session_leaves_is_no_choice_of_the_network(folder):
    """It would be wrong at every turn, and is never asked."""
    trained = Policy("eviction", "trained", oldest_first, np.zeros(1), doc={"pair_error": 0.3})
    clock = Clock()
    s = make_scheduler(SagaSyncScheduler, folder, clock=clock, blocks=40, saga=PATIENT,
                       policies=replace(preset("lru"), eviction=trained))
    victims = s.block_queue.victims
    for name, tokens, blocks in (("long", 7, 12), ("short", 8, 2)):
        s.add_request(make_request(name, [tokens] * (blocks * BLOCK), output=2, session=name))
        drain(s, clock)
    long, short = (s.block_queue.runs.all()[k].chain for k in (0, 1))
    owned = s.block_queue.runs.owned_by
    assert victims.undecided(long, owned(long)) and victims.undecided(short, owned(short))
    s.add_request(make_request("compacted", [9] * (3 * BLOCK), output=2, session="long"))
    assert not victims.undecided(long, owned(long)), "its request waits"
    drain(s, clock)
    assert owned(long) > 3 and not victims.undecided(long, owned(long)), "it holds more than its new context"
    assert victims.undecided(short, owned(short))


class Unannounced(SagaEngine):
    """No client says which request is its last."""

    def _make(self, config):
        scheduler = super()._make(config)
        add = scheduler.add_request

        def add_request(request):
            request.sampling_params.extra_args["saga_final"] = 0
            add(request)

        scheduler.add_request = add_request
        return scheduler


def test_the_shipped_checkpoint_is_not_given_up_on_traffic_of_its_kind():
    """Coding agents with sub-agents, small and fast, on vLLM's scheduler: there network and heuristic disagree."""
    trace = scale_lengths(generate("coding", seed=1, sessions=24, rate_per_min=30), 1 / 32, time_factor=1 / 20)
    config = SimConfig(kv_tokens=24_000, block_tokens=BLOCK, max_num_seqs=64, profile=PROFILE, expiry_s=15.0,
                       end_hint=False)
    engine = Unannounced(trace, config, replace(preset("lru"), eviction=make("eviction", f"learned:{TRAINED}")))
    engine.run()
    victims = engine.scheduler.block_queue.victims
    assert victims.drift.pairs > 5 and engine.scheduler.block_queue.evicted["idle"] > 1000
    assert victims.drift.fallbacks == 0 and victims.guard.fallbacks["drift"] == 0
