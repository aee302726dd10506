"""The replay client against a server whose latency and prefix cache are known."""

from __future__ import annotations

import asyncio
import math
import socket
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from replay_server import FakeServer
from trace_kit import DOUBT, doubtful
from typer.testing import CliRunner

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.aeg.validate import check
from saga_rl.errors import UserError
from saga_rl.replay.run import metrics, recorded_trace, run_replay
from saga_rl.runtime.server.http.session import context_hints, who_of

SLACK_S = 0.25
"""A busy machine may send late, never early."""


def chain_session(name: str, arrival: float = 0.0, steps: int = 4, shared: str | None = "system",
                  **kw: Any) -> SessionSpec:
    """A chain that appends 10 tokens a step to 5 answered ones, after 12 shared tokens."""
    rows, context = [], 0
    for i in range(steps):
        last = i == steps - 1
        prompt = context + 10 if i else 22
        rows.append(StepSpec(prompt, 5, parents=(i - 1,) if i else (), tool=None if last else "code",
                             tool_s=0.0 if last else 0.04,
                             prefix_step=i - 1 if i else -1, prefix_tokens=context if i else 12 if shared else 0,
                             shared_prefix=None if i else shared))
        context = prompt + 5
    return SessionSpec(name, arrival, rows, **kw)


def forked_session(name: str) -> SessionSpec:
    """Main agent spawns two sub-agents and waits for both."""
    return SessionSpec(name, 0.0, [
        StepSpec(20, 4, tool="agent", tool_s=0.04),
        StepSpec(12, 4, parents=(0,), agent=1),
        StepSpec(14, 4, parents=(0,), agent=2),
        StepSpec(40, 4, parents=(0, 1, 2), prefix_step=0, prefix_tokens=24),
    ])


def make(*sessions: SessionSpec) -> Trace:
    trace = build_trace(TraceMeta("test", "generated:test"), sessions)
    check(trace)
    return trace


def play(trace: Trace, server: FakeServer, **kw: Any):
    async def go():
        async with server.serve() as url:
            return await run_replay(trace, url, block_tokens=server.block, **kw)

    return asyncio.run(go())


def test_a_step_is_sent_after_its_parents_and_the_gap_and_not_much_later():
    trace = make(chain_session("a"), chain_session("b", arrival=0.1))
    _, m = play(trace, FakeServer(first_s=0.02))
    st = trace.steps
    for row in range(trace.n_steps):
        base = trace.session_offsets[st.session[row]]
        ready = m.start_s[st.session[row]]
        for p in st.parents[st.parent_offsets[row]:st.parent_offsets[row + 1]]:
            ready = max(ready, m.done_s[base + p] + st.tool_s[base + p] + st.think_s[base + p])
        assert ready - 1e-6 <= m.sent_s[row] <= ready + SLACK_S
        assert m.sent_s[row] < m.first_token_s[row] <= m.done_s[row]
    assert m.start_s[1] == pytest.approx(0.1)


def test_sub_agents_start_at_once_run_together_and_release_their_parent_at_once():
    trace = make(forked_session("a"))
    server = FakeServer(first_s=0.1)
    # The parent's own tool time is the sub-agents' run: only its own next step waits for it.
    trace = replace(trace, steps=replace(trace.steps, tool_s=np.array([0.05, 0, 0, 0])))
    _, m = play(trace, server)
    assert m.sent_s[1] - m.done_s[0] < 0.05 and m.sent_s[2] - m.done_s[0] < 0.05
    assert server.most_running == 2
    assert m.sent_s[3] >= max(m.done_s[1], m.done_s[2], m.done_s[0] + 0.05) - 1e-6


def test_a_prompt_continues_the_servers_own_answer_and_shares_what_the_trace_shares():
    trace = make(chain_session("a"), chain_session("b"), chain_session("c", shared=None))
    server = FakeServer()
    play(trace, server)
    by_session: dict[str, list[dict]] = {}
    for r in server.requests:
        by_session.setdefault(r["header"], []).append(r)
    for rows in by_session.values():
        for before, after in pairwise(rows):
            context = before["body"]["prompt"] + before["output"]
            assert after["body"]["prompt"][:len(context)] == context
            assert len(after["body"]["prompt"]) == len(context) + 10
    first = {k: rows[0]["body"]["prompt"] for k, rows in by_session.items()}
    assert first["a"][:12] == first["b"][:12] != first["c"][:12]
    assert first["a"][12:] != first["b"][12:]


def test_equal_block_hashes_are_equal_text():
    def session(name: str, hashes: list[int]) -> SessionSpec:
        return SessionSpec(name, 0.0, [StepSpec(20, 2, hashes=hashes)])

    trace = build_trace(TraceMeta("test", "generated:test", hash_block_tokens=8),
                        [session("a", [7, 8]), session("b", [7, 9])])
    server = FakeServer(token_ids=True)
    play(trace, server)
    a, b = (r["body"]["prompt"] for r in sorted(server.requests, key=lambda r: r["header"]))
    assert a[:8] == b[:8] and a[8:16] != b[8:16] and a[16:] != b[16:]


@pytest.mark.parametrize("capacity", [0, 7, 1_000_000])
def test_tokens_are_conserved_and_computed_again_only_when_the_cache_is_too_small(capacity: int):
    trace = make(*(chain_session(f"s{i}", arrival=0.03 * i) for i in range(3)), forked_session("f"))
    server = FakeServer(capacity=capacity)
    result, _ = play(trace, server)
    prompt = int(trace.steps.prompt_tokens.sum())
    cached = sum(r["cached"] for r in server.requests)
    assert result["prompt_tokens"] == prompt and result["cached_tokens"] == cached
    assert result["prefilled_tokens"] + cached == prompt
    assert result["recomputed_tokens"] == prompt - cached - result["first_time_tokens"]
    assert result["hit_share"] == pytest.approx(cached / prompt)
    if capacity == 1_000_000:
        assert result["recomputed_tokens"] == 0 and cached > 0
    if capacity == 0:
        assert cached == 0 and result["recomputed_tokens"] > 0
    assert result["sessions_done"] == 4 and result["llm_steps"] == trace.n_steps
    assert result["output_tokens"] == int(trace.steps.output_tokens.sum())


def test_completion_times_are_from_arrival_to_the_last_answer():
    trace = make(*(chain_session(f"s{i}", arrival=0.05 * i) for i in range(4)))
    result, m = play(trace, FakeServer())
    tct = np.array([result["tct_s"][f"s{i}"] for i in range(4)])
    last = [m.done_s[trace.session_offsets[i + 1] - 1] for i in range(4)]
    assert tct == pytest.approx(np.array(last) - 0.05 * np.arange(4))
    assert result["tct_mean_s"] == pytest.approx(tct.mean())
    assert result["tct_p95_s"] == pytest.approx(np.quantile(tct, .95))


def test_concurrency_holds_sessions_back_and_speed_shortens_gaps():
    trace = make(*(chain_session(f"s{i}") for i in range(5)))
    server = FakeServer(first_s=0.03)
    result, m = play(trace, server, concurrency=2)
    for t in m.start_s:
        assert ((m.start_s <= t) & (m.end_s > t)).sum() <= 2
    slow = make(chain_session("a"))
    slow = replace(slow, steps=replace(slow.steps, think_s=np.array([2.0, 2.0, 2.0, 0.0])))
    result, _ = play(slow, FakeServer(first_s=0.0), speed=20.0)
    assert 3 * 2.04 / 20 <= result["tct_mean_s"] < 3 * 2.04 / 4


def test_hints_name_session_tool_tenant_and_the_last_step_and_can_be_left_out():
    trace = make(chain_session("a", tenant="t1", agent_type="coder", deadline_s=100.0), forked_session("f"))
    server = FakeServer()
    play(trace, server)
    rows = [r for r in server.requests if r["header"] == "a"]
    hints = [r["body"]["vllm_xargs"] for r in rows]
    assert [h["saga_final"] for h in hints] == [0, 0, 0, 1]
    assert all(h["saga_tenant"] == "t1" and h["saga_agent_type"] == "coder" for h in hints)
    assert "saga_tool" not in hints[0] and all(h["saga_tool"] == "code" for h in hints[1:])
    assert all(h["saga_next_tool"] == "code" for h in hints[:-1]) and "saga_next_tool" not in hints[-1]
    left = [h["saga_deadline_s"] for h in hints]
    assert left == sorted(left, reverse=True) and 99 < left[0] <= 100
    forked = [r["body"]["vllm_xargs"] for r in server.requests if r["header"] == "f"]
    assert [h["saga_final"] for h in forked] == [0, 0, 0, 1] and {h["saga_agent"] for h in forked} == {0, 1, 2}
    assert all(r["body"]["session_id"] == r["header"] for r in server.requests)

    server = FakeServer(strict=True)
    result, _ = play(trace, server, hints=False)
    assert result["sessions_done"] == 2 and all(r["header"] is None for r in server.requests)


def test_vllm_routers_context_names_the_same_sessions_and_agents():
    """What is written reads as session, agent, caller and end in our own middleware."""
    trace, server = make(chain_session("a", agent_type="coder"), forked_session("f")), FakeServer()
    play(trace, server, agentic_context=True)
    assert all(r["header"] is None and "session_id" not in r["body"] for r in server.requests)
    read = [who_of(r["body"], {}) for r in server.requests]
    assert {(w.session, w.agent, w.caller) for w in read} == {
        ("a", "agent-0", None), ("f", "agent-0", None), ("f", "agent-1", "agent-0"), ("f", "agent-2", "agent-0")}
    assert all(w.may_be_main == (w.caller is None) for w in read)
    assert [w.final for w in read if w.session == "a"] == [False, False, False, True]
    assert context_hints(server.requests[0]["body"]["vllm_xargs"]).keys() == {"saga_agent_type"}
    server = FakeServer()
    play(trace, server, agentic_context=True, ends=False)
    assert not any(who_of(r["body"], {}).final for r in server.requests)


def test_prompts_are_the_same_every_time_and_another_salt_shares_nothing():
    trace = make(chain_session("a"))
    prompts = []
    for salt in ("", "", "other"):
        server = FakeServer()
        play(trace, server, salt=salt)
        prompts.append([r["body"]["prompt"] for r in server.requests])
    assert prompts[0] == prompts[1]
    assert prompts[0][0][:4] != prompts[2][0][:4]


def test_without_token_ids_filler_is_used_and_counted_and_unknown_figures_are_null():
    trace = make(chain_session("a"))
    result, _ = play(trace, FakeServer(token_ids=False, details=False))
    assert result["filled_outputs"] == trace.n_steps and result["sessions_done"] == 1
    assert result["cached_tokens"] is None and result["recomputed_tokens"] is None and result["hit_share"] is None


def test_a_failed_request_fails_its_session_only():
    trace = make(chain_session("a"), chain_session("b", arrival=0.02))
    server = FakeServer(fail=lambda n, body: 500 if body["session_id"] == "b" and len(body["prompt"]) > 30 else None)
    result, m = play(trace, server)
    assert result["sessions_done"] == 1 and result["sessions_failed"] == 1 and result["requests_failed"] == 1
    assert math.isnan(m.end_s[1]) and np.isnan(m.sent_s[trace.session_offsets[1] + 1:]).all()
    assert "made to fail" in result["errors"][0]
    kept = recorded_trace(trace, m, "url")
    assert kept.sessions.session_id == ["a"] and kept.meta.dropped == {"failed session": 1}


def test_the_recorded_trace_is_a_trace(tmp_path):
    trace = make(chain_session("a", arrival=0.05), forked_session("f"))
    _, m = play(trace, FakeServer(), speed=2.0)
    write_trace(recorded_trace(trace, m, "url", speed=2.0), tmp_path / "recorded.parquet")
    back = read_trace(tmp_path / "recorded.parquet")
    check(back)
    assert back.n_steps == trace.n_steps and (back.steps.cached_tokens >= 0).all()
    assert (back.steps.start_s <= back.steps.first_token_s).all()
    assert (back.steps.first_token_s <= back.steps.end_s).all()
    assert back.steps.tool_s == pytest.approx(trace.steps.tool_s / 2)


def test_figures_use_the_simulators_names():
    trace = make(chain_session("a"))
    result, _ = play(trace, FakeServer())
    shared = {"tct_mean_s", "tct_p50_s", "tct_p95_s", "sessions_done", "recomputed_tokens", "prefilled_tokens",
              "hit_share", "throughput_sessions_per_min", "slo_attainment", "llm_steps", "wall_s"}
    assert shared <= set(result) and result["measured"] is True


def test_an_empty_run_has_null_times_not_nan():
    trace = make(chain_session("a"))
    _, m = play(trace, FakeServer())
    m.end_s[:], m.done_s[:] = np.nan, np.nan
    result = metrics(trace, m)
    assert result["tct_mean_s"] is None and result["hit_share"] is None and result["sessions_done"] == 0


def test_bad_servers_and_bad_traces_are_user_errors():
    trace = make(chain_session("a"))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        free = s.getsockname()[1]
    with pytest.raises(UserError, match="no server answers"):
        asyncio.run(run_replay(trace, f"http://127.0.0.1:{free}"))
    with pytest.raises(UserError, match="not an http address"):
        asyncio.run(run_replay(trace, "localhost:8000"))
    with pytest.raises(UserError, match="model's length of 40"):
        play(trace, FakeServer(max_model_len=40))
    with pytest.raises(UserError, match="--no-hints"):
        play(trace, FakeServer(strict=True))
    with pytest.raises(UserError, match="choose one of: fake"):
        play(trace, FakeServer(), model="other")


def test_the_summary_names_the_flag_by_which_a_server_tells_what_it_found():
    from io import StringIO

    from rich.console import Console

    from saga_rl.replay.run import summary

    keys = ("sessions_done", "sessions_failed", "tct_mean_s", "tct_p50_s", "tct_p95_s", "ttft_mean_s", "ttft_p95_s",
            "prompt_tokens", "first_time_tokens", "throughput_sessions_per_min")
    for found in (None, 7):
        out = StringIO()
        Console(file=out, width=120).print(summary({**dict.fromkeys(keys, 1), "tct_p95_s": None, "cached_tokens": found,
                                                    "recomputed_tokens": found}))
        assert out.getvalue().count("--enable-prompt-tokens-details") == (2 if found is None else 0)
        assert "server" not in next(line for line in out.getvalue().splitlines() if "P95" in line)


def test_the_command_writes_json_and_a_trace_and_refuses_with_status_2(tmp_path, monkeypatch):
    import json
    import threading

    import typer

    from saga_rl.cli.replay import register
    from saga_rl.errors import run_user_command

    app = typer.Typer()
    register(app)
    write_trace(doubtful(make(chain_session("a"), chain_session("b"))), tmp_path / "t.parquet")
    server, started, stop = FakeServer(), threading.Event(), threading.Event()
    where: list[str] = []

    def thread() -> None:
        async def go() -> None:
            async with server.serve() as url:
                where.append(url)
                started.set()
                while not stop.is_set():
                    await asyncio.sleep(0.02)

        asyncio.run(go())

    worker = threading.Thread(target=thread)
    worker.start()
    started.wait(20)
    try:
        out = CliRunner().invoke(app, [
            str(tmp_path / "t.parquet"), "--url", where[0], "--block-tokens", "4", "--max-sessions", "1",
            "--json", str(tmp_path / "o.json"), "--record-trace", str(tmp_path / "r.parquet")])
    finally:
        stop.set()
        worker.join(20)
    assert out.exit_code == 0, out.output
    result = json.loads((tmp_path / "o.json").read_text())
    assert DOUBT in out.output and result["trace_quality"]["tools"]["missing"] == 0.25
    assert result["sessions_done"] == 1 and len(result["provenance"]["trace_sha256"]) == 64
    assert read_trace(tmp_path / "r.parquet").n_sessions == 1
    monkeypatch.setattr("sys.argv", ["replay", str(tmp_path / "none.parquet"), "--url", "http://127.0.0.1:9"])
    with pytest.raises(SystemExit) as e:
        run_user_command(app)
    assert e.value.code == 2


@pytest.mark.parametrize(("says", "given", "wanted"), [(True, None, 4), (False, None, 16), (True, 8, 8)])
def test_the_block_size_is_the_servers_unless_one_is_given(says: bool, given: int | None, wanted: int) -> None:
    async def go():
        async with FakeServer(block=4, says_block=says).serve() as url:
            return await run_replay(make(chain_session("a", steps=1)), url, block_tokens=given)

    result, _ = asyncio.run(go())
    assert result["block_tokens"] == wanted
