"""What was served becomes a Trace: journals, their merge, and what must not be in them."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from runtime_kit import BLOCK, Clock, drain, make_request, make_scheduler, step, vllm

from saga_rl.aeg.io import read_trace
from saga_rl.errors import UserError
from saga_rl.runtime.recording.journal import RETRY_S
from saga_rl.runtime.recording.merge import merge
from saga_rl.runtime.recording.recorder import FLUSH_S, Recorder, journal_folder
from saga_rl.runtime.sessions.hints import Hints
from saga_rl.runtime.sessions.tracker import Served

assert vllm is not None
from vllm.v1.request import RequestStatus  # noqa: E402

from saga_rl.runtime.engine.scheduler import SagaSyncScheduler  # noqa: E402


def hashes(*names: int) -> list[bytes]:
    """Chained, as vLLM's are."""
    out, state = [], b""
    for n in names:
        state = state + n.to_bytes(2, "big")
        out.append(state)
    return out


def served(session, queued, prompt, number, **hints) -> Served:
    return Served(1, Hints(session=session, **hints), queued, prompt, number, scheduled_s=queued + 0.1,
                  first_token_s=queued + 0.2, cached_tokens=0)


def test_a_scheduled_session_is_recorded_with_its_prefixes_tools_and_times(tmp_path):
    clock, record = Clock(), tmp_path / "served.parquet"
    s = make_scheduler(SagaSyncScheduler, tmp_path / "model", clock=clock, blocks=128,
                       saga={"policy": "saga+", "record": str(record), "record_key": "k"})
    shared = [1] * 3 * BLOCK
    a1, b1 = shared + [5] * 40, shared + [6] * 40
    s.add_request(make_request("a1", a1, session="A", tenant="t", agent_type="coder", deadline_s=90, output=5))
    drain(s, clock)
    clock.now += 2.0
    context = a1 + [7] * 5
    s.add_request(make_request("a2", context + [8] * 50, session="A", tool="bash", final=1, output=3))
    drain(s, clock)
    s.add_request(make_request("b1", b1, session="B", next_tool="web"))
    s.add_request(make_request("gone", [3] * 40, session="C"))
    step(s)
    s.finish_requests("gone", RequestStatus.FINISHED_ABORTED)
    drain(s, clock)
    s.shutdown()
    text = "".join(p.read_text() for p in journal_folder(record).iterdir())
    merge(journal_folder(record), record)
    assert not journal_folder(record).exists()
    t = read_trace(record)
    assert t.sessions.session_id == ["A", "B"]
    assert t.meta.dropped == {"aborted": 1}
    assert t.meta.hash_block_tokens == BLOCK
    assert t.meta.notes["policies"]["eviction"] == "youngest"
    st = t.steps
    assert st.prompt_tokens.tolist() == [88, 143, 88]
    assert st.output_tokens.tolist() == [5, 3, 4]
    full = (len(context) - 1) // BLOCK * BLOCK
    assert (st.prefix_step.tolist(), st.prefix_tokens.tolist()) == ([-1, 0, -1], [0, full, 0])
    assert st.cached_tokens.tolist() == [0, full, 3 * BLOCK]
    assert [t.tools[k] if k >= 0 else None for k in st.tool] == ["bash", None, "web"]
    assert st.tool_s[0] == pytest.approx(st.start_s[1] - st.end_s[0])
    assert st.tool_s[0] >= 2.0
    assert (st.start_s <= st.first_token_s).all() and (st.first_token_s <= st.end_s).all()
    assert st.parents.tolist() == [0]
    assert t.sessions.deadline_s[0] == pytest.approx(90.0)
    h = [st.hashes[st.hash_offsets[i]:st.hash_offsets[i + 1]].tolist() for i in range(3)]
    assert h[0][:3] == h[2][:3]  # both sessions begin with the shared blocks
    assert h[0][3:] != h[2][3:]
    assert [len(x) for x in h] == [88 // BLOCK, 143 // BLOCK - full // BLOCK, 88 // BLOCK]
    plain = {int.from_bytes(b[:8], "big") >> 1 for b in make_request("x", a1).block_hashes}
    assert plain.isdisjoint(h[0])
    assert "prompt_token_ids" not in text


def test_engines_on_which_a_session_moved_make_one_session(tmp_path):
    """The second engine never saw the first step; the merge finds the common prefix from both journals."""
    record = tmp_path / "r.parquet"
    one, two = (Recorder(record, e, "key", 16, wall=100.0 * e) for e in (0, 1))
    one.finished(served("s", 1000.0, 50, 1), 1001.0, 30, hashes(1, 2, 3, 4))
    two.finished(served("s", 905.0, 100, 1, tool="bash"), 907.0, 20, hashes(1, 2, 3, 9, 9, 9, 9))
    for r in (one, two):
        r.close()
    t = merge(journal_folder(record), record)
    assert t.n_sessions == 1
    assert t.steps.start_s.tolist() == [0.0, 5.0]
    assert t.steps.prefix_tokens.tolist() == [0, 48]
    assert t.steps.tool_s.tolist() == [4.0, 0.0]
    assert t.meta.notes["engines"] == 2


def test_sub_agents_and_parallel_requests_become_agents(tmp_path):
    record = tmp_path / "r.parquet"
    r = Recorder(record, 0, "key", 16, wall=0.0)
    r.finished(served("s", 10.0, 50, 1, next_tool="task"), 11.0, 30, hashes(1, 2, 3, 4))
    r.finished(served("s", 11.5, 60, 2, agent=7), 14.0, 10, hashes(1, 2, 8))
    r.finished(served("s", 12.0, 60, 3, agent=7), 15.0, 10, hashes(5, 5, 5))
    r.finished(served("s", 15.5, 90, 4, final=True), 17.0, 10, hashes(1, 2, 3, 4, 6))
    r.close()
    t = merge(journal_folder(record), record)
    assert t.steps.agent.tolist() == [0, 1, 2, 0]
    parents = [t.steps.parents[a:b].tolist() for a, b in zip(t.steps.parent_offsets, t.steps.parent_offsets[1:],
                                                             strict=False)]
    assert parents == [[], [0], [0], [0, 1, 2]]
    assert t.steps.prefix_step.tolist() == [-1, 0, -1, 0]
    assert t.steps.tool_s[0] == pytest.approx(0.5)  # since the last sub-agent ended


def test_a_journal_cut_short_by_a_crash_keeps_every_whole_line(tmp_path):
    record = tmp_path / "r.parquet"
    r = Recorder(record, 0, "key", 16, wall=0.0)
    for k in range(5):
        r.finished(served(f"s{k}", float(k), 50, k), k + 0.5, 3, hashes(1, 2, 3))
    r.close()
    path = next(journal_folder(record).iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    t = merge(journal_folder(record), record, keep=True)
    assert t.n_steps == 4
    assert t.meta.dropped == {"line cut short": 1}
    assert path.exists()


def test_memory_of_contexts_is_bounded_and_the_trace_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("saga_rl.runtime.recording.recorder.MAX_REMEMBERED", 2)
    traces = []
    for name, order in (("near", [0, 0, 1, 1, 2, 2]), ("far", [0, 1, 2, 0, 1, 2])):
        record = tmp_path / name
        r = Recorder(record, 0, "key", 16, wall=0.0)
        for k, i in enumerate(order):
            steps_before = order[:k].count(i)
            r.finished(served(f"s{i}", 10.0 * k, 48 + 16 * steps_before, k), 10.0 * k + 1, 17,
                       hashes(i, i, i, *[9] * steps_before))
        assert len(r._last) <= 2
        r.close()
        traces.append(merge(journal_folder(record), record))
    near, far = traces
    assert sorted(near.steps.prefix_tokens) == sorted(far.steps.prefix_tokens) == [0, 0, 0, 48, 48, 48]


@pytest.mark.parametrize(("lines", "message"), [
    ([], "holds no journal"), (['{"journal":1,"engine":0,"block":16,"about":{}}\n'], "holds no finished step"),
    (['{"journal":9,"engine":0,"block":16,"about":{}}\n'], "is of version 9; upgrade"),
    (["nonsense\n"], "line 1: is not JSON"),
])
def test_bad_journals_are_named(tmp_path, lines, message):
    folder = tmp_path / "x.journal"
    folder.mkdir()
    if lines:
        (folder / "engine-0-1.jsonl").write_text("".join(lines))
    with pytest.raises(UserError, match=message):
        merge(folder, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_lines_are_flushed_by_time_and_valid_json(tmp_path):
    record = tmp_path / "r.parquet"
    r = Recorder(record, 0, "key", 16, wall=0.0)
    r.finished(served("s", 1.0, 50, 1), 2.0, 3, hashes(1, 2, 3))
    path = next(journal_folder(record).iterdir())
    assert len(path.read_text().splitlines()) == 1
    r.flush()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 2
    assert np.all(np.array(rows[1]["hashes"]) >= 0)
    r.close()
    r.close()


def test_a_sessions_last_step_is_on_disk_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("saga_rl.runtime.recording.recorder.FLUSH_S", 3600.0)
    record = tmp_path / "x.parquet"
    recorder = Recorder(record, 0, "k", BLOCK, wall=0.0)
    recorder.finished(served("A", 1.0, 64, 1), 2.0, 3, hashes(1, 2))
    recorder.finished(served("A", 3.0, 96, 2, final=True), 4.0, 3, hashes(1, 2, 3))
    (journal,) = journal_folder(record).iterdir()
    until = time.monotonic() + 300
    while len(journal.read_text().splitlines()) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(journal.read_text().splitlines()) == 3  # a heading and both steps, though no second has passed
    recorder.close()


# ---------------------------------------------------------------------- files
def files(record) -> list:
    return sorted(journal_folder(record).glob("engine-*.jsonl"))


def steps_in(record) -> int:
    return sum('"session"' in line for p in files(record) for line in p.read_text().splitlines())


def growing(session: str, k: int) -> list[bytes]:
    """A context that is two blocks longer at each step."""
    return hashes(*session.encode(), *range(2 * k + 2))


def play(recorder, steps: int, flush=True, sessions=("a", "b")) -> None:
    """Step k of each session lasts from 10 k to 10 k + 1."""
    for k in range(steps):
        for n, session in enumerate(sessions):
            blocks = growing(session, k)
            recorder.finished(served(session, 10.0 * k, 16 * len(blocks) - 16, 10 * k + n, tool="t" if k else None),
                              10.0 * k + 1, 17, blocks)
        if flush:
            recorder.flush()


def same_trace(a, b) -> bool:
    return all(np.array_equal(getattr(a.steps, f), getattr(b.steps, f), equal_nan=a.steps.tool_s.dtype.kind == "f")
               for f in ("start_s", "end_s", "prompt_tokens", "prefix_step", "prefix_tokens", "hashes", "hash_offsets",
                         "tool_s", "tool", "parents", "agent"))


def test_rotation_by_size_and_by_time_gives_the_same_trace(tmp_path, monkeypatch):
    whole, small, timed = (tmp_path / n for n in ("whole", "small", "timed"))
    now = [0.0]
    monkeypatch.setattr("saga_rl.runtime.recording.recorder.time.monotonic", lambda: now[0])
    traces = []
    for record, options in ((whole, {}), (small, {"rotate_bytes": 2000}), (timed, {"rotate_s": 2.5})):
        r = Recorder(record, 0, "key", 16, wall=0.0, **options)
        for k in range(8):
            now[0] += 1.0
            for n, session in enumerate("ab"):
                r.finished(served(session, 10.0 * k, 32 * k + 32, 10 * k + n), 10.0 * k + 1, 17, growing(session, k))
            r.flush()
        r.close()
        traces.append(merge(journal_folder(record), record, keep=True))
    assert len(files(whole)) == 1
    assert len(files(small)) >= 3 and all(p.stat().st_size < 2000 + 800 for p in files(small))
    assert 3 <= len(files(timed)) <= 4  # 8 s at 2.5 s a file
    for p in files(small):  # each can be read without the others
        first = json.loads(p.read_text().splitlines()[1])
        assert first["same"] == 0
    assert same_trace(traces[0], traces[1]) and same_trace(traces[0], traces[2])
    assert traces[1].meta.notes["engines"] == 1


def test_a_process_that_is_killed_leaves_what_it_recorded(tmp_path):
    """A child records steps and is never asked to write them: every second it does, and what is on disk then stays."""
    assert FLUSH_S <= 1.0
    code = f"""
import time
from saga_rl.runtime.sessions.hints import Hints
from saga_rl.runtime.recording.recorder import Recorder
from saga_rl.runtime.sessions.tracker import Served
r = Recorder({str(tmp_path / "r")!r}, 0, "k", 16, wall=0.0)
for k in range(10**6):
    r.finished(Served(1, Hints(f"s{{k}}"), float(k), 50, cached_tokens=0), k + 0.5, 3, [b"1", b"2", b"3"])
    print(k, flush=True)
    time.sleep(0.02)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        told = [int(child.stdout.readline()) for _ in range(50)]
        (journal,) = journal_folder(tmp_path / "r").iterdir()
        until = time.monotonic() + 300
        while journal.read_bytes().count(b"\n") - 1 < len(told):
            assert time.monotonic() < until, "what is recorded is never written"
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    t = merge(journal_folder(tmp_path / "r"), tmp_path / "r")
    assert {f"s{k}" for k in told} <= set(t.sessions.session_id)
    assert child.returncode == -signal.SIGKILL


class Disk:
    """`os.write` onto a disk with so many bytes left: what does not fit is written in part, as a real one does."""

    def __init__(self, monkeypatch, left: float) -> None:
        self.left, self._write = left, os.write
        monkeypatch.setattr("saga_rl.runtime.recording.journal.os.write", self.write)

    def write(self, file, data) -> int:
        n = int(min(len(data), self.left))
        if n == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= n
        return self._write(file, bytes(data[:n]))


def test_a_full_disk_is_told_once_counted_and_recording_goes_on_when_there_is_room(tmp_path, monkeypatch, caplog):
    record, now = tmp_path / "r", [0.0]
    monkeypatch.setattr("saga_rl.runtime.recording.recorder.time.monotonic", lambda: now[0])
    disk = Disk(monkeypatch, math.inf)
    r = Recorder(record, 0, "key", 16, wall=0.0)
    with caplog.at_level(logging.WARNING, "vllm.saga_rl"):
        for k in range(30):
            now[0] += 1.0
            disk.left = {8: 100, 20: math.inf}.get(k, disk.left)
            for n, session in enumerate("ab"):
                r.finished(served(session, 10.0 * k, 32 * k + 32, 10 * k + n), 10.0 * k + 1, 17, growing(session, k))
            r.flush()
        r.close()
    lost = r.lost["no room"]
    assert [x.levelno for x in caplog.records] == [logging.ERROR, logging.WARNING]
    assert 24 <= lost <= 24 + 2 * RETRY_S
    assert r.counts["steps"] == 60 - lost
    t = merge(journal_folder(record), record, keep=True)
    assert t.n_steps == 60 - lost
    assert t.meta.dropped == {"no room": lost}  # and no line was cut: what was half written is gone
    last = np.flatnonzero(t.steps.prefix_step >= 0)[-1]  # the context after the gap still hangs on that before it
    assert t.steps.prefix_tokens[last] > 0


def test_a_disk_that_hangs_does_not_stop_the_scheduler_and_memory_stays_bounded(tmp_path, monkeypatch):
    """The thread waits in `write` for ever; steps go into a queue of 50 and the rest is counted."""
    monkeypatch.setattr("saga_rl.runtime.recording.recorder.MAX_QUEUED", 50)
    record, goes_on = tmp_path / "r", threading.Event()
    r = Recorder(record, 0, "key", 16, wall=0.0)
    monkeypatch.setattr("saga_rl.runtime.recording.journal.os.fdatasync", lambda _: goes_on.wait(60))
    r.finished(served("first", 0.0, 50, 0, final=True), 1.0, 3, hashes(1))
    until = time.monotonic() + 300
    while r._queue and time.monotonic() < until:
        time.sleep(0.01)
    assert not r._queue  # the thread has it and hangs
    for k in range(500):
        r.finished(served(f"s{k}", float(k), 50, k), k + 0.5, 3, hashes(1, 2))
    assert len(r._queue) == 50 and r.lost["recorder behind"] == 450
    goes_on.set()
    r.close()
    t = merge(journal_folder(record), record)
    assert t.n_steps == 51
    assert t.meta.dropped == {"recorder behind": 450}


def test_long_contexts_that_wait_are_bounded_too(tmp_path, monkeypatch):
    monkeypatch.setattr("saga_rl.runtime.recording.recorder.MAX_QUEUED_BLOCKS", 100)
    monkeypatch.setattr("saga_rl.runtime.recording.recorder.FLUSH_S", 3600.0)
    r = Recorder(tmp_path / "r", 0, "key", 16, wall=0.0)
    with r._lock:  # as if the thread was busy
        for k in range(10):
            r.finished(served(f"s{k}", float(k), 480, k), k + 0.5, 3, hashes(*range(30)))
    r.flush()
    assert r.counts["steps"] >= 3 and r.counts["steps"] + r.lost["recorder behind"] == 10
    r.finished(served("later", 20.0, 480, 20), 21.0, 3, hashes(*range(30)))
    r.flush()
    assert r._put_blocks == r._taken_blocks
    r.close()


def test_what_is_remembered_is_bounded_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("saga_rl.runtime.recording.recorder.MAX_BLOCKS", 64)
    r = Recorder(tmp_path / "r", 0, "key", 16, wall=0.0)
    play(r, 10, sessions="abcdef")
    assert 0 < sum(map(len, r._last.values())) == r._blocks <= 64
    r.close()
    t = merge(journal_folder(tmp_path / "r"), tmp_path / "r")
    assert (t.steps.prefix_tokens[t.steps.prefix_step >= 0] > 0).all()  # the merge finds the prefixes all the same


def test_a_failure_of_ours_is_counted_and_the_thread_lives(tmp_path, monkeypatch, caplog):
    r = Recorder(tmp_path / "r", 0, "key", 16, wall=0.0)
    with caplog.at_level(logging.ERROR, "vllm.saga_rl"):
        for _ in range(2):
            r.finished(served("s", 1.0, 50, 1), 2.0, 3, ["not bytes"])
            r.flush()
    r.finished(served("t", 3.0, 50, 2), 4.0, 3, hashes(1))
    r.close()
    assert r.counts["failed"] == 2 and len(caplog.records) == 1
    assert merge(journal_folder(tmp_path / "r"), tmp_path / "r").sessions.session_id == ["t"]


# ---------------------------------------------------------------------- clocks
def heading(**changes) -> str:
    return json.dumps({"journal": 1, "engine": 0, "block": 16, "about": {}, "clock": "", "wall": 0.0, **changes}) + "\n"


def step_line(session, start, end, chain, same=0, **changes) -> str:
    return json.dumps({"session": session, "n": 1, "agent": 0, "tenant": "t", "type": "a", "tool": None,
                       "next_tool": None, "final": False, "deadline": None, "queued": start, "scheduled": start,
                       "first": end, "end": end, "prompt": 16 * len(chain), "output": 1, "cached": 0, "preemptions": 0,
                       "same": same, "hashes": chain, **changes}) + "\n"


def journals(folder, *texts: str):
    folder.mkdir()
    for k, text in enumerate(texts):
        (folder / f"engine-{k}-1-0000.jsonl").write_text(text)
    return folder


def test_engines_of_one_clock_lie_right_though_the_wall_clock_jumped_between_their_starts(tmp_path):
    """Engine 1 started after the wall clock was set back by an hour: its times on the common clock are 20 to 21 s."""
    a = heading(clock="c", wall=10_000.0) + step_line("s", 10_001.0, 10_002.0, [1, 2])
    b = heading(clock="c", wall=6_400.0, engine=1) + step_line("s", 6_420.0, 6_421.0, [1, 2, 3])
    t = merge(journals(tmp_path / "x.journal", a, b), tmp_path / "x")
    assert t.steps.start_s.tolist() == [0.0, 19.0]
    assert t.steps.agent.tolist() == [0, 0]
    assert t.steps.prefix_tokens.tolist() == [0, 32]


def test_the_recorders_clock_is_known_by_the_boot_and_only_if_it_is_the_monotonic_one(tmp_path):
    real, other = (Recorder(tmp_path / n, 0, "k", 16, wall=wall) for n, wall in (
        ("a", time.time() - time.monotonic()), ("b", 5.0)))
    for r in (real, other):
        r.close()
    clocks = [json.loads(files(tmp_path / n)[0].read_text())["clock"] for n in "ab"]
    assert clocks[1] == ""
    if Path("/proc/sys/kernel/random/boot_id").exists():
        assert len(clocks[0]) == 16


@pytest.mark.parametrize(("early", "agents"), [(0.3, [0, 0]), (5.0, [0, 1])])
def test_small_skew_between_machines_makes_no_second_agent(tmp_path, early, agents):
    a = heading(clock="one") + step_line("s", 100.0, 110.0, [1, 2])
    b = heading(clock="two", engine=1) + step_line("s", 110.0 - early, 115.0, [1, 2, 3])
    t = merge(journals(tmp_path / "x.journal", a, b), tmp_path / "x")
    assert t.steps.agent.tolist() == agents
    if agents == [0, 0]:
        assert t.steps.start_s[1] == pytest.approx(10.0) and t.steps.end_s[1] == pytest.approx(15.0 + early)


def test_times_that_make_no_sense_are_left_out_and_counted(tmp_path):
    text = heading() + step_line("s", 10.0, 11.0, [1]) + step_line("u", 10.0, 9.0, [1]) + step_line(
        "v", 10.0, 11.0, [1], first=12.0)
    t = merge(journals(tmp_path / "x.journal", text), tmp_path / "x")
    assert (t.n_steps, t.meta.dropped) == (1, {"times out of order": 2})


@pytest.mark.parametrize(("text", "message"), [
    (step_line("s", 1.0, 2.0, [1]), "comes before the heading"), (heading() + '{"x":1}\n', "is not a step"),
    (heading() + step_line("s", 1.0, 2.0, [1], queued="soon"), "is not a step"), (heading() + "[]\n", "is not a step"),
])
def test_journals_that_are_none_are_named_by_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        merge(journals(tmp_path / "x.journal", text), tmp_path / "x")
