"""`bound`: its keys, its physics on recorded strings, and the command's answers to bad input."""

import json

import pytest
import typer
from typer.testing import CliRunner

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import write_trace
from saga_rl.cli.bound import register
from saga_rl.errors import UserError
from saga_rl.policies.registry import make, split_specs
from saga_rl.sim.config import SimConfig
from saga_rl.sim.openloop.bound import bound
from saga_rl.sim.openloop.record import record_reference
from saga_rl.sim.openloop.replay import replay
from saga_rl.sim.stepping.replay_stepper import EvictionStepper

NAMES = ("lru", "lru-protect", "wa-lru", "wa-lru-literal", "youngest")


@pytest.fixture(scope="module")
def trace():
    return generate("webarena", 3, sessions=14, max_context=30_000)


@pytest.fixture(scope="module")
def config():
    return SimConfig(kv_tokens=64_000, population=5)


def test_keys_and_physics(trace, config):
    result = bound(trace, config, NAMES)
    assert set(result) == {"capacity_tokens", "belady_recomputed_tokens", "policies", "low_pressure",
                           "first_time_tokens", "reference"}
    assert result["capacity_tokens"] == 64_000 and set(result["policies"]) == set(NAMES)
    assert result["belady_recomputed_tokens"] > 0 and not result["low_pressure"]
    for name, row in result["policies"].items():
        assert set(row) == {"recomputed_tokens", "ratio"}
        assert row["ratio"] == row["recomputed_tokens"] / result["belady_recomputed_tokens"] >= 1.0, name
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_recorded_string_keeps_its_invariants(trace, config):
    reference = record_reference(trace, config)
    for name in ("lru", "wa-lru-literal"):
        replay(reference, make("eviction", name), config.kv_tokens, debug=True)
    stepper, lru = EvictionStepper(reference, config.kv_tokens, 512), make("eviction", "lru")
    pending = stepper.n_rows > 0
    while pending:
        pending = stepper.advance(stepper.policy_action(lru))
    assert stepper.result() == replay(reference, lru, config.kv_tokens)


def test_more_memory_never_costs_belady_more(trace, config):
    reference = record_reference(trace, config)
    costs = [replay(reference, make("eviction", "belady"), kv).recomputed_tokens
             for kv in (64_000, 120_000, 200_000, 2_000_000)]
    assert costs == sorted(costs, reverse=True) and costs[-1] == 0


def test_without_pressure_there_is_no_ratio(trace):
    result = bound(trace, SimConfig(kv_tokens=5_000_000), ["lru"])
    assert result["low_pressure"] and result["policies"]["lru"] == {"recomputed_tokens": 0, "ratio": None}


def test_a_session_larger_than_the_pool_is_refused(trace):
    with pytest.raises(UserError, match="KV pool"):
        bound(trace, SimConfig(kv_tokens=4_000), ["lru"])


def test_specs_may_hold_commas():
    assert split_specs("lru, wa-lru:alpha=1,beta=2,learned:some/folder,lru") == [
        "lru", "wa-lru:alpha=1,beta=2", "learned:some/folder"]


def test_the_command_writes_what_it_shows(trace, tmp_path):
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    write_trace(trace, tmp_path / "t.parquet")
    out = tmp_path / "out.json"
    arguments = ["bound", str(tmp_path / "t.parquet"), "--kv-tokens", "96000", "--population", "5", "--sessions", "9",
                 "--eviction", "lru,youngest", "--json", str(out)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "belady (bound)" in done.stdout
    result = json.loads(out.read_text())
    assert set(result["policies"]) == {"lru", "youngest"} and result["reference"]["sessions"] == 9
    assert {"commit", "version", "seed", "trace_sha256", "argv"} <= set(result["provenance"])
    assert result["trace_quality"] is None, "it was generated"
    with pytest.raises(UserError, match="lru"):
        CliRunner().invoke(app, [*arguments[:2], "--eviction", "lur"], catch_exceptions=False)
