"""Where a search judges: how a scenario is written, what is drawn there, and going on from an earlier search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from policies_rows import write_checkpoint

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import write_trace
from saga_rl.env.episodes import sim_config
from saga_rl.errors import UserError
from saga_rl.learn.search.parameter_vector import ParameterVector, scales
from saga_rl.learn.search.scenarios import Wanted, scenario, wanted
from saga_rl.policies.learned.checkpoint import save_checkpoint
from saga_rl.policies.presets import PRESETS

DECISIONS = ("eviction", "ordering", "admission")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("arenas") / "web.parquet"
    write_trace(generate("webarena", 3, sessions=14, max_context=32_768), path)
    return str(path)


@pytest.mark.parametrize(("text", "want"), [
    ("a.parquet", Wanted("a.parquet")), ("a.parquet@ends", Wanted("a.parquet", True)),
    ("a.parquet@hidden", Wanted("a.parquet")),
    ("workload:web@load=1.5@ends", Wanted("workload:web", True, 1.5)), ("x@load=.5", Wanted("x", False, 0.5))])
def test_how_a_scenario_is_written(text, want):
    assert wanted(text) == want


@pytest.mark.parametrize(("text", "cause"), [
    ("a@hiden", "an option 'hiden'"), ("a@load=fast", "its load is 'fast'"), ("a@load=0", "its load is '0'"),
    ("a@load=nan", "its load is 'nan'"), ("a@load=inf", "its load is 'inf'")])
def test_a_bad_one_is_named(text, cause):
    with pytest.raises(UserError, match=cause):
        wanted(text)


def test_a_file_at_a_load_arrives_so_many_times_as_fast(file):
    plain = scenario(wanted(file), "", 0, 0, sim_config(80_000, 1))
    fast = scenario(wanted(f"{file}@load=2@ends"), "", 5, 0, sim_config(80_000, 1))
    assert plain.config.population == fast.config.population == 0 and plain.sessions == 14
    assert fast.config.end_hint and not plain.config.end_hint
    np.testing.assert_allclose(fast.trace.sessions.arrival_s, plain.trace.sessions.arrival_s / 2)
    assert scenario(wanted(file), "", 3, 0, sim_config(80_000, 2)).config.population == 6
    a, b, other = fast.episode(1), fast.episode(1), fast.episode(2)
    assert a.sessions.session_id == b.sessions.session_id != other.sessions.session_id


def test_it_is_told_on_what_cluster_it_is_played(file):
    usual = scenario(wanted(file), "", 3, 0, sim_config(80_000)).described()
    assert "costs of" not in usual and "expiry" not in usual
    own = replace(sim_config(80_000, profile="h100-llama3.1-8b-tp1"), expiry_s=15.0, block_tokens=32)
    made = scenario(wanted(file), "", 3, 0, own)
    assert made.config.profile == own.profile and made.config.expiry_s == 15.0
    assert made.described() == usual + ", costs of h100-llama3.1-8b-tp1, block_tokens 32, expiry_s 15"


def test_a_workload_at_a_load_plays_its_own_arrangements(monkeypatch):
    from saga_rl.learn.judge import points

    monkeypatch.setattr(points, "peak", lambda name, data="": {"per_worker_per_min": 2.0})
    made = scenario(wanted("workload:web@load=1.5"), "train", 4, 40, sim_config(500_000, 2))
    assert made.config.population == 0 and made.per_min == 6.0 and "6.00 arriving a minute" in made.described()
    arrivals = made.episode(3).sessions.arrival_s
    assert len(arrivals) == 40 and np.diff(arrivals).mean() == pytest.approx(10.0, rel=0.5)
    np.testing.assert_array_equal(arrivals, made.episode(3).sessions.arrival_s)
    train = set(made.trace.sessions.session_id)
    assert set(made.episode(4).sessions.session_id) <= train
    held = scenario(wanted("workload:web@load=1.5"), "validation", 4, 40, sim_config(500_000, 2))
    assert not train & set(held.episode(3).sessions.session_id), "no session is in two parts"
    whole = scenario(wanted("workload:shift@load=1"), "train", 4, 0, sim_config(500_000, 1))
    rounds = whole.episode(1).sessions.arrival_s[-1] / 1800
    assert 3 < rounds < 5, "a whole round of phases"


@pytest.mark.parametrize("units", [0, 3])
def test_a_search_goes_on_from_the_numbers_of_an_earlier_one(tmp_path, units):
    vector = ParameterVector(DECISIONS, units)
    theta = np.random.default_rng(units).normal(size=vector.size).astype(np.float32).astype(np.float64)
    for decision in DECISIONS:
        names = vector.features(decision)
        beside = {s: PRESETS["saga+"][s] for s in PRESETS["saga+"] if s != decision}
        save_checkpoint(tmp_path / decision, decision, vector.layers(decision, theta), np.zeros(len(names)),
                        scales(names), "card", {}, beside)
    np.testing.assert_array_equal(vector.of_checkpoints(tmp_path), theta)
    with pytest.raises(UserError, match="is no scorer of this search"):
        ParameterVector(DECISIONS, 1).of_checkpoints(tmp_path)


def test_a_network_that_no_search_wrote_is_no_start(tmp_path: Path):
    for decision in DECISIONS:
        write_checkpoint(tmp_path / decision, decision)
    with pytest.raises(UserError, match=r"eviction.*is no scorer of this search"):
        ParameterVector(DECISIONS).of_checkpoints(tmp_path)
