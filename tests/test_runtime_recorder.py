"""What was served becomes a Trace: journals, their merge, and what must not be in them."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from runtime_kit import BLOCK, Clock, drain, make_request, make_scheduler, step, vllm

from saga_rl.aeg.io import read_trace
from saga_rl.errors import UserError
from saga_rl.runtime.hints import Hints
from saga_rl.runtime.recorder import Recorder, journal_folder
from saga_rl.runtime.recording import merge
from saga_rl.runtime.tracker import Served

assert vllm is not None
from vllm.v1.request import RequestStatus  # noqa: E402

from saga_rl.runtime.scheduler import SagaSyncScheduler  # noqa: E402


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
    monkeypatch.setattr("saga_rl.runtime.recorder.MAX_REMEMBERED", 2)
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
    monkeypatch.setattr("saga_rl.runtime.recorder.FLUSH_S", 3600.0)
    record = tmp_path / "x.parquet"
    recorder = Recorder(record, 0, "k", BLOCK, wall=0.0)
    recorder.finished(served("A", 1.0, 64, 1), 2.0, 3, hashes(1, 2))
    recorder.finished(served("A", 3.0, 96, 2, final=True), 4.0, 3, hashes(1, 2, 3))
    (journal,) = journal_folder(record).iterdir()
    until = time.monotonic() + 30
    while len(journal.read_text().splitlines()) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(journal.read_text().splitlines()) == 3  # a heading and both steps, though no second has passed
    recorder.close()
