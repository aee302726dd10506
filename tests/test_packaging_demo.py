"""The demo's parts that need no engine: what is served, how stages fail, and that no process is left behind."""

from __future__ import annotations

import io
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import write_trace
from saga_rl.aeg.split import split
from saga_rl.aeg.trace import TraceMeta
from saga_rl.demo.material import load, pool_tokens, served_sessions, trained_sessions
from saga_rl.demo.server import Server
from saga_rl.demo.settings import Settings
from saga_rl.demo.stages import Child, StageFailed, Stages
from saga_rl.errors import UserError


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), max_context=st.integers(1024, 8192), limit=st.integers(1, 20))
def test_what_is_served_fits_the_model_and_the_budget(seed: int, max_context: int, limit: int):
    trace = generate("swe-bench", seed % 3, sessions=20)
    s = Settings(seed=seed, max_context=max_context, served_sessions=limit)
    served = served_sessions(trace, s)
    context = served.trace.steps.prompt_tokens + served.trace.steps.output_tokens
    assert context.max() <= max_context
    assert 1 <= served.trace.n_sessions <= limit and served.trace.n_steps <= s.served_steps
    assert served.left_out == trace.n_sessions - served.trace.n_sessions
    rows = [trace.sessions.session_id.index(i) for i in served.trace.sessions.session_id]
    before = trace.select(rows)
    assert np.abs(served.trace.steps.prompt_tokens - before.steps.prompt_tokens * served.length_factor).max() <= 1
    assert served.trace.steps.tool_s == pytest.approx(before.steps.tool_s * served.time_factor)
    kv = pool_tokens(served.trace, s)
    assert kv % s.block_tokens == 0 and kv >= max(context.max(), s.model_len)


def test_what_is_searched_on_is_scaled_alike_and_split_by_group():
    trace = generate("webarena", 3, sessions=60, max_context=32_768)
    parts = split(trace, {"train": 0.6, "held-out": 0.4}, 1)
    s = Settings(max_context=2048)
    served = served_sessions(parts["held-out"], s)
    found = trained_sessions(parts["train"], served, s)
    ids = {name: set(part.sessions.session_id) for name, part in found.items()}
    assert ids["train"] and ids["validation"] and not ids["train"] & ids["validation"]
    assert ids["train"] | ids["validation"] <= set(parts["train"].sessions.session_id)
    for part in found.values():
        before = parts["train"].select([parts["train"].sessions.session_id.index(i) for i in part.sessions.session_id])
        assert (part.steps.prompt_tokens + part.steps.output_tokens).max() <= s.max_context
        assert part.steps.tool_s == pytest.approx(before.steps.tool_s * served.time_factor)
    few = trained_sessions(parts["train"].select([0, 1, 2]), served, s)
    assert few["train"].sessions.session_id == few["validation"].sessions.session_id
    with pytest.raises(UserError, match="no training session"):
        trained_sessions(parts["train"], replace(served, length_factor=100.0), s)


def test_blocks_with_ids_stay_whole_and_too_long_sessions_are_left_out_and_counted():
    def session(name: str, blocks: int) -> SessionSpec:
        return SessionSpec(name, 0.0, [StepSpec(64 * blocks, 64, hashes=list(range(blocks)), tool="x", tool_s=8.0),
                                       StepSpec(64 * blocks + 128, 64, parents=(0,), prefix_step=0,
                                                prefix_tokens=64 * blocks)])

    trace = build_trace(TraceMeta("t", "generated:t", hash_block_tokens=64), [session("a", 100), session("b", 100_000)])
    served = served_sessions(trace, replace(Settings(), max_context=1024))
    assert served.trace.sessions.session_id == ["a"] and served.left_out == 1
    assert served.length_factor * 64 == int(served.length_factor * 64) >= 1
    assert served.trace.meta.hash_block_tokens == served.length_factor * 64
    assert served.time_factor == pytest.approx(0.05)
    with pytest.raises(UserError, match="no held-out session"):
        served_sessions(trace.select([1]), replace(Settings(), max_context=1024))


def test_a_trace_of_ones_own_is_read_or_imported_and_a_wrong_one_names_the_way(tmp_path):
    write_trace(generate("webarena", 1, sessions=4), tmp_path / "t.parquet")
    assert load(Settings(trace=tmp_path / "t.parquet")).n_sessions == 4
    (tmp_path / "x.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="FORMAT=weka"):
        load(Settings(trace=tmp_path / "x.jsonl"))


def test_stopping_a_child_stops_what_it_started_even_if_it_will_not_listen(tmp_path):
    code = ("import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
            "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
            "print(p.pid, flush=True); time.sleep(600)")
    with Child("x", [sys.executable, "-c", code], tmp_path / "x.log") as child:
        deadline = time.monotonic() + 20
        while not (tmp_path / "x.log").read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.05)
        grandchild = int((tmp_path / "x.log").read_text())
        assert alive(child.process.pid) and alive(grandchild)
        child.stop(grace_s=0.2)
    deadline = time.monotonic() + 10
    while alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child.process.pid) and not alive(grandchild)


def test_an_error_inside_the_block_stops_the_child_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), Child("x", ["sleep", "600"], tmp_path / "x.log") as child:
        raise KeyboardInterrupt
    assert child.process.poll() is not None


def test_a_failing_stage_says_which_it_is_and_where_its_log_is(tmp_path):
    stages = Stages(tmp_path, Console(file=io.StringIO()), 1)
    with pytest.raises(StageFailed) as e:
        stages.call("train", [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"])
    text = str(e.value)
    assert "train" in text and "status 3" in text and str(tmp_path / "train.log") in text and "the reason" in text


def test_a_server_that_dies_is_noticed_at_once(tmp_path):
    s = Settings(folder=tmp_path)
    server = Server(s, "serve x", "no-such-policy", tmp_path / "none", 6400, tmp_path / "x.log")
    begin = time.monotonic()
    with server, pytest.raises(StageFailed, match="before it was ready"):
        server.ready()
    assert time.monotonic() - begin < 60
    assert "no-such-policy" in (tmp_path / "x.log").read_text()
