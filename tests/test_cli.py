"""The command as a user meets it: help, one line for a mistake, exit status 2, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from saga_rl.aeg.generators import generate, generator_names
from saga_rl.aeg.importers import importer_names
from saga_rl.aeg.inference.stream import TYPES
from saga_rl.aeg.io import write_trace
from saga_rl.cli.main import COMMANDS, load
from saga_rl.env.settings import KINDS as TASKS
from saga_rl.experiments.bench.arms import ARMS
from saga_rl.learn.data.rollouts import ROLLOUTS
from saga_rl.learn.judge.protocol.settings import ROWS
from saga_rl.learn.offline.learners import LEARNERS
from saga_rl.policies.presets import preset_names

GROUPS = ("trace", "profile", "train", "emulate")
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "reference" / "results.md"
RUN = [sys.executable, "-c", "from saga_rl.cli.main import main; main()"]


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([*RUN, *words], capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "t.parquet"
    write_trace(generate("webarena", seed=1, sessions=3, max_context=20_000), path)
    return path


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    for command in ("trace", "aeg", "simulate", "bound", "compare", "bench", "profile", "serve", "replay"):
        assert command in done.stdout


def test_help_imports_no_command():
    code = "import sys\nfrom saga_rl.cli.main import app\ntry:\n    app(['--help'])\nfinally:\n    print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "saga_rl.cli.main" in loaded
    assert not {"numpy", "numba", "torch", "vllm", "saga_rl.sim", "saga_rl.aeg"} & loaded


HEAVY = {"numpy", "numba", "pyarrow", "torch", "gymnasium", "vllm", "asyncio"}
"""What makes a start slow; a command imports it when it runs."""


def help_of(*words: str) -> tuple[str, set[str]]:
    """The help of a command, and the modules loaded once it is printed."""
    code = ("import sys\nfrom saga_rl.cli.main import app\ntry:\n    app(sys.argv[1:])\n"
            "finally:\n    print(*sys.modules)")
    done = subprocess.run([sys.executable, "-c", code, *words, "--help"], capture_output=True, text=True, timeout=900,
                          check=True, env={**os.environ, "COLUMNS": "200"})
    *text, modules = done.stdout.splitlines()
    return "\n".join(text), set(modules.split())


@pytest.mark.parametrize("words", [
    *((name,) for name in COMMANDS if name not in GROUPS),
    *((name, sub) for name in GROUPS for sub in typer.main.get_command(load(name)).commands[name].commands)],
    ids=" ".join)
def test_the_help_of_a_command_loads_nothing_heavy(words):
    text, modules = help_of(*words)
    assert f"saga-rl {' '.join(words)}" in text
    assert not HEAVY & modules


@pytest.mark.parametrize(("words", "names"), [
    (("trace", "generate"), generator_names()), (("trace", "import"), importer_names()), (("aeg",), TYPES),
    (("simulate",), preset_names()), (("compare",), preset_names()), (("bench",), ARMS),
    (("train", "collect"), ROLLOUTS),
    (("train", "offline"), LEARNERS), (("train", "sweep"), LEARNERS), (("train", "finetune"), TASKS),
    (("train", "protocol"), ROWS),
    (("train", "dagger"), [name for name, kind in LEARNERS.items() if kind.needs == "labels"])],
    ids=lambda x: " ".join(x))
def test_names_written_in_a_help_are_the_names_there_are(words, names):
    text, _ = help_of(*words)
    assert not set(names) - set(re.findall(r"[\w+-]+", text))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_is_listed_with_its_own_words(name):
    group = typer.main.get_command(load(name))
    command = group.commands[name]  # type: ignore[attr-defined]
    assert " ".join((command.help or "").split()).startswith(COMMANDS[name][0])


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "saga_rl", "--version"], capture_output=True, text=True, timeout=900,
                          check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, "saga-rl")


@pytest.mark.parametrize(("words", "message"), [
    (["simulate", "no-such.parquet"], "no-such.parquet: no such file"),
    (["simulate", "TRACE", "--eviction", "lrru"], "no eviction policy named 'lrru'; choose one of: lru"),
    (["simulate", "TRACE", "--policy", "sage"], "choose one of: saga"),
    (["simulate", "TRACE", "--profile", "h100x"], "no profile named 'h100x'"),
    (["simulate", "TRACE", "--workers", "0"], "--workers: is 0"),
    (["simulate", "TRACE", "--eviction", "belady"], "must know the future"),
    (["simulate", "TRACE", "--placement", "saga:steal=1"], "there is one worker"),
    (["simulate", "TRACE", "--admission", "grow:factr=1"], "choose one of: factor"),
    (["simulate", "TRACE", "--kv-floor", "a=x"], "'a=x' holds no number"),
    (["simulate", "TRACE", "--kv-floor", "nobody=.1"], "there is no tenant named 'nobody'"),
    (["simulate", "TRACE", "--service-gap", "-1"], "service gap: is -1"),
    (["simulate", "TRACE", "--kv-tokens", "500"], "more than the KV pool"),
    (["simulate", "TRACE", "--eviction", "belady"], "saga-rl bound"),
    (["simulate", "TRACE", "--json", "no/such/x.json"], "does not exist"),
    (["simulate", "TRACE", "--prefetch-tokens", "64"], "give --cpu-tokens too"),
    (["simulate", "TRACE", "--cpu-tokens", "9999", "--cpu-eviction", "mru"], "choose one of: lru, fifo"),
    (["simulate", "TRACE", "--link-tokens-per-s", "-1"], "--link-tokens-per-s: is -1"),
    (["trace", "import", "wekka", "TRACE", "--out", "no/such/x.parquet"], "no import format named 'wekka'"),
    (["trace", "import", "weka", "no-such.jsonl", "--out", "x.parquet"], "no-such.jsonl: no such file"),
    (["profile", "show", "h100x"], "no profile named 'h100x'"),
    (["bound", "TRACE", "--json", "no/such/x.json"], "does not exist"),
    (["replay", "TRACE", "--url", "http://127.0.0.1:1", "--json", "no/such/x.json"], "does not exist"),
])
def test_a_mistake_is_one_line_and_status_2(trace, words, message, tmp_path):
    done = run(*[str(trace) if w == "TRACE" else w for w in words])
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_bound_writes_the_promised_keys(trace, tmp_path):
    out = tmp_path / "r.json"
    done = run("bound", str(trace), "--kv-tokens", "60000", "--json", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert set(result) == promised_keys("bound") and result["simulated"] is True
    assert set(result["reference"]) <= set(re.findall(r"\w+", promised("bound")))


def promised(command):
    """What the page of result files says of a command's JSON."""
    return RESULTS.read_text().split(f"## `saga-rl {command} --json`\n")[1].split("\n## ")[0]


def promised_keys(command):
    """What stands there in the first column of the table."""
    first = [line.split("|")[1] for line in promised(command).splitlines() if line.startswith("| `")]
    return {key for cell in first for key in re.findall(r"`(\w+)`", cell)}


def test_simulate_writes_the_promised_keys(trace, tmp_path):
    out = tmp_path / "r.json"
    done = run("simulate", str(trace), "--policy", "saga+", "--kv-tokens", "60000", "--json", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert set(result) == promised_keys("simulate") and result["simulated"] is True
    assert {"commit", "version", "seed", "trace_sha256", "argv"} <= set(result["provenance"])
    assert result["sessions_done"] == 3


def test_a_load_over_capacity_is_named_and_stops_at_a_stated_horizon(tmp_path):
    path, out = tmp_path / "burst.parquet", tmp_path / "r.json"
    write_trace(generate("webarena", seed=1, sessions=40, max_context=20_000, rate_per_min=60_000), path)
    done = run("simulate", str(path), "--kv-tokens", "21000", "--json", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert "the load is over what this cluster can serve" in done.stderr
    assert f"{40 - result['sessions_done']} of 40 sessions were not done" in done.stderr
    assert 0 < result["sessions_done"] < 40 and result["horizon_s"] > 0
    on = run("simulate", str(path), "--kv-tokens", "21000", "--horizon-s", "inf", "--json", str(out))
    assert json.loads(out.read_text())["sessions_done"] == 40
    assert json.loads(out.read_text())["horizon_s"] is None and "over what" not in on.stderr


def test_a_profile_asked_beyond_what_it_was_fitted_on_is_named(tmp_path):
    path, out = tmp_path / "long.parquet", tmp_path / "r.json"
    write_trace(generate("swe-bench", seed=1, sessions=2, max_context=100_000), path)
    done = run("simulate", str(path), "--profile", "h100-llama3.1-8b-tp1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    said = json.loads(out.read_text())["extrapolated"]
    assert said and all("extrapolated" in sentence for sentence in said)
    flat = " ".join(done.stderr.split())
    assert all(sentence in flat for sentence in said)
