"""The command as a user meets it: help, one line for a mistake, exit status 2, nothing half-written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import write_trace

RUN = [sys.executable, "-c", "from saga_rl.cli import main; main()"]


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([*RUN, *words], capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "t.parquet"
    write_trace(generate("webarena", seed=1, sessions=3, max_context=20_000), path)
    return path


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    for command in ("trace", "simulate", "bound", "serve", "replay"):
        assert command in done.stdout


@pytest.mark.parametrize(("words", "message"), [
    (["simulate", "no-such.parquet"], "no-such.parquet: no such file"),
    (["simulate", "TRACE", "--eviction", "lrru"], "no eviction policy named 'lrru'; choose one of: lru"),
    (["simulate", "TRACE", "--policy", "sage"], "choose one of: saga"),
    (["simulate", "TRACE", "--profile", "h100x"], "no profile named 'h100x'"),
    (["simulate", "TRACE", "--workers", "0"], "--workers: is 0"),
    (["simulate", "TRACE", "--kv-tokens", "500"], "more than the KV pool"),
    (["simulate", "TRACE", "--eviction", "belady"], "saga-rl bound"),
    (["simulate", "TRACE", "--json", "no/such/x.json"], "does not exist"),
    (["bound", "TRACE", "--json", "no/such/x.json"], "does not exist"),
    (["replay", "TRACE", "--url", "http://127.0.0.1:1", "--json", "no/such/x.json"], "does not exist"),
])
def test_a_mistake_is_one_line_and_status_2(trace, words, message, tmp_path):
    done = run(*[str(trace) if w == "TRACE" else w for w in words])
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_simulate_writes_the_promised_keys(trace, tmp_path):
    import json

    out = tmp_path / "r.json"
    done = run("simulate", str(trace), "--policy", "saga+", "--kv-tokens", "60000", "--json", str(out))
    assert done.returncode == 0, done.stderr
    keys = {"tct_mean_s", "tct_p50_s", "tct_p95_s", "sessions_done", "recomputed_tokens", "prefilled_tokens",
            "hit_share", "useful_kv_share", "throughput_sessions_per_min", "slo_attainment", "evictions", "preemptions",
            "migrations", "llm_steps", "events", "wall_s", "provenance"}
    result = json.loads(out.read_text())
    assert keys <= set(result)
    assert {"commit", "version", "seed", "trace_sha256", "argv"} <= set(result["provenance"])
    assert result["sessions_done"] == 3
