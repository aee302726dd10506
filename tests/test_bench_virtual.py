"""`saga-rl bench --virtual`: arms on vLLM's real schedulers in virtual time, without a server."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import write_trace
from saga_rl.aeg.scale import scale_lengths
from saga_rl.cli.main import app
from saga_rl.errors import UserError
from saga_rl.policies.presets import preset
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile

virtual = pytest.importorskip("saga_rl.runtime.emulate.virtual", reason="vLLM is not installed",
                              exc_type=ImportError)
pytestmark = pytest.mark.vllm
PROFILE = "h100-llama3.1-8b-tp1"
POOL = 8192


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("virtual") / "t.parquet"
    write_trace(scale_lengths(generate("swe-bench", 3, sessions=10, rate_per_min=60), 1 / 32, time_factor=1 / 16), path)
    return path


def bench(trace, out, *more):
    return CliRunner().invoke(app, [
        "bench", str(trace), "--emulate", PROFILE, "--virtual", "--engines", "2", "--kv-tokens", str(POOL),
        "--cpu-tokens", "16384", "--concurrency", "6", "--repeats", "2", "--at-once", "1", "--out", str(out), *more])


@pytest.fixture(scope="module")
def made(trace, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "bench"
    done = bench(trace, out)
    assert done.exit_code == 0, done.output
    return out


def test_every_arm_that_needs_no_server_has_its_figures(made):
    result = json.loads((made / "result.json").read_text())
    assert set(result["arms"]) == {"stock", "stock+tier", "stock+lazy", "sticky", "priority", "router", "saga", "saga+",
                                   "likely", "auto", "infinite"}
    assert result["complete"] and result["provenance"]["virtual"] is True
    again = {name: arm["recomputed_tokens"] for name, arm in result["arms"].items()}
    assert min(again.values()) == again["infinite"] < again["stock"]  # a text that both engines compute counts once
    for name, arm in result["arms"].items():
        assert arm["repeats"] == 2 and arm["failed_runs"] == 0 and arm["tct_mean_s"] > 0, name
    assert "virtual time" in (made / "index.html").read_text()


def test_no_prompt_token_is_lost_or_made(made):
    for text in (made / "journal.jsonl").read_text().splitlines():
        row = json.loads(text)
        if row.get("kind") == "run":
            f = row["figures"]
            assert f["prefilled_tokens"] + f["hit_share"] * f["prompt_tokens"] == pytest.approx(f["prompt_tokens"])
            assert f["recomputed_tokens"] == max(0, f["prefilled_tokens"] - f["first_time_tokens"])


def test_a_second_measurement_is_the_same_to_the_last_bit(trace, made, tmp_path):
    done = bench(trace, tmp_path / "again", "--arms", "stock,priority,likely")
    assert done.exit_code == 0, done.output

    def figures(folder):
        rows = [json.loads(t) for t in (folder / "journal.jsonl").read_text().splitlines()]
        return {(r["arm"], r["repeat"]): (r["figures"], r["tct_s"]) for r in rows if r.get("kind") == "run"}

    first = figures(made)
    assert all(first[key] == value for key, value in figures(tmp_path / "again").items())


@pytest.mark.parametrize(("more", "words"), [
    (("--time-scale", "2"), "--time-scale"), (("--arms", "stock,router-program"), "router-program"),
    (("--agentx",), "--agentx"), (("--tensor-parallel-size", "2"), "--max-num-seqs")])
def test_what_needs_a_server_is_refused(trace, tmp_path, more, words):
    done = bench(trace, tmp_path / "out", *more)
    assert isinstance(done.exception, UserError) and words in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_our_scheduler_with_vllms_rules_serves_as_vllms_own_does():
    """First do no harm: on one engine `lru` is stock, to the last step."""
    trace = scale_lengths(generate("swe-bench", 5, sessions=8, rate_per_min=60), 1 / 32, time_factor=1 / 16)
    config = virtual.VirtualConfig(SimConfig(workers=1, kv_tokens=POOL, profile=load_profile(PROFILE), population=6,
                                             end_hint=False))
    stock, ours = virtual.play(trace, config, None), virtual.play(trace, config, preset("lru"))
    assert ours.counts["evicted/idle"] > 0  # or nothing would be shown
    assert stock.counts["iterations"] == ours.counts["iterations"]
    np.testing.assert_array_equal(stock.steps["cached_tokens"], ours.steps["cached_tokens"])
    np.testing.assert_array_equal(stock.steps["done_s"], ours.steps["done_s"])


def test_the_balance_is_vllms_and_spreads_a_burst():
    from saga_rl.runtime.emulate.virtual.balance import StockBalancer

    idle = SimpleNamespace(waiting=[], running=[], kv_cache_manager=SimpleNamespace(usage=0.0))
    busy = SimpleNamespace(waiting=[], running=[0] * 9, kv_cache_manager=SimpleNamespace(usage=0.9))
    even = StockBalancer([idle] * 4)
    assert Counter(even.choose(str(k), 0.0) for k in range(8)) == dict.fromkeys(range(4), 2)
    assert {StockBalancer([busy, idle]).choose("r", 0.0) for _ in range(3)} == {1}
    for k in range(8):
        even.finished(str(k))
    assert not +even._client.engine_inflight
