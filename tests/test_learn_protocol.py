"""The protocol: figures with known answers, collapses left out, runs kept across a kill, a report from one command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts_kit import run

from saga_rl.errors import UserError
from saga_rl.experiments.cell import Spec
from saga_rl.experiments.intervals import COLLAPSE, sound
from saga_rl.learn.judge.protocol import cells, closed_rows, open_rows
from saga_rl.learn.judge.protocol.bench import Bench
from saga_rl.learn.judge.protocol.figures import Figure, paired, share
from saga_rl.learn.judge.protocol.lab import Lab
from saga_rl.learn.judge.protocol.report import markdown, workloads_of
from saga_rl.learn.judge.protocol.settings import ROWS, Settings, check, limit_grid, reserve_grid
from saga_rl.learn.judge.sessions import DEFINED
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make

ALL = np.ones(5, bool)


def test_a_ratio_over_workloads_is_the_geometric_mean_of_their_ratios() -> None:
    base = [np.array([10.0, 40.0, 7.0, 100.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0, 5.0])]
    f = paired("r", "w", [0.5 * base[0], 0.8 * base[1]], base, [ALL, ALL], target=0.7)
    assert f.value == pytest.approx(np.sqrt(0.4)) and f.low == pytest.approx(f.high)
    assert f.status == "met" and f.pairs == 5


def test_one_collapse_takes_the_whole_arrangement_out() -> None:
    ours = [np.array([1.0, 1.0, 1.0, 1.0, 900.0]), np.full(5, 2.0)]
    theirs = [np.full(5, 2.0), np.full(5, 2.0)]
    free = np.full(5, 1.0)
    assert sound([4.9, 5.0, 5.1], [1.0, 1.0, 1.0]).tolist() == [True, True, False] and COLLAPSE == 5.0
    f = paired("r", "w", ours, theirs, [sound(ours[0], free), sound(ours[1], free)])
    assert f.pairs == 4 and f.value == pytest.approx(np.sqrt(0.5)) and "1 of 5" in f.note
    none = paired("r", "w", ours, theirs, [np.array([True, True, False, False, False]), ALL], target=2.0)
    assert none.value is None and none.status == "not quotable"


@pytest.mark.parametrize(("value", "low", "high", "at_most", "status"), [
    (0.9, 0.8, 0.95, True, "met"), (0.9, 0.8, 1.1, True, "met on average"), (1.1, 0.9, 1.3, True, "not met"),
    (1.7, 1.6, 1.9, False, "met"), (1.7, 0.9, 1.9, False, "met on average"), (0.9, 0.5, 1.3, False, "not met")])
def test_a_target_is_met_by_the_whole_interval(value: float, low: float, high: float, at_most: bool,
                                               status: str) -> None:
    assert Figure("r", "w", value, low, high, 5, 1.0, at_most).status == status


def test_the_way_to_an_oracle() -> None:
    base = [np.array([10.0, 20.0, 30.0, 40.0, 50.0])]
    half = share("r", "w", [base[0] * 0.5], base, [base[0] * 0.25], [ALL], 0.5)
    assert half.value == pytest.approx(0.5) and half.status == "met"
    back = share("r", "w", [base[0] * 1.5], base, [base[0] * 0.5], [ALL], 0.5)
    assert back.value is not None and back.value < 0 and back.status == "not met"
    nothing = share("r", "w", [base[0] * 0.5], base, [base[0] * 1.01], [ALL], 0.5)
    assert nothing.value is None and "no way" in nothing.note, "an oracle that is no better spans no way"


def test_the_share_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        whole = rng.normal(1.0, 0.2, 12)
        mine = 0.6 * whole + rng.normal(0.0, 0.1, 12)
        f = share("r", "w", [np.exp(-mine)], [np.ones(12)], [np.exp(-whole)], [np.ones(12, bool)], 0.5)
        assert f.low is not None and f.high is not None
        hits += f.low <= 0.6 <= f.high
    assert hits >= 48


class Fake(Lab):
    """Completion times by formula: as if every run had been done."""

    def __init__(self) -> None:
        self.asked: list[Spec] = []
        self.runs = 0

    def ask(self, what: str, specs: Sequence[Spec]) -> list[dict[str, Any]]:
        self.asked += specs
        self.runs += len(specs)
        return [self.one(s) for s in specs]

    def one(self, s: Spec) -> dict[str, Any]:
        if s["kind"] == "open":
            return {"belady": 100, "first_time": 1000,
                    "recomputed": {e: 100 if e == "perfect" else 120 if e == "bayes-tables" else 200
                                   for e in s["evictions"]}}
        arm = s["arm"]
        if s["kind"] == "sustain":
            return {"of_peak": 0.8 if arm.get("set") else 0.4, "limited": True, "at_all": True, "peak_per_min": 1.0}
        scale = float(s["seed"])
        t = 1.0 if arm.get("infinite") else 2.0 if arm.get("set") else 1.5 if "clairvoyant" in arm["eviction"] else 4.0
        t = 3.0 if arm.get("admission") == "reserve-older:likely=1" else t
        return {"tct_mean_s": t * scale, "tct_p95_s": 2 * t * scale, "throughput_sessions_per_min": 1 / t,
                "recomputed_tokens": 0, "preemptions": 0, "migrations": 0, "first_half_s": t * scale,
                "second_half_s": t * scale}


def bench() -> Bench:
    return Bench(Fake(), Settings("perfect", "sticky", "saga+", recorded=("weka",)))


def test_tuning_sees_training_sessions_alone_and_the_rest_test_sessions() -> None:
    b = bench()
    found = {f.what: f for f in closed_rows.hidden(b)}
    lab = b.lab
    assert isinstance(lab, Fake)
    seeds = {part: {s["seed"] for s in lab.asked if s["part"] == part} for part in ("train", "test")}
    assert not seeds["train"] & seeds["test"] and len(seeds["test"]) == 5
    assert all(s["hidden"] for s in lab.asked)
    assert b.tuned[0]["chosen"]["admission"] == "reserve-older:likely=1", "the best of the grid was taken"
    ratio = found["P1: mean TCT / tuned reserve-older"]
    assert ratio.value == pytest.approx(2 / 3) and ratio.target == 0.92 and ratio.status == "met"
    way = found["P1: way to the oracle of ends and gaps"]
    assert way.value == pytest.approx(np.log(3 / 2) / np.log(3 / 1.5))


def test_what_is_meant_for_hidden_ends_is_used_there_alone() -> None:
    for given, want in (("likely", "likely"), ("", "saga+")):
        b = Bench(Fake(), Settings("perfect", "sticky", "saga+", given))
        for row in (closed_rows.hidden, closed_rows.drift, closed_rows.stock, closed_rows.sustain):
            row(b)
        lab = b.lab
        assert isinstance(lab, Fake)
        sets = {(s["hidden"], s["arm"]["set"]) for s in lab.asked if "set" in s["arm"]}
        assert sets == {(True, want), (False, "saga+")}


def test_what_was_searched_on_a_collection_is_judged_there_alone() -> None:
    b = Bench(Fake(), Settings("perfect", "sticky", "saga+", recorded=("weka", "katas"), own=(("weka", "likely"),)))
    found = {f.what: f for f in closed_rows.hidden(b)}
    own = found["recorded weka, P1, searched on its own training sessions: mean TCT / tuned reserve-older"]
    assert own.value == pytest.approx(2 / 3)
    assert not any("own training" in what and "katas" in what for what in found)
    lab = b.lab
    assert isinstance(lab, Fake)
    places = {(s["workload"], s["part"], s["hidden"]) for s in lab.asked if s["arm"].get("set") == "likely"}
    assert places == {("weka", "test", True)}


def test_every_policy_meets_the_same_arrangements() -> None:
    b = bench()
    closed_rows.stock(b)
    lab = b.lab
    assert isinstance(lab, Fake)
    places = {json.dumps({k: v for k, v in s.items() if k != "arm"}, sort_keys=True) for s in lab.asked}
    arms = {json.dumps(s["arm"], sort_keys=True) for s in lab.asked}
    assert len(lab.asked) == len(places) * len(arms)


def test_known_rows() -> None:
    b = bench()
    stock = {f.what: f for f in closed_rows.stock(b)}
    assert stock["geomean of swe and web: mean TCT / stock"].value == pytest.approx(0.5)
    assert stock["for comparison: infinite memory, mean TCT"].value == pytest.approx(0.25)
    assert closed_rows.sustain(b)[0].value == pytest.approx(2.0)
    assert closed_rows.throughput(b)[0].value == pytest.approx(2.0)
    assert closed_rows.placement(b)[0].value == pytest.approx(1.0)
    eviction = {f.what: f for f in open_rows.eviction(b)}
    assert eviction["hitl: tokens computed again / Belady"].value == pytest.approx(1.0)
    assert eviction["weka: the heuristic that was best in training"].value == pytest.approx(1.2)
    assert eviction["weka: gap from the best heuristic to Belady closed"].value == pytest.approx(1.0)


def test_a_load_that_nothing_limits_is_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(self: Fake, s: Spec) -> dict[str, Any]:
        ours = bool(s["arm"].get("set"))
        limited = not ours if s["workload"] == "web" else True
        return {"of_peak": 1.6 if ours else 0.4, "limited": limited, "at_all": True, "peak_per_min": 1.0}

    monkeypatch.setattr(Fake, "one", one)
    found = {f.what: f for f in closed_rows.sustain(bench())}
    assert "lower bound" in found["web: sustained load / lazy SAGA"].note
    assert not found["swe: sustained load / lazy SAGA"].note


def test_what_nothing_is_given_for_is_left_out() -> None:
    b = Bench(Fake(), Settings("", "", ""))
    for row in (open_rows.eviction, open_rows.transfer, closed_rows.stock, closed_rows.placement, closed_rows.drift):
        assert row(b) == []
    assert b.lab.runs == 0


def test_grids_name_policies_that_exist() -> None:
    for arm in (*reserve_grid(), *limit_grid()):
        for decision, spec in cells.specs_of(arm).items():
            make(decision, spec)  # type: ignore[arg-type]
    assert set(workloads_of(Settings("lru", "sticky", "saga+"))) <= set(DEFINED)
    with pytest.raises(UserError, match="stock"):
        check(Settings("", "", "", rows=("stokc",)))


def test_a_checkpoint_is_known_by_what_it_holds_and_names(tmp_path: Path) -> None:
    from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES, save_checkpoint

    def save(decision: str, other: str, weight: float) -> Path:
        n = len(LEARNED_FEATURES[decision])
        rest = {"eviction": "lru", "placement": "sticky", "ordering": "fcfs", "admission": "none"}
        rest[other] = f"learned:../{other}"
        del rest[decision]
        return save_checkpoint(tmp_path / decision, decision, [(np.full((1, n), weight), np.zeros(1))], np.zeros(n),
                               np.ones(n), "card", {}, rest)

    save("ordering", "admission", 0.1)
    admission = save("admission", "ordering", 0.2)
    spec = {"arm": {"set": str(admission)}}
    first = cells.weights(spec)
    assert len(first) == 2, "checkpoints that name each other are counted once"
    save("ordering", "admission", 0.3)
    assert cells.weights(spec) != first, "another policy beside it is another policy"


def test_a_run_is_what_the_simulator_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from saga_rl.learn.judge import points
    from saga_rl.learn.judge.workloads import workload
    from saga_rl.sim.cluster import simulate

    monkeypatch.setattr(points, "pressure", lambda *a: {"kv_tokens": 400_000})
    spec = {"kind": "closed", "workload": "web", "hidden": False, "part": "test", "seed": 1000, "point": "P1",
            "workers": 2, "sessions": 24, "arm": {"set": "saga+"}}
    ((result, _),) = cells.run_cells("", [spec])
    trace, config = workload("web").episode("test", 1000, 24, workers=2)
    direct = simulate(trace, config, preset("saga+"), slo=False)
    assert result["tct_mean_s"] == direct.metrics["tct_mean_s"]
    assert result["first_half_s"] + result["second_half_s"] == pytest.approx(2 * result["tct_mean_s"])
    ((free, _),) = cells.run_cells("", [spec | {"arm": {"set": "saga+", "infinite": True}}])
    assert free["recomputed_tokens"] < 0.01 * result["recomputed_tokens"]
    assert free["tct_mean_s"] < result["tct_mean_s"]


QUICK = ["--quick", "--jobs", "1", "--eviction", "lru-protect", "--placement", "sticky", "--joint", "saga+", "--only",
         "eviction,throughput", "--workloads", "web"]


def test_one_command_writes_the_report_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = run("protocol", *QUICK, "--out", str(out))
    assert done.returncode == 0, done.stderr
    first = json.loads((out / "protocol.json").read_text())
    assert set(first["rows"]) == {"eviction", "throughput"} and all(first["rows"].values())
    assert markdown(first) == (out / "protocol.md").read_text()
    assert (out / "protocol.png").read_bytes()[:4] == b"\x89PNG"
    journal = out / "cells.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-3]) + lines[-3][:40])
    (out / "protocol.json").unlink()
    again = run("protocol", *QUICK, "--out", str(out))
    assert again.returncode == 0, again.stderr
    second = json.loads((out / "protocol.json").read_text())
    assert {k: v for k, v in second.items() if k != "provenance"} == {
        k: v for k, v in first.items() if k != "provenance"}
    assert sorted(json.loads(x)["key"] for x in journal.read_bytes().splitlines()) == sorted(
        json.loads(x)["key"] for x in lines)


@pytest.mark.parametrize(("more", "word"), [
    (["--only", "evict"], "eviction"), (["--workloads", "wbe"], "web"), (["--transfer", "nowhere"], "nowhere"),
    (["--own", "weka"], "NAME=FOLDER"), (["--own", "wika=checkpoints/joint"], "wika")])
def test_a_users_mistake_is_one_line(more: list[str], word: str, tmp_path: Path) -> None:
    done = run("protocol", *more, "--joint", "saga+", "--out", str(tmp_path / "r"))
    assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "r").exists()


def test_rows_have_names() -> None:
    from saga_rl.learn.judge.protocol.report import MAKERS

    assert tuple(MAKERS) == ROWS
