"""Direct search: the vector is the rule it starts from, the search finds what is there to be found, and resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies_rows import write_checkpoint

from saga_rl.aeg.generators import generate
from saga_rl.errors import UserError
from saga_rl.learn.network import RowNet
from saga_rl.learn.offline.onnx_export import onnx_bytes
from saga_rl.learn.search import cma_es as se
from saga_rl.learn.search.parameter_vector import ParameterVector, scales
from saga_rl.policies import features as ft
from saga_rl.policies.base import DECISIONS
from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES, load_checkpoint, load_set
from saga_rl.policies.learned.mlp import forward
from saga_rl.policies.presets import PRESETS, from_specs, preset
from saga_rl.policies.registry import make
from saga_rl.runtime.config.settings import policies_of
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig

JOINT = ("eviction", "ordering", "admission")
REFERENCE = PRESETS["saga+"] | {"admission": "reserve-older:likely=1", "eviction": "bayes-tables"}


@pytest.fixture(scope="module")
def web():
    return generate("webarena", 3, sessions=14, max_context=32_768)


# ---------------------------------------------------------------- vector
@given(st.integers(0, 3), st.permutations(DECISIONS), st.integers(0, 2**20))
@settings(max_examples=30, deadline=None)
def test_a_parameter_vector_is_linear_plus_units(units, decisions, seed):
    vector = ParameterVector(tuple(decisions[:3]), units)
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=vector.size)
    assert len(vector.start()) == vector.size
    at = 0
    for decision in vector.decisions:
        names = LEARNED_FEATURES[decision]
        n, scale = len(names), scales(names)
        part = theta[at:at + vector.length(decision)]
        at += len(part)
        x = rng.uniform(0, 5, (6, n)) * scale
        z = np.clip(x / scale, -10, 10)
        want = z @ part[:n] + part[n]
        for unit in part[n + 1:].reshape(units, n + 2):
            want = want + unit[-1] * np.maximum(z @ unit[:n] + unit[n], 0)
        got = forward(vector.layers(decision, theta), np.zeros(n), scale, x)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)  # weights are kept as float32


def test_the_start_is_the_rules_it_names():
    vector = ParameterVector(("ordering", "admission", "placement"), 2)
    start = vector.policies(vector.start(), {"eviction": "lru"})
    rng = np.random.default_rng(0)
    likely = make("admission", "reserve-older:likely=1")
    for _ in range(300):
        row = np.zeros(len(ft.ADMISSION))
        pool = 1000.0
        row[ft.AD.pool] = pool
        for raw, share in ((ft.AD.need, ft.AD.need_share), (ft.AD.pinned, ft.AD.pinned_share),
                           (ft.AD.growth, ft.AD.growth_share), (ft.AD.older_likely, ft.AD.likely_share)):
            row[raw] = rng.uniform(0, 500)
            row[share] = row[raw] / pool
        if abs(row[[ft.AD.need, ft.AD.pinned, ft.AD.growth, ft.AD.older_likely]].sum() - pool) > 0.01:
            score = start.admission.score(row, start.admission.params, np.zeros(start.admission.scratch))
            assert (score > 0) == (likely.score(row, likely.params, np.zeros(1)) > 0)
    ages = np.sort(rng.uniform(0, 1e5, 20))
    keys = []
    for age in ages:
        row = np.zeros(len(ft.ORDERING))
        row[ft.OD.age_log] = np.log1p(age)
        keys.append(start.ordering.score(row, start.ordering.params, np.zeros(start.ordering.scratch)))
    assert keys == sorted(keys, reverse=True)  # the oldest session has the lowest key


def test_the_start_serves_a_trace_as_the_rules_do(web):
    """Eviction apart: `youngest` has a tier for who was silent for 5 minutes, and here nobody is; a learned policy one
    for what a compacting chain leaves behind, and here some do, so it may be somewhat faster."""
    rules = from_specs(PRESETS["saga+"] | {"admission": "reserve-older:likely=1"})
    vector = ParameterVector(JOINT)
    config = SimConfig(kv_tokens=80_000, population=6, end_hint=True)
    a = simulate(web, config, rules, slo=False).metrics
    b = simulate(web, config, vector.policies(vector.start(), PRESETS["saga+"]), slo=False).metrics
    assert a["evictions"] > 0
    assert 0.95 < b["tct_mean_s"] / a["tct_mean_s"] < 1.02


# ---------------------------------------------------------------- costs
def test_cost_of_known_ratios():
    ratios = np.log(np.array([[[0.5, 2.0], [2.0, 2.0]], [[0.5, 0.25], [0.5, 0.25]]]))
    assert se.total_cost(ratios) == pytest.approx(0.5 * ((0 + 0.5 * np.log(2)) + (np.log(0.5) + 0)))


def test_the_reference_against_itself_costs_nothing(web):
    scenario = se.Scenario("web", web, SimConfig(kv_tokens=80_000, population=6), 10)
    judge = se.Judge([scenario], se.SearchConfig(reference=REFERENCE))
    trace, (mean, p95, end) = judge.reference(0, 5)
    assert se.outcome(trace, scenario.config, from_specs(REFERENCE)) == (mean, p95, end)
    assert judge.reference(0, 5)[0] is trace
    cut = se.outcome(trace, scenario.config, from_specs(REFERENCE), end / 2)
    assert cut[0] < mean and cut[2] <= end / 2  # what is unfinished counts up to the horizon


# ---------------------------------------------------------------- the search
TRAINED = {"more": 0.0}
"""What a bowl costs more with `SearchConfig.trained`."""


class Bowl(se.Judge):
    """Cost is the squared distance to a point: CMA-ES must come close."""

    def cost(self, theta, seeds, trained=False):
        return float(((theta - self.vector.start() - 0.3) ** 2).sum()) + (TRAINED["more"] if trained else 0.0)


class Here:
    """A pool that works in this process."""

    def __init__(self, jobs, begin, train, _, config):
        se._JUDGES["train"] = se._JUDGES["validation"] = Bowl(train, config)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def submit(self, f, *args):
        value = f(*args)
        return type("Done", (), {"result": staticmethod(lambda: value)})


@pytest.fixture
def bowl(monkeypatch):
    monkeypatch.setattr(se.pool, "workers", Here)
    return se.SearchConfig(decisions=("ordering",), generations=60, population=12, sigma=0.2, seed=3)


def test_finds_the_bottom_of_a_bowl(bowl):
    found = se.search([], [], bowl)
    assert found.start_cost == pytest.approx(0.09 * 10)
    assert found.validation_cost < 0.01 * found.start_cost
    np.testing.assert_allclose(found.theta, bowl.vector().start() + 0.3, atol=0.05)
    assert found.curve[0]["validation"] == found.start_cost


def test_what_was_best_by_luck_gives_way_to_the_start(bowl, monkeypatch):
    def cost(self, theta, seeds, trained=False):
        if min(seeds) >= 20_000_000:  # the final judgement: nothing is better than the start
            assert len(seeds) == se.FINAL_CHECKS * bowl.checks
            return float(np.abs(theta - self.vector.start()).sum())
        return float(-np.abs(theta - self.vector.start()).sum())

    monkeypatch.setattr(Bowl, "cost", cost)
    found = se.search([], [], replace(bowl, generations=8))
    assert min(c["validation"] for c in found.curve) < 0, "it looked better"
    assert np.array_equal(found.theta, bowl.vector().start()) and found.validation_cost == found.start_cost == 0.0


@pytest.mark.parametrize("more", [-0.5, 0.5])
def test_what_was_trained_otherwise_is_taken_where_it_is_better(bowl, monkeypatch, more):
    """It changes nothing of the search, only what is written; nor is a journal with it another one."""
    monkeypatch.setitem(TRAINED, "more", more)
    alone = se.search([], [], replace(bowl, generations=8))
    found = se.search([], [], replace(bowl, generations=8, trained={"ordering": "somewhere"}))
    assert np.array_equal(found.theta, alone.theta) and found.searched_cost == alone.validation_cost
    assert found.adopted == (more < 0) and not alone.adopted
    assert found.validation_cost == min(found.searched_cost, found.searched_cost + more)


def test_the_same_seed_finds_the_same_and_a_kill_changes_nothing(bowl, tmp_path):
    whole = se.search([], [], bowl, tmp_path / "whole.jsonl")
    assert np.array_equal(se.search([], [], bowl).theta, whole.theta)
    text = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(text[:20]) + text[20][:7])  # killed while it wrote
    again = se.search([], [], bowl, cut)
    assert np.array_equal(again.theta, whole.theta) and again.curve == whole.curve
    assert cut.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_search_may_be_made_longer_or_shorter(bowl, tmp_path):
    whole = se.search([], [], bowl, tmp_path / "whole.jsonl")
    journal = tmp_path / "j.jsonl"
    short = se.search([], [], replace(bowl, generations=7), journal)
    assert len(short.curve) < len(whole.curve)
    longer = se.search([], [], bowl, journal)
    assert np.array_equal(longer.theta, whole.theta) and longer.curve == whole.curve
    again = se.search([], [], replace(bowl, generations=7), journal)
    assert np.array_equal(again.theta, short.theta) and again.curve == short.curve


def test_a_journal_of_another_search_is_refused(bowl, tmp_path):
    journal = tmp_path / "j.jsonl"
    journal.write_text(json.dumps({"decisions": ["placement"]}) + "\n")
    with pytest.raises(UserError, match="another search"):
        se.search([], [], bowl, journal)


def test_a_search_on_whole_runs_does_not_depend_on_the_number_of_processes(web):
    scenario = se.Scenario("web", web, SimConfig(kv_tokens=80_000, population=5), 6)
    config = se.SearchConfig(decisions=("ordering",), generations=1, population=4, episodes=1, checks=1, seed=5,
                             others={s: REFERENCE[s] for s in DECISIONS if s != "ordering"}, reference=REFERENCE)
    a, b = (se.search([scenario], [scenario], config, jobs=n) for n in (1, 2))
    assert np.array_equal(a.theta, b.theta) and a.curve == b.curve
    assert a.runs == (4 + 1) * 1 + 1 + (0 + 1) * 1 + 1 + 2 * se.FINAL_CHECKS


# ---------------------------------------------------------------- what is written
def test_a_folder_of_checkpoints_is_a_policy_set(tmp_path):
    for decision in JOINT:
        others = {s: f"learned:../{s}" if s in JOINT else "sticky" for s in DECISIONS if s != decision}
        write_checkpoint(tmp_path / decision, decision, others=others)
    whole = load_set(tmp_path)
    assert whole.names() == {"eviction": "learned", "placement": "sticky", "ordering": "learned",
                             "admission": "learned"}
    assert preset(str(tmp_path)).names() == load_set(tmp_path / "admission").names() == whole.names()
    (tmp_path / "ordering").rename(tmp_path / "gone")
    (tmp_path / "eviction").rename(tmp_path / "ordering")
    with pytest.raises(UserError, match="not of ordering"):
        load_set(tmp_path)


def test_nothing_that_knows_the_future_is_served(tmp_path):
    others = {"placement": "sticky", "ordering": "fcfs", "admission": "reserve-clairvoyant"}
    folder = write_checkpoint(tmp_path / "c", "eviction", others=others)
    with pytest.raises(UserError, match="needs to know the future"):
        policies_of(str(folder))


@pytest.mark.parametrize("decision", DECISIONS)
def test_onnx_torch_and_the_compiled_scorer_agree(tmp_path, decision):
    loaded = load_checkpoint(write_checkpoint(Path(tmp_path) / "c", decision))
    rng = np.random.default_rng(1)
    rows = rng.normal(0, 1, (200, len(loaded.mean)))
    session = onnxruntime.InferenceSession(onnx_bytes(loaded), providers=["CPUExecutionProvider"])
    net = RowNet.from_layers(loaded.layers, loaded.mean, loaded.std)
    with torch.no_grad():
        by_torch = net(torch.tensor(rows, dtype=torch.float32)).numpy()
    by_onnx = session.run(None, {"rows": rows.astype(np.float32)})[0]
    policy, scratch = loaded.policy(), np.zeros(512)
    if decision == "eviction":
        rows[:, [ft.EV.waiting, ft.EV.ended]] = 0.0  # what is settled outside the network
        with torch.no_grad():
            by_torch = net(torch.tensor(rows, dtype=torch.float32)).numpy()
        by_onnx = session.run(None, {"rows": rows.astype(np.float32)})[0]
    wide = np.zeros((len(rows), ft.COLUMNS[decision]))
    wide[:, :rows.shape[1]] = rows
    compiled = np.array([policy.score(row, policy.params, scratch) for row in wide])
    size = np.maximum(np.abs(compiled), 1)
    assert (np.abs(compiled - by_torch) / size).max() < 1e-5
    assert (np.abs(compiled - by_onnx) / size).max() < 1e-5
