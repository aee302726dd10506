"""The demo's parts that need no engine: what is served, the page, how stages fail, no process left behind."""

from __future__ import annotations

import io
import json
import sys
import time

import numpy as np
import pytest
from rich.console import Console

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import write_trace
from saga_rl.demo import own
from saga_rl.demo.material import SHARES, load, material
from saga_rl.demo.outcome import rows, show, write_page
from saga_rl.demo.ring import BEST, LEARNED, RIVAL, Outcome
from saga_rl.demo.settings import Settings
from saga_rl.demo.stages import Stages
from saga_rl.errors import UserError
from saga_rl.processes import Child, ProcessFailed


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_is_taken_is_within_the_limits_and_in_one_part_only():
    s = Settings()
    trace = generate("webarena", 3, sessions=150)
    found = material(trace, s)
    assert set(found.parts) == set(SHARES)
    ids = [i for part in found.parts.values() for i in part.sessions.session_id]
    groups = [set(part.sessions.group) for part in found.parts.values()]
    assert len(ids) == len(set(ids)) and not groups[0] & groups[1] and not groups[2] & (groups[0] | groups[1])
    assert len(ids) + sum(found.left_out.values()) == trace.n_sessions == found.imported
    for part in found.parts.values():
        steps = np.diff(part.session_offsets)
        waits = np.add.reduceat(part.steps.tool_s + part.steps.think_s, part.session_offsets[:-1])
        assert steps.min() >= s.steps[0] and steps.max() <= s.steps[1] and waits.max() <= s.longest_wait_s
        assert (part.steps.prompt_tokens + part.steps.output_tokens).max() <= s.window


def test_too_few_sessions_are_refused_with_what_was_left_out_and_why():
    with pytest.raises(UserError, match=r"has \d+ sessions that the demo can serve.*left out: not of 4 to 16"):
        material(generate("webarena", 3, sessions=20), Settings())


def test_transcripts_are_found_where_claude_code_keeps_them_and_never_used_unasked(tmp_path, monkeypatch):
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    assert own.folder(tmp_path) is None
    place = tmp_path / ".claude" / "projects" / "x"
    place.mkdir(parents=True)
    assert own.folder(tmp_path) is None
    (place / "s.jsonl").write_text("{}\n")
    assert own.folder(tmp_path) == tmp_path / ".claude" / "projects"
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert not own.asked(place)  # no terminal: nobody is asked


def an_outcome(learned_s: float) -> Outcome:
    def arm(seconds: float, simulated: float | None) -> dict:
        return {"tct_mean_s": seconds, "tct_p95_s": 2 * seconds, "ttft_mean_s": 1.5, "recomputed_tokens": 1_500_000,
                "hit_share": 0.5, "simulated_tct_mean_s": simulated, "tct_s": {"a": seconds, "b": 2 * seconds}}

    facts = {"sessions": {"source": "generated:x", "in_all": 9, "left_out": {"not of 4 to 16 steps": 2}, "train": 3,
                          "validation": 2, "test": 2},
             "served": {"sessions": 2, "steps": 8}, "cluster": {"engines": 2, "kv_tokens": 1000, "alive": 2,
                                                                "window": 500},
             "says": dict.fromkeys(("stock", BEST, LEARNED, RIVAL), "so"), "stage_seconds": {"x": 1.0},
             "provenance": {"commit": "c", "device": {"device": "emulated"}}}
    held = {"stock": {"time_s": [0.0, 1.0], "tokens": [[1, 2], [3, 4]]}}
    return Outcome(facts, {"stock": arm(100.0, 99.0), BEST: arm(80.0, 81.0), LEARNED: arm(learned_s, 70.0),
                           RIVAL: arm(90.0, None)}, held)


@pytest.mark.parametrize("seconds,words", [(75.0, "25% less than"), (120.0, "20% MORE than")])
def test_the_page_says_gain_and_loss_alike_and_that_devices_are_emulated(tmp_path, seconds, words):
    outcome, console = an_outcome(seconds), Console(file=io.StringIO(), width=120)
    show(outcome, console)
    write_page(Settings(), outcome, tmp_path / "report.html")
    screen, page = console.file.getvalue(), (tmp_path / "report.html").read_text()
    for text in (screen, page):
        assert words in text and "mulated" in text and "learned here" in text
    assert ("shortest of all was auto" in page) == (seconds > 80)
    assert [r[0] for r in rows(outcome)] == ["stock vLLM", "auto (rules)", "learned here", "vLLM Router"]
    assert "not of 4 to 16 steps" in page and json.dumps("emulated") in page.replace("&quot;", '"')


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
    with pytest.raises(ProcessFailed) as e:
        stages.call("train", [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"])
    text = str(e.value)
    assert "train" in text and "status 3" in text and str(tmp_path / "train.log") in text and "the reason" in text
