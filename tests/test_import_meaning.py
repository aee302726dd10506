"""What each newer format means, field by field, on the files of importers_kit.py; tokenizers; public examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from importers_kit import ANSWER, SAMPLES, conversation, iso

from saga_rl.aeg.importers import import_trace, imported
from saga_rl.aeg.quality import doubts, quality, sentence
from saga_rl.aeg.stats import infinite_cache_hits
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError

BY_NAME = {s.name: s for s in SAMPLES}


def made(name: str, folder: Path, **options: Any) -> Trace:
    return import_trace(name, BY_NAME[name].write(folder), **options)


def gaps(trace: Trace) -> list[tuple[str | None, float, float]]:
    """(tool, its seconds, think seconds) after each step."""
    t = trace.steps
    return [(trace.tools[c] if c >= 0 else None, round(a, 4), round(b, 4))
            for c, a, b in zip(t.tool, t.tool_s.tolist(), t.think_s.tolist(), strict=True)]


def parents(trace: Trace) -> list[list[int]]:
    t = trace.steps
    return [t.parents[a:b].tolist() for a, b in zip(t.parent_offsets, t.parent_offsets[1:], strict=False)]


def durations(trace: Trace) -> list[float]:
    return np.round(trace.steps.end_s - trace.steps.start_s, 3).tolist()


def test_copilot(tmp_path: Path) -> None:
    trace = made("copilot-2026", tmp_path)
    assert gaps(trace)[:3] == [("run_in_terminal", 3.0995, 1.0), (None, 0.0, 44.0995), (None, 0.0, 0.0)]
    assert trace.steps.cached_tokens[:3].tolist() == [50, 100, 135] and durations(trace)[:2] == [0.901, 0.901]


def test_codex(tmp_path: Path) -> None:
    trace = made("codex", tmp_path, tenant="me")
    assert gaps(trace) == [("exec_command", 5.0, 0.0), (None, 0.0, 0.0)] and trace.tenants == ["me"]
    assert durations(trace) == [3.0, 2.0] and trace.steps.cached_tokens.tolist() == [60, 112]
    assert trace.sessions.session_id == ["thread-1"]


def test_codex_sub_agent(tmp_path: Path) -> None:
    """A rollout that names the thread that spawned it lies in that one's session; its caller waits for it."""
    rows = BY_NAME["codex"].records()
    (tmp_path / "rollout-1.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"subagent": {"thread_spawn": {"parent_thread_id": "thread-1", "depth": 1}}}
    rows[0]["payload"] |= {"id": "thread-2", "source": source}
    for k, row in enumerate(rows):
        row["timestamp"] = iso(4.1 + k / 10)
    (tmp_path / "rollout-2.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trace = import_trace(None, tmp_path)
    assert trace.n_sessions == 1 and trace.steps.agent.tolist() == [0, 1, 1, 0]
    assert parents(trace) == [[], [0], [1], [0, 2]]


@pytest.mark.parametrize("by", ["id", "path"])
def test_codex_sub_agent_that_its_caller_waits_for(tmp_path: Path, by: str) -> None:
    """`spawn_agent` says whom it started, by id or by path, and `wait_agent` who has ended: the call after it waits."""
    def line(second: float, kind: str, **payload: Any) -> dict[str, Any]:
        return {"timestamp": iso(second), "type": kind, "payload": payload}

    def calls(thread: str, begin: float, *tools: tuple[str, Any, float]) -> list[dict[str, Any]]:
        """A call of 1 s with each tool and its result and seconds, then one without; times in order."""
        rows, at = [line(begin, "session_meta", id=thread), line(begin, "turn_context", model="m")], begin
        for k, (name, output, seconds) in enumerate((*tools, ("", None, 0.0))):
            rows.append(line(at + 1, "response_item", type="function_call", name=name, call_id=f"c{k}") if name else
                        line(at + 1, "response_item", type="message", role="assistant", content=[]))
            at += 1 + seconds
            if name:
                rows.append(line(at, "response_item", type="function_call_output", call_id=f"c{k}", output=output))
            usage = {"input_tokens": 100 * (k + 1), "output_tokens": 10}
            info = {"total_token_usage": {"total_tokens": 999 * (k + 1)}, "last_token_usage": usage}
            rows.append(line(at, "event_msg", type="token_count", info=info))
        rows.insert(2, line(begin, "response_item", type="message", role="user", content=[]))
        return rows

    started = {"agent_id": "sub"} if by == "id" else {"task_name": "/root/look"}
    main = calls("top", 0, ("spawn_agent", json.dumps(started), .5),
                 ("wait_agent", json.dumps({"status": {"sub": {"completed": "x"}}, "timed_out": False}), 8.0))
    sub = calls("sub", 1.25, ("exec_command", "ok", 5.0))
    spawn = {"parent_thread_id": "top", "agent_path": "/root/look"}
    sub[0]["payload"]["source"] = {"subagent": {"thread_spawn": spawn}}
    copied = [line(1.25, "response_item", type="function_call", name="spawn_agent", call_id="c0"),
              line(1.25, "event_msg", type="turn_aborted")]  # of its caller's last turn
    for name, rows in (("rollout-1", main), ("rollout-2", [*sub[:2], *copied, *sub[2:]])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trace = import_trace(None, tmp_path)
    assert trace.steps.agent.tolist() == [0, 1, 0, 1, 0]
    assert parents(trace) == [[], [0], [0], [1], [2, 3]]
    assert gaps(trace) == [("spawn_agent", .5, 0.0), ("exec_command", 5.0, 0.0), ("wait_agent", 2.25, 0.0),
                           (None, 0.0, 0.0), (None, 0.0, 0.0)], "the sub-agent explains the rest of the wait"


def test_tracelab(tmp_path: Path) -> None:
    trace = made("tracelab", tmp_path)
    assert gaps(trace)[0] == ("Bash", 4.0, 1.0) and durations(trace) == [3.0, 3.0]
    assert trace.steps.cached_tokens.tolist() == [0, 100] and trace.steps.prefix_tokens.tolist() == [0, 110]


def test_burstgpt_and_azure(tmp_path: Path) -> None:
    trace = made("burstgpt", tmp_path)
    assert trace.sessions.session_id == ["session-1", "request-000001"] and gaps(trace)[0] == (None, 0.0, 8.0)
    assert made("azure", tmp_path).sessions.arrival_s.tolist() == pytest.approx([0.0, 1.052], abs=1e-3)


def test_dynamo(tmp_path: Path) -> None:
    trace = made("dynamo", tmp_path)
    assert trace.steps.agent.tolist() == [0, 1, 0] and parents(trace) == [[], [0], [0, 1]]
    assert gaps(trace)[0] == ("search", 2.0, 1.0), "the sub-agent explains the rest of the tool's 3 s"
    assert trace.meta.hash_block_tokens == 64 and trace.steps.hashes[0] == -(1 << 63)
    assert infinite_cache_hits(trace).tolist() == [0, 0, 128] and trace.steps.cached_tokens.tolist() == [64, 64, 64]
    enveloped = [{"timestamp": 1, "event": r} for r in BY_NAME["dynamo"].records()]
    again = import_trace(None, BY_NAME["dynamo"].write(tmp_path, enveloped))
    assert parents(again) == parents(trace)


def test_otel_agents_and_tools(tmp_path: Path) -> None:
    trace = made("otel-genai", tmp_path)
    assert trace.sessions.session_id == ["conv"] and parents(trace) == [[], [0], [0, 1]]
    assert trace.steps.agent.tolist() == [0, 1, 0] and trace.tools == ["delegate"] and trace.agent_types == ["demo"]


def test_litellm(tmp_path: Path) -> None:
    trace = made("litellm", tmp_path)
    assert trace.sessions.session_id == ["s", "e"] and trace.tenants == ["team"]
    assert trace.steps.agent.tolist() == [0, 0, 1, 0] and parents(trace) == [[], [0], [1], []]
    assert (trace.steps.first_token_s - trace.steps.start_s).tolist() == [0.5] * 4


def test_langfuse(tmp_path: Path) -> None:
    trace = made("langfuse", tmp_path)
    assert gaps(trace)[0] == ("search", 4.0, 1.0) and trace.steps.cached_tokens.tolist() == [20, 20]
    api = tmp_path / "api.json"
    api.write_text(json.dumps({"data": BY_NAME["langfuse"].records(), "meta": {"page": 1}}))
    assert gaps(import_trace(None, api)) == gaps(trace)


def test_gemini_cli(tmp_path: Path) -> None:
    trace = made("gemini-cli", tmp_path)
    assert gaps(trace)[0] == ("read_file", 2.0, 0.0) and durations(trace) == [4.0, 3.0]
    document = BY_NAME["gemini-cli"].records()[0]
    messages = document.pop("messages")
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\n".join(map(json.dumps, [document, *messages[:2], *messages[1:]])))
    assert gaps(import_trace(None, lines)) == gaps(trace), "lines, of which one is written again"


def test_opencode(tmp_path: Path) -> None:
    trace = made("opencode", tmp_path)
    assert gaps(trace)[0] == ("bash", 3.0, 1.0) and trace.steps.cached_tokens.tolist() == [50, 50]
    export = BY_NAME["opencode"].records()[0]
    storage = tmp_path / "storage"
    for name, record in [("session/p/ses", export["info"]), *(("message/ses/" + m["info"]["id"], m["info"])
                         for m in export["messages"]), ("part/m1/p", export["messages"][1]["parts"][0])]:
        path = storage / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
    assert gaps(import_trace(None, storage)) == gaps(trace), "the storage folder"


def test_opencode_sub_agent(tmp_path: Path) -> None:
    export = BY_NAME["opencode"].records()[0]
    export["messages"][1]["parts"][0]["state"]["metadata"] = {"sessionId": "child"}
    child = json.loads(json.dumps(export).replace('"ses"', '"child"').replace('"m1"', '"m3"').replace('"m2"', '"m4"'))
    child["info"] |= {"id": "child", "parentID": "ses"}
    child["messages"] = [child["messages"][2]]
    child["messages"][0]["info"]["time"] = {k: v - 3500 for k, v in child["messages"][0]["info"]["time"].items()}
    for name, document in (("a", export), ("b", child)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    trace = import_trace(None, tmp_path)
    assert trace.n_sessions == 1 and trace.steps.agent.tolist() == [0, 1, 0] and parents(trace) == [[], [0], [0, 1]]


def test_chats_share_what_they_have_in_common(tmp_path: Path) -> None:
    trace = made("chats", tmp_path)
    hits, t = infinite_cache_hits(trace), trace.steps
    assert hits[0] == 0 and (hits[1:] > 0).all(), "the second conversation begins like the first"
    context = t.prompt_tokens[0] + t.output_tokens[0]
    assert t.prefix_tokens[1] == context // 16 * 16, "the answer is in the next prompt"
    assert "lengths estimated" in sentence(trace) and "lengths 100 %" in doubts(trace)
    share_gpt = [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": ANSWER}]}]
    (tmp_path / "share.json").write_text(json.dumps(share_gpt))
    done = imported(None, tmp_path / "share.json")
    assert done.format.name == "chats" and done.trace.n_steps == 1


def test_tokenizer_of_the_users_choice(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    path = BY_NAME["chats"].write(tmp_path)
    trace = import_trace("chats", path, tokenizer=str(tmp_path))
    words = model.encode("assistant\n" + ANSWER).ids
    assert trace.steps.output_tokens[0] == len(words) and "lengths recorded" in sentence(trace)
    with pytest.raises(UserError, match=r"--tokenizer.*no tokenizer.json"):
        import_trace("chats", path, tokenizer=str(tmp_path / "nowhere"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer that can be read"):
        import_trace("chats", path, tokenizer=str(tmp_path))


def test_lmcache(tmp_path: Path) -> None:
    rows = BY_NAME["lmcache"].records()
    later = rows[0]["timestamp"] + 4_000_000
    rows.insert(0, rows[0] | {"timestamp": later, "input": "Hi! How can I help?", "output": ""})
    trace = import_trace(None, BY_NAME["lmcache"].write(tmp_path, rows))
    assert trace.steps.agent.tolist() == [0, 1, 0] and trace.steps.output_tokens[1] == 1
    assert trace.steps.start_s.tolist() == [0.0, 4.0, 9.0]
    assert trace.meta.notes["mended"]["outputs_without_text_taken_as_1_token"] == 1
    found = quality(trace)
    assert found is not None and found["lengths"]["missing"] == pytest.approx(1 / 3)
    bodies = [{"session_id": "s", "model": "m", "input": conversation(2)[:2 * k], "session_timestamp": 5.0 * k,
               "output_length": 7} for k in (1, 2)]
    trace = import_trace(None, BY_NAME["lmcache"].write(tmp_path, bodies))
    assert trace.steps.output_tokens.tolist() == [7, 7] and np.diff(trace.steps.start_s).tolist() == [5.0]
    assert trace.meta.notes["arrivals"].startswith("Poisson"), "sessions' own clocks do not say when they came"


def test_swe_agent(tmp_path: Path) -> None:
    trace = made("swe-agent", tmp_path)
    assert gaps(trace) == [("ls", 0.5, 0.0), ("submit", 0.0, 0.0)]
    said = conversation(2)
    for k, message in enumerate(m for m in said if m["role"] == "assistant"):
        details = {"cached_tokens": 3}
        usage = {"prompt_tokens": 500 * (k + 1), "completion_tokens": 9, "prompt_tokens_details": details}
        message["extra"] = {"response": {"usage": usage}}
    mini = {"messages": said, "info": {"model_stats": {"api_calls": 2}}, "trajectory_format": "mini-swe-agent-1"}
    (tmp_path / "one.traj").write_text(json.dumps(mini))
    trace = import_trace(None, tmp_path / "one.traj")
    assert trace.steps.prompt_tokens.tolist() == [500, 1000] and "lengths recorded" in sentence(trace)


def test_openhands(tmp_path: Path) -> None:
    trace = made("openhands", tmp_path)
    assert gaps(trace)[0] == ("execute_bash", 5.0, 1.0) and durations(trace) == [2.0, 2.0]


@pytest.mark.parametrize(("where", "fmt", "sessions", "calls"), [
    ("azure_llm2023", "azure", 28185, 28185), ("otel_genai", "otel-genai", 11, 73),
    ("lmcache_agent", "lmcache", 44, 873),
    ("claude_code_katas/transcripts", "claude-code", 4, 286), ("tau_bench_airline", "jsonl", 200, 2454),
    ("mooncake", "mooncake", 9393, 16024),
])
def test_public_examples_by_content(shared_data: Path, where: str, fmt: str, sessions: int, calls: int) -> None:
    done = imported(None, shared_data / where)
    assert done.format.name == fmt and done.left.count == 0
    assert (done.trace.n_sessions, done.trace.n_steps) == (sessions, calls)
    assert quality(done.trace) is not None


def test_public_lmcache_prompts_grow(shared_data: Path) -> None:
    trace = import_trace(None, shared_data / "lmcache_agent" / "mini*.gz")
    t = trace.steps
    assert (t.agent == 0).all(), "one agent a session"
    assert infinite_cache_hits(trace).sum() / t.prompt_tokens.sum() > 0.8
