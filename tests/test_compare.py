"""`saga_rl.experiments.compare` in parts: pairing, collapse, points, arms, tuning, and what may be asked for."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import equal
from saga_rl.errors import UserError
from saga_rl.experiments.compare import arms, checks, sources
from saga_rl.experiments.compare.arrange import arrangement
from saga_rl.experiments.compare.cells import jobs_of
from saga_rl.experiments.compare.plan import Plan
from saga_rl.experiments.compare.scout import DOUBLINGS, _greatest
from saga_rl.experiments.compare.settings import SUSTAINED, Settings, pool_tokens
from saga_rl.experiments.compare.sources import Source
from saga_rl.experiments.compare.summary import compare_arm, fair_row, ratio
from saga_rl.experiments.intervals import COLLAPSE
from saga_rl.experiments.tuning import MOST, TUNE, best, choose, settings_of
from saga_rl.policies.base import DECISIONS
from saga_rl.policies.registry import make, names


def times(mean: list[float]) -> dict[str, list[float]]:
    return {"tct_mean_s": mean, "tct_p95_s": [2 * x for x in mean], "hit_share": [0.5] * len(mean)}


# ---- pairing and collapse


def test_ratio_is_paired() -> None:
    # arrangements differ by orders of magnitude, the policy is 10 % better on each: only pairing can see it
    theirs = [1.0, 100.0, 10_000.0, 5.0]
    found = ratio([0.9 * x for x in theirs], theirs)
    assert found is not None and found["verdict"] == "better" and found["pairs"] == 4
    assert found["ratio"] == pytest.approx(0.9) and found["low"] == pytest.approx(0.9)
    shuffled = ratio([0.9 * x for x in theirs[::-1]], theirs)
    assert shuffled is not None and shuffled["ratio"] == pytest.approx(0.9)
    assert shuffled["verdict"] == "no difference shown"


def test_few_pairs_make_a_ratio_without_interval() -> None:
    assert ratio([], []) is None
    found = ratio([1.0, 4.0], [1.0, 1.0])
    assert found == {"ratio": pytest.approx(2.0), "low": None, "high": None, "verdict": "too few pairs", "pairs": 2}


def test_collapse_is_marked_and_left_out_of_ratios() -> None:
    free = [10.0] * 5
    stock = times([20.0, 20.0, 20.0, 20.0, COLLAPSE * 10 + 1])
    ours = times([10.0, 10.0, 10.0, COLLAPSE * 10 + 1, 10.0])
    row = compare_arm(ours, stock, free)
    assert (row["collapsed"], row["stock_collapsed"], row["seeds"]) == (1, 1, 5)
    assert row["mean_vs_stock"]["pairs"] == 3 and row["mean_vs_stock"]["ratio"] == pytest.approx(0.5)
    assert row["verdict"] == "better"
    assert row["vs_infinite"] > 1.3  # the collapsed run is in what is shown beside infinite memory


def test_who_collapses_more_often_is_worse_whatever_the_rest_says() -> None:
    free, down = [10.0] * 4, COLLAPSE * 10 + 1
    worse = compare_arm(times([10.0, 10.0, 10.0, down]), times([20.0] * 4), free)
    assert worse["verdict"] == "worse: collapses" and worse["mean_vs_stock"]["ratio"] == pytest.approx(0.5)
    better = compare_arm(times([30.0] * 4), times([20.0, 20.0, 20.0, down]), free)
    assert better["verdict"] == "better: stock collapses"
    both = compare_arm(times([down] * 4), times([down] * 4), free)
    assert both["verdict"] == "no ratio: both collapse" and both["mean_vs_stock"] is None
    edge = compare_arm(times([COLLAPSE * 10.0] * 4), times([20.0] * 4), free)
    assert edge["collapsed"] == 0  # above, not at


def test_losses_are_said() -> None:
    row = compare_arm(times([12.0, 13.0, 12.5, 12.0]), times([10.0] * 4), [9.0] * 4)
    assert row["verdict"] == "worse" and row["mean_vs_stock"]["low"] > 1


def test_fairness_row_takes_the_largest_gap_and_the_worst_tenant() -> None:
    def run(gap: float, slow: float, tct: float) -> dict[str, Any]:
        return {"service_gap_tokens": gap, "service_gap_bound_tokens": 900.0, "jain_index": 0.9, "slo_attainment": 0.5,
                "tct_mean_s": tct, "tct_p95_s": tct, "floor_breaks": 0, "afs_preemptions": 0,
                "tenants": [{"tenant": "a", "slowdown_p95": slow}, {"tenant": "b", "slowdown_p95": 1.0},
                            {"tenant": "idle", "slowdown_p95": None}]}

    base = [run(100.0, 4.0, 10.0), run(50.0, 4.0, 10.0), run(10.0, 4.0, 10.0)]
    ours = [run(300.0, 2.0, 20.0), run(50.0, 2.0, 20.0), run(10.0, 2.0, 20.0)]
    row = fair_row(ours, base)
    assert row["service_gap_tokens"] == 300.0 and row["service_gap_bound_tokens"] == 900.0
    assert row["worst_slowdown_p95"] == 2.0 and row["slowdown_p95"] == {"a": pytest.approx(2.0), "b": 1.0}
    assert row["worst_vs_fcfs"]["verdict"] == "better" and row["mean_vs_fcfs"]["verdict"] == "worse"
    assert fair_row(base, base)["mean_vs_fcfs"] is None


# ---- sources, halves, arrangements


def test_halves_share_no_group() -> None:
    trace = generate("webarena", 1, sessions=20, max_context=20_000)
    train, test = sources.halves(trace, "t")
    assert train.n_sessions + test.n_sessions == 20
    assert not set(train.sessions.group) & set(test.sessions.group)
    one = replace(trace, sessions=replace(trace.sessions, group=["g"] * 20))
    with pytest.raises(UserError, match="one group of sessions"):
        sources.halves(one, "t")


def test_arrangements_differ_by_seed_only_and_speed_scales_arrivals() -> None:
    trace = generate("webarena", 1, sessions=12, max_context=20_000)
    a, again, b = (arrangement(trace, seed, 8) for seed in (5, 5, 6))
    assert equal(a, again) and not equal(a, b) and a.n_sessions == 8
    fast = arrangement(trace, 5, 8, speed=4.0)
    assert fast.sessions.session_id == a.sessions.session_id
    np.testing.assert_allclose(fast.sessions.arrival_s * 4, a.sessions.arrival_s)


def hashed(sessions: int) -> Any:
    trace = generate("webarena", 1, sessions=sessions, max_context=20_000)
    return replace(trace, meta=replace(trace.meta, hash_block_tokens=512))


def test_sessions_that_share_by_block_ids_stay_in_order() -> None:
    trace = hashed(20)
    train, test = sources.halves(trace, "t")
    assert train.sessions.session_id + test.sessions.session_id == trace.sessions.session_id
    found = arrangement(trace, 3, 8).sessions.session_id
    first = trace.sessions.session_id.index(found[0])
    assert found == trace.sessions.session_id[first:first + 8]


def test_sessions_that_fit_nowhere_are_left_out_by_name() -> None:
    trace = generate("swe-bench", 1, sessions=6, max_context=40_000)
    context = trace.steps.prompt_tokens + trace.steps.output_tokens
    longest = np.maximum.reduceat(context, trace.session_offsets[:-1])
    limit = int(np.sort(longest)[-2])  # the longest session alone is beyond it
    kept, gone = sources.without_longer(trace, limit)
    assert gone == [trace.sessions.session_id[int(np.argmax(longest))]] and kept.n_sessions == 5
    same, none = sources.without_longer(trace, int(longest.max()))
    assert same is trace and none == []
    with pytest.raises(UserError, match="no session that fits"):
        sources.without_longer(trace, 10)


def test_pools_hold_the_longest_context() -> None:
    assert [pool_tokens(n, 0) for n in (1000, 200_000, 900_000)] == [240_000, 240_000, 990_000]
    assert pool_tokens(900_001, 0) == 990_016  # whole blocks, rounded up
    assert pool_tokens(900_000, 50_000) == 50_000  # what the user asked for is taken as it is


def test_recorded_collections_are_found_by_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        sources.data_sources(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds none of the recorded traces.*mooncake"):
        sources.data_sources(tmp_path)
    (tmp_path / "mooncake").mkdir()
    (tmp_path / "mooncake" / "synthetic_trace.jsonl.gz").write_bytes(b"")
    assert [s.name for s in sources.data_sources(tmp_path)] == ["mooncake-synthetic"]


def test_endless_cache_shares_of_mooncake(shared_data: Path) -> None:
    found = {s.name: s for s in sources.data_sources(shared_data)}
    share = {name: sources.load(found[name]).facts["infinite_cache_hit_share"]
             for name in ("mooncake-conversation", "mooncake-synthetic")}
    assert share["mooncake-conversation"] == pytest.approx(0.37, abs=0.01)
    assert share["mooncake-synthetic"] == pytest.approx(0.64, abs=0.03)


@pytest.mark.parametrize("limit", [0.013, 0.5, 1.0, 1.7, 900.0])
def test_the_greatest_sustained_speed_is_found(limit: float) -> None:
    speed, slowdown = _greatest(lambda speed: SUSTAINED * speed / limit)
    assert speed is not None and limit / 1.02 <= speed <= limit
    assert slowdown == pytest.approx(SUSTAINED * speed / limit)


def test_what_nothing_limits_has_no_sustained_speed() -> None:
    seen: list[float] = []
    assert _greatest(lambda speed: seen.append(speed) or 1.0) == (None, 1.0)  # type: ignore[func-returns-value]
    assert max(seen) == 2.0**DOUBLINGS and min(seen) == 1.0
    assert _greatest(lambda _: 2.0) == (None, 2.0)


# ---- arms, tuning, cells


def test_every_setting_to_tune_exists_and_budgets_are_equal() -> None:
    for decision in DECISIONS:
        assert set(TUNE[decision]) <= set(names(decision))
        for name, specs in TUNE[decision].items():
            assert specs[0] == name and len(set(specs)) == len(specs) <= MOST
            for spec in specs:
                assert make(decision, spec).name == name
    assert settings_of("admission", "grow", 3) == list(TUNE["admission"]["grow"][:3])
    assert settings_of("admission", "grow", 0) == ["grow"]
    assert settings_of("admission", "grow:factor=2", 3) == ["grow:factor=2"]  # the user's own word is not tuned


def test_best_is_the_least_geometric_mean() -> None:
    assert best({"a": [1.0, 9.0], "b": [2.0, 2.0], "c": [2.0, 2.0]}) == "b"
    found = choose([("x", "a", 4.0), ("y", "a", 1.0), ("x", "b", 2.0), ("x", "a", 1.5), ("x", "b", 2.0)])
    assert (found["x"].spec, found["y"].spec) == ("b", "a") and found["x"].tried == {"a": [4.0, 1.5], "b": [2.0, 2.0]}


def test_eviction_part_holds_every_policy_that_may_be_compared() -> None:
    found = arms.evictions(Settings())
    assert set(found) == {n for n in names("eviction") if n != "learned" and not make("eviction", n).oracle}
    assert "lru" in found and "belady" not in found
    assert arms.evictions(Settings(specs={"eviction": ("lru",)})) == ["lru"]


def test_one_factor_differs_from_stock_in_one_decision() -> None:
    found = arms.one_factor(Settings(), {"admission": {"grow": "grow:factor=0"}})
    for arm in found:
        assert [decision for decision in DECISIONS if arm.policies[decision] != arms.BASE[decision]] == [arm.role]
    assert next(a for a in found if a.name == "grow").policies["admission"] == "grow:factor=0"
    assert not [a for a in arms.one_factor(Settings(workers=1), {}) if a.role == "placement"]


def test_named_policies_alone_stand_beside_stock() -> None:
    assert arms.one_factor(Settings(presets=("likely",)), {}) == []
    assert [a.name for a in arms.fixed_arms(Settings(presets=("likely",)))] == ["likely"]
    assert [a.name for a in arms.one_factor(Settings(specs={"ordering": ("afs",)}), {})] == ["afs"]
    full = arms.product_arms(Settings(product=True, specs={"ordering": ("afs",)}), {})
    assert {a.policies["ordering"] for a in full} == {"fcfs", "afs"}
    assert {"grow", "limit"} <= {a.policies["admission"].partition(":")[0] for a in full}  # not named: all of them


def test_picks_and_product() -> None:
    best_of = {"placement": "least-load", "ordering": "session-fcfs", "admission": "grow"}
    found = {a.name: a.policies for a in arms.picked_arms(best_of)}
    assert found["ordering + admission"] == arms.BASE | {"ordering": "session-fcfs", "admission": "grow"}
    assert "eviction + placement + ordering + admission" not in found
    s = Settings(product=True, specs={"placement": ("least-load",), "ordering": ("session-fcfs", "fcfs"),
                                      "admission": ("grow",)})
    full = arms.product_arms(s, {})
    assert len(full) == 2 * 2 * 2 - 1  # each decision's choices and stock's own, less stock itself
    assert len({json.dumps(a.policies, sort_keys=True) for a in full}) == 7


FACTS = {"t": {"arranged_sessions": 4, "sessions": 8, "steps": 80, "longest_context_tokens": 20_000, "tenants": 3,
               "kind": "file"}}


def plan(**settings: Any) -> Plan:
    return Plan(Settings(**settings), FACTS, {"t-train": "a", "t-test": "b"}, "code")


def test_capacities_are_multiples_of_p1_or_tokens_and_never_too_small() -> None:
    scouted = {("t", "pressure"): {"capacity_tokens": 32_000}}
    sizes = plan(capacities=(0.1, 0.5, 1.0, 64_000.0)).capacities("t", scouted)
    assert list(sizes.values()) == [22_000, 32_000, 64_000]  # 1.1 x the longest context; two points became one
    assert sizes[1.0] == 32_000 and sizes[2.0] == 64_000
    assert plan().capacities("t", {("t", "pressure"): {"capacity_tokens": None}}) == {}


def test_a_cell_is_of_the_half_that_it_reads() -> None:
    made = {half: plan()._cell("t", kind="closed", half=half, seed=1) for half in ("train", "test")}
    other = Plan(Settings(), FACTS, {"t-train": "c", "t-test": "b"}, "code")
    assert other._cell("t", kind="closed", half="test", seed=1) == made["test"]  # it does not read the other half
    assert other._cell("t", kind="closed", half="train", seed=1).key != made["train"].key


def test_policies_of_one_reference_string_are_one_job_and_the_costliest_comes_first() -> None:
    scouted = {("t", "pressure"): {"capacity_tokens": 32_000}, ("t", "sustain"): {"speed": 1.0}}
    cells = plan(seeds=2, capacities=(1.0, 2.0)).final(scouted, {})
    jobs = jobs_of([c for key, c in cells.items() if key[0] in ("eviction", "load")])
    open_jobs = [j for j in jobs if j[0].spec["kind"] == "open"]
    assert len(open_jobs) == 4 and all(len(j) == len(arms.evictions(Settings())) for j in open_jobs)
    costs = [sum(c.cost for c in job) for job in jobs]
    assert costs == sorted(costs, reverse=True)
    assert all(c.spec["half"] == "test" and c.spec["seed"] >= 1000 for c in cells.values())
    tuned = plan(tune=2).tuning(scouted)
    assert tuned and all(c.spec["half"] == "train" and c.spec["seed"] < 1000 for c in tuned.values())


# ---- what may be asked for


@pytest.mark.parametrize(("settings", "message"), [
    ({"seeds": 0}, "--seeds: is 0"), ({"tune": 9}, "--tune: is 9"), ({"workers": 0}, "--workers: is 0"),
    ({"floor": 0.95}, "KV floor of tenant"), ({"gap_tokens": -1.0}, "service gap: is -1"),
    ({"afs_preempt_s": 0.0}, "AFS preemption"), ({"profile": "h1000"}, "no profile named"),
    ({"presets": ("sago",)}, "saga"), ({"specs": {"eviction": ("lry",)}}, "choose one of: lru"),
    ({"specs": {"admission": ("grow:facter=1",)}}, "choose one of: factor"),
    ({"specs": {"admission": ("grow:factor=99",)}}, r"outside \[0, 10\]"),
    ({"specs": {"eviction": ("belady",)}}, "must know the future"),
    ({"specs": {"eviction": ("belady",)}, "parts": ("eviction",)}, "is the bound"),
    ({"specs": {"eviction": ("ends-known",)}, "parts": ("load",)}, "must know the future"),
    ({"specs": {"eviction": ("clairvoyant",)}}, "by the clock"),
    ({"specs": {"placement": ("saga:steal=1",)}, "workers": 1}, "steals work from other workers"),
    ({"specs": {"placement": ("least-load",)}, "workers": 1}, "nothing to choose from"),
    ({"presets": ("saga",), "parts": ("eviction",)}, "--eviction wa-lru"),
])
def test_what_cannot_work_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checks.check_settings(Settings(**settings))


def test_parts_options_and_numbers() -> None:
    checks.check_settings(Settings())
    checks.check_settings(Settings(parts=("load",), specs={"eviction": ("clairvoyant",)}))
    assert checks.check_parts(["load", "eviction"], ["--loads"]) == ("eviction", "load")
    with pytest.raises(UserError, match="choose one of: fairness"):
        checks.check_parts(["fairnes"], [])
    with pytest.raises(UserError, match=r"--ordering: means nothing to part eviction.*--part load"):
        checks.check_parts(["eviction"], ["--ordering"])
    assert checks.specs(["lru,wa-lru:alpha=1,beta=2", "lru"]) == ("lru", "wa-lru:alpha=1,beta=2")
    assert checks.numbers("--loads", "1, .5,1", 0.0) == (0.5, 1.0)
    for bad in ("x", "0", "-1", "inf", "nan", ""):
        with pytest.raises(UserError, match="--loads"):
            checks.numbers("--loads", bad, 0.0)


def test_names_of_files_must_differ(tmp_path: Path) -> None:
    assert sources.file_sources([Path("a/t.parquet")]) == [Source("t", "file", "a/t.parquet")]
    with pytest.raises(UserError, match="would be named 't'"):
        sources.file_sources([Path("a/t.parquet"), Path("b/t.parquet")])


def test_a_users_mistake_crosses_from_a_worker_process():
    error = pickle.loads(pickle.dumps(UserError("trace.parquet", "is no trace", "name one")))
    assert (error.where, error.cause, error.mend) == ("trace.parquet", "is no trace", "name one")
    assert str(error) == "trace.parquet: is no trace; name one"
