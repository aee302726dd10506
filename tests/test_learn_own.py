"""`saga-rl learn`: what it refuses, what it leaves behind, that it goes on after a stop, and that it does no harm."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trace_kit import DOUBT, doubtful

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.cli.main import load
from saga_rl.errors import UserError
from saga_rl.experiments import pool
from saga_rl.experiments.compare.arrange import arrangement
from saga_rl.experiments.compare.settings import FIRST_SEED
from saga_rl.learn.own import rule, settings, verdict, world
from saga_rl.learn.own.default import WEIGHTS, write_preset
from saga_rl.policies.parameters import DEFAULT_PRESET
from saga_rl.policies.presets import PRESETS, preset
from saga_rl.runtime.config.settings import policies_of
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig

SMALL = ["--kv-tokens", "60000", "--window", "32768", "--population", "5", "--jobs", "1", "--wandb", "disabled",
         "--generations", "3", "--candidates", "4", "--checks", "1", "--arrangements", "3", "--starts", "2"]
PRESSED = {"end_hint": False, "tool_names": False, "kv_tokens": 60_000, "population": 5}


class InProcess:
    """A pool that works here, at once."""

    _processes: Any = None

    def __init__(self, jobs=1, begin=None, *args):
        if begin is not None:
            begin(*args)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def shutdown(self, **_):
        pass

    def submit(self, f, *args):
        future: Future[Any] = Future()
        future.set_result(f(*args))
        return future

    map = staticmethod(map)


@contextmanager
def in_process(jobs, begin=None, *args):
    yield InProcess(jobs, begin, *args)


@pytest.fixture(scope="module")
def here():
    """No other process: the simulator is loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "workers", in_process)
        patch.setattr(pool, "warm", lambda open_loop: None)
        patch.setattr("signal.signal", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "t.parquet"
    write_trace(doubtful(generate("webarena", 3, sessions=40, max_context=32_768)), path)
    return path


def learn(trace: Path, out: Path, *more: str) -> None:
    load("learn")(["learn", str(trace), "--out", str(out), *SMALL, *more], prog_name="saga-rl", standalone_mode=False)


@pytest.fixture(scope="module")
def learned(here, trace, tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "mine"
    learn(trace, out)
    return out


def weights(folder: Path) -> dict[str, bytes]:
    """Every file of the policy that a folder serves, and of what was found."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("policy.safetensors"))}


# ---------------------------------------------------------------- what it leaves behind
def test_everything_is_there_and_loads(learned):
    result = json.loads((learned / "result.json").read_text())
    assert {"index.html", "CARD.md", "gain.svg", "result.json", "found"} <= {p.name for p in learned.iterdir()}
    assert result["trace"]["quality"]["tools"] == {"recorded": 0.75, "estimated": 0.0, "missing": 0.25}
    assert DOUBT.lower() in (learned / "index.html").read_text().lower()
    assert result["serves"] in ("found", "lru", "likely", "auto")
    assert set(result["arms"]) >= {"infinite memory", "lru", "likely", "found"}
    assert result["provenance"]["commit"] and result["simulated"]
    sentence = result["sentence"]
    assert sentence.count(". ") == 0 and sentence.endswith(".")
    page = (learned / "index.html").read_text()
    assert "<svg" in page or "svg+xml" in page
    for text in (page, (learned / "CARD.md").read_text()):
        assert "Where" in text and "found here" in text
    for folder in (learned, learned / "found"):
        assert policies_of(str(folder)).admission.decision == "admission"  # as `serve` reads it
    parts = {p: read_trace(learned / "traces" / f"{p}.parquet") for p in ("train", "validation", "test")}
    groups = [set(t.sessions.group) for t in parts.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


def test_it_serves_what_the_rule_says(learned):
    result = json.loads((learned / "result.json").read_text())
    test = read_trace(learned / "traces" / "test.parquet")
    config = SimConfig(**PRESSED)
    served = simulate(test, config, preset(str(learned)), slo=False).tct_s
    wanted = str(learned / "found") if result["serves"] == "found" else result["serves"]
    np.testing.assert_array_equal(served, simulate(test, config, preset(wanted), slo=False).tct_s)


def test_after_a_stop_the_same_command_comes_to_the_same_policy(learned, trace, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(learned, again)
    for place in (again / "found", *(again / d for d in ("eviction", "ordering", "admission"))):
        shutil.rmtree(place, ignore_errors=True)
    for name in ("result.json", "index.html", "CARD.md", "cells.jsonl", "search-2.jsonl"):
        (again / name).unlink()
    journal = again / "search-1.jsonl"
    whole = journal.read_text()
    journal.write_text("".join(whole.splitlines(keepends=True)[:2]) + '{"costs": [0.1')  # killed while it wrote
    learn(trace, again)
    assert weights(again) == weights(learned)
    assert journal.read_text() == whole
    a, b = (json.loads((folder / "result.json").read_text()) for folder in (learned, again))
    assert a["arms"] == b["arms"] and a["sentence"] == b["sentence"]


def test_with_a_tier_that_holds_nothing_twice_stock_keeps_its_own(here, trace, tmp_path):
    """What is served and searched is played with the lazy tier, vLLM as it is with its own; the page says the flag."""
    out = tmp_path / "lazy"
    learn(trace, out, "--cpu-tokens", "60000", "--lazy-offload", "--arrangements", "2", "--starts", "1")
    result = json.loads((out / "result.json").read_text())
    assert result["settings"]["lazy_offload"] and result["world"]["config"]["offloading"] == "lazy"
    test = read_trace(out / "traces" / "test.parquet")
    for arm, policy, offloading in (("lru", "lru", "vllm"), ("auto", "auto", "lazy"),
                                    ("auto, vLLM's tier", "auto", "vllm"), ("found", str(out / "found"), "lazy")):
        means = [simulate(arrangement(test, seed, result["world"]["sessions"]["test"], 1.0),
                          SimConfig(**PRESSED, cpu_tokens=60_000, offloading=offloading), preset(policy), seed,
                          slo=False).metrics["tct_mean_s"] for seed in range(FIRST_SEED, FIRST_SEED + 2)]
        assert result["arms"][arm]["tct_mean_s"] == pytest.approx(np.mean(means)), arm
    for name in ("index.html", "CARD.md"):
        assert "--kv-offloading-size GIB --lazy-offload" in (out / name).read_text()


def test_other_flags_in_the_same_folder_are_refused(learned, trace):
    before = weights(learned)
    with pytest.raises(UserError, match=r"(?s)begun with other input.*population was 5, is 4"):
        learn(trace, learned, "--population", "4")
    with pytest.raises(UserError, match="begun with other input"):
        learn(trace, learned, "--seed", "1")
    assert weights(learned) == before


def test_another_trace_in_the_same_folder_is_refused(learned, tmp_path):
    other = tmp_path / "t.parquet"
    write_trace(generate("webarena", 4, sessions=40, max_context=32_768), other)
    with pytest.raises(UserError, match="begun with other input"):
        learn(other, learned)


# ---------------------------------------------------------------- what it refuses, with nothing written
@pytest.mark.parametrize(("more", "says"), [
    (["--kv-tokens", "2000000"], "no pressure.*vLLM as it is takes 1.000 times"),
    (["--window", "4000"], "sessions left out: longer than 4,000 tokens, --window"),
    (["--profile", "h100-lama3-70b"], "no profile named"),
    (["--population", "500"], "can feed"),
    (["--load", "1"], "both given"),
    (["--workers", "-1"], "--workers"),
    (["--wandb", "sometimes"], "--wandb mode"),
    (["--cpu-tokens", "3"], "less than one block"),
    (["--lazy-offload"], "--lazy-offload: has no memory"),
])
def test_bad_input_writes_nothing(here, trace, tmp_path, more, says):
    with pytest.raises(UserError, match=says):
        learn(trace, tmp_path / "out", *more)
    assert not list(tmp_path.iterdir())


def test_too_few_sessions(here, tmp_path):
    few = tmp_path / "few.parquet"
    write_trace(generate("webarena", 3, sessions=29, max_context=16_384), few)
    with pytest.raises(UserError, match="29 sessions"):
        learn(few, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["few.parquet"]


def test_a_folder_of_something_else_is_left_alone(here, trace, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        learn(trace, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_bad_input_is_one_line_and_exit_status_2(tmp_path):
    done = subprocess.run([sys.executable, "-m", "saga_rl", "learn", "no.parquet", "--out", str(tmp_path / "out")],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "no.parquet" in done.stderr
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the safe rule
def ratio(low: float, value: float, high: float) -> dict[str, Any]:
    return {"ratio": value, "low": low, "high": high, "pairs": 8,
            "verdict": "better" if high < 1 else "worse" if low > 1 else "no difference shown"}


BETTER, SAME, WORSE = ratio(.8, .85, .9), ratio(.95, .99, 1.01), ratio(1.05, 1.1, 1.2)


def over(mean, p95, stock_mean=BETTER, stock_p95=BETTER):
    return {"likely": {"mean": mean, "p95": p95}, "lru": {"mean": stock_mean, "p95": stock_p95}}


@pytest.mark.parametrize(("default", "found", "serves"), [
    (BETTER, over(BETTER, BETTER), "found"),
    (BETTER, over(BETTER, SAME), "found"),
    (SAME, over(BETTER, BETTER), "found"),
    (BETTER, over(SAME, BETTER), "likely"),                              # the interval does not exclude the default
    (BETTER, over(ratio(.8, .9, 1.0), BETTER), "likely"),
    (BETTER, over(BETTER, WORSE), "likely"),                             # faster on average, slower at P95
    (BETTER, over(BETTER, ratio(.9, 1.03, 1.2)), "likely"),
    (BETTER, over(WORSE, WORSE), "likely"),
    (BETTER, over(None, None), "likely"),                                # too few arrangements
    (None, over(SAME, SAME), "likely"),
    (WORSE, over(SAME, SAME, SAME, SAME), "lru"),                        # the default itself loses to stock
    (WORSE, over(BETTER, BETTER, SAME, SAME), "lru"),
    (WORSE, over(BETTER, BETTER), "found"),
    (BETTER, over(BETTER, BETTER, BETTER, WORSE), "likely"),
])
def test_the_safe_rule(default, found, serves):
    choice = rule.choose("likely", default, found)
    assert choice.serves == serves
    assert choice.why


def test_one_sentence_says_gain_and_loss():
    arms = {"found": {"over": {"lru": dict.fromkeys(verdict.MEASURES, BETTER) | {
        "ttft_p95_s": WORSE, "throughput_sessions_per_min": WORSE}}}}
    said = verdict.sentence({"arms": arms, "default": "likely"}, rule.Choice("found", ""), "vLLM as it is")
    assert said.count(".") == 1
    assert "15% less time on average than under vLLM as it is (95 % interval 10% to 20%)" in said
    assert "but it loses in P95 of time to first token (10% more)" in said and "throughput" not in said
    arms["found"]["over"]["lru"]["ttft_p95_s"] = SAME
    said = verdict.sentence({"arms": arms, "default": "likely"}, rule.Choice("found", ""), "vLLM as it is")
    assert "no measure is shown worse" in said


def test_what_the_search_did_not_better_is_not_said_to_be_learned():
    def one(name, cost, start):
        return {"from": name, "validation_cost": cost, "start_cost": start}

    rules = one("rules", -0.07, -0.01)
    assert verdict.kept([one("the shipped checkpoint", -0.09, -0.09), rules]) == "the shipped checkpoint"
    assert verdict.kept([one("the shipped checkpoint", -0.05, -0.05), rules]) == ""
    assert verdict.kept([one("the shipped checkpoint", -0.11, -0.09), rules]) == ""
    arms = {"found": {"over": {"lru": dict.fromkeys(verdict.MEASURES, BETTER)}}}
    found = rule.Choice("found", "")
    said = verdict.sentence({"arms": arms}, found, "vLLM as it is", "the shipped checkpoint")
    assert "Under the shipped checkpoint, from which the search found nothing better, your" in said
    assert "learned here" not in said and "learned here" in verdict.sentence({"arms": arms}, found, "vLLM as it is")


@pytest.mark.parametrize("name", [rule.STOCK, DEFAULT_PRESET])
def test_a_preset_as_a_folder_serves_as_the_preset(name, trace, tmp_path):
    """To the bit: the placement that is written as a network places alike."""
    write_preset(tmp_path, name, "a test wants it", {})
    test = read_trace(trace)
    for more in ({}, {"workers": 3, "kv_tokens": 40_000, "population": 12},
                 {"cpu_tokens": 60_000, "offloading": "vllm"}):
        config = SimConfig(**{**PRESSED, **more})
        ours, preset_s = (simulate(test, config, preset(p), slo=False) for p in (str(tmp_path), name))
        assert preset_s.metrics["evictions"] > 0
        np.testing.assert_array_equal(ours.tct_s, preset_s.tct_s)


def test_every_safe_preset_can_be_written():
    assert {PRESETS[name]["placement"] for name in (rule.STOCK, DEFAULT_PRESET)} <= set(WEIGHTS)


# ---------------------------------------------------------------- pressure and spending
@pytest.mark.parametrize(("first", "most", "best"), [(1, 64, 10), (40, 64, 10), (10, 64, 10), (1, 6, 6), (1, 1, 1)])
def test_the_population_is_where_stock_takes_twice_as_long(first, most, best):
    asked = []

    def at(n: int) -> float:
        asked.append(n)
        return 1 + n / 10

    found = world.population_at(at, first, most)
    assert abs(found.population - best) <= 0.2 * best
    assert max(asked) <= most and len(asked) == len(set(asked)) <= 9


def test_a_search_that_costs_more_is_shorter():
    for spending in (settings.QUICK, settings.FULL):
        many, few = (spending.fitted(steps) for steps in (10, 5_000))
        assert many == spending.generations and 3 <= few < many
        assert 3 <= spending.fitted(1e9) == 3
