"""A small made-up file of every import format, and what the battery in test_import_battery.py expects of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
T0 = 1767225600  # 2026-01-01T00:00:00Z


def iso(second: float) -> str:
    """`second` s after T0."""
    return f"2026-01-01T00:{int(second) // 60:02d}:{second % 60:06.3f}Z"


@dataclass
class Sample:
    """One format: records, how they are laid out, and what must come out of them.

    layout: `lines`, `array` (one JSON array), `document` (the first record, indented) or `csv`.
    """

    name: str
    records: Callable[[], Rows]
    sessions: int
    calls: int
    prompt: int
    output: int
    assumed: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    layout: str = "lines"
    subagents: int = 0
    required: str = ""
    """A field of the last record without which it is left out."""

    def write(self, folder: Path, records: Rows | None = None) -> Path:
        """The file, in `folder`."""
        rows = self.records() if records is None else records
        if self.layout == "csv":
            path = folder / f"{self.name}.csv"
            lines = [",".join(rows[0]), *(",".join(str(v) for v in r.values()) for r in rows)]
            path.write_text("\n".join(lines) + "\n")
            return path
        path = folder / f"{self.name}.json{'l' if self.layout == 'lines' else ''}"
        if self.layout == "lines":
            path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        else:
            path.write_text(json.dumps(rows[0] if self.layout == "document" else rows, indent=2))
        return path


def weka() -> Rows:
    def request(t: float, tokens: int, out: int, ids: list[int], stop: str, input_types: list[str]) -> dict:
        return {"t": t, "type": "n", "model": "m", "in": tokens, "out": out, "hash_ids": ids, "stop": stop,
                "input_types": input_types, "output_types": [], "api_time": 2.0, "think_time": 0.0}

    inner = [request(0.0, 130, 5, [90, 91], "tool_use", ["text"]),
             request(4.0, 200, 6, [90, 91, 92], "end_turn", ["tool_result"])]
    requests: list[dict] = [
        request(0.0, 128, 10, [1, 2], "tool_use", ["text"]),
        {"t": 9.0, "type": "subagent", "agent_id": "a", "duration_ms": 6000, "status": "completed", "requests": inner},
        request(10.0, 200, 10, [1, 2, 3], "tool_use", ["tool_result"]),
        request(15.0, 300, 0, [1, 2, 7, 8], "end_turn", ["tool_result"]),
        request(60.0, 330, 9, [1, 2, 7, 8, 9], "end_turn", ["text"]),
    ]
    return [{"id": "one", "block_size": 64, "requests": requests},
            {"id": "none", "block_size": 64, "requests": []},
            {"id": "two", "block_size": 64, "requests": [requests[0]]}]


def mooncake() -> Rows:
    return [{"timestamp": 0, "input_length": 1100, "output_length": 50, "hash_ids": [0, 1, 2]},
            {"timestamp": 1000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 9, 10]},
            {"timestamp": 9000, "input_length": 2000, "output_length": 5, "hash_ids": [0, 1, 5, 6]},
            {"timestamp": 9500, "input_length": 1600, "output_length": 5, "hash_ids": [0, 1, 8, 7]}]


def bailian() -> Rows:
    def row(chat: int, parent: int, at: float, tokens: int, turn: int, ids: list[int]) -> dict:
        return {"chat_id": chat, "parent_chat_id": parent, "timestamp": at, "input_length": tokens, "output_length": 9,
                "type": "text", "turn": turn, "hash_ids": ids}

    return [row(1, -1, 0.5, 40, 1, [1, 2, 3]), row(7, -1, 2.0, 33, 1, [1, 2, 9]),
            row(2, 1, 9.25, 70, 2, [1, 2, 3, 4, 5]), row(3, 1, 12.0, 70, 2, [1, 2, 3, 4, 6])]


def jsonl() -> Rows:
    def call(agent: str, step: int, at: float, tokens: int, tools: Rows, gap: float | None = None, **more: Any) -> dict:
        return {"session": "s", "agent": agent, "step": step, "in": tokens, "out": 10, "cached": 40, "tools": tools,
                "t_req": at, "t_end": at + 1.0, "gap": gap, "tenant": "acme", "model": "m", **more}

    spawn = {"name": "Agent", "t0": 103.0, "dur": 7.0, "spawned": "sub"}
    return [call("main", 0, 100.0, 100, [{"name": "Bash", "t0": 101.0, "dur": 0.5}, {"name": "Read", "dur": 0.1}], 1.0),
            call("main", 1, 102.0, 150, [spawn], 7.5, colour="red"),
            call("sub", 0, 103.0, 90, [{"name": "Grep", "dur": 2.0}], 2.0),
            call("sub", 1, 106.0, 120, []), call("main", 2, 110.5, 50, [], 30.0), call("main", 3, 141.5, 80, []),
            call("main", 0, 90.0, 100, []) | {"session": "other", "cached": 0}]


def katas() -> Rows:
    known = {"cfg": "c", "trigger": "tool", "stop": "end_turn", "task": "mars", "tenant": "tdd"}
    rows = [r | known for r in jsonl()]
    return [r | {"agent_type": "red"} if r["agent"] == "sub" else r for r in rows]


def claude_code() -> Rows:
    def line(kind: str, second: int, message: dict, **more: Any) -> dict:
        return {"type": kind, "sessionId": "abc", "timestamp": iso(second), "message": message,
                "isSidechain": False, "uuid": f"u{second}", "parentUuid": f"u{second - 1}", **more}

    def usage(fresh: int, read: int, out: int) -> dict:
        return {"input_tokens": fresh, "cache_read_input_tokens": read, "cache_creation_input_tokens": 5,
                "output_tokens": out}

    use = {"type": "tool_use", "id": "t1", "name": "Bash"}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "ok"}
    return [{"type": "summary", "summary": "not a call"},
            line("user", 0, {"role": "user", "content": "do it"}),
            line("assistant", 2, {"id": "m1", "model": "x", "content": [{"type": "text"}], "usage": usage(95, 0, 1)}),
            line("assistant", 3, {"id": "m1", "model": "x", "content": [use], "usage": usage(95, 0, 20)}),
            line("user", 7, {"role": "user", "content": [result]}),
            line("assistant", 9, {"id": "m2", "model": "x", "content": [], "usage": usage(25, 100, 8)})]


def copilot() -> Rows:
    def call(name: str, at: float, prompt: int, output: int) -> dict:
        return {"message_id": name, "timestamp": iso(at), "duration_ms": 900.5, "model": "Model A", "result": "success",
                "tokens": {"total": prompt + output, "prompt": prompt, "completion": output, "cached": prompt // 2}}

    tools = {"timestamp": iso(1), "duration_ms": 3000, "request_id": "m1",
             "function_calls": [{"name": "run_in_terminal", "status": "success", "duration_ms": 3000},
                                {"name": "read_file", "status": "success", "duration_ms": 20}]}
    turns = [{"turn_id": "t", "llm_calls": [call("m1", 0, 100, 10), call("m2", 5, 200, 20)], "tool_batches": [tools]},
             {"turn_id": "u", "llm_calls": [call("m3", 40, 260, 0), call("m4", 50, 270, 7)], "tool_batches": []}]
    return [{"session_id": "s", "date": "2026-06-01", "turns": turns},
            {"session_id": "r", "date": "2026-06-01", "turns": turns[:1]}]


def codex() -> Rows:
    def usage(prompt: int, cached: int, output: int) -> dict:
        return {"input_tokens": prompt, "cached_input_tokens": cached, "output_tokens": output,
                "reasoning_output_tokens": 0, "total_tokens": prompt + output}

    def line(second: float, kind: str, **payload: Any) -> dict:
        return {"timestamp": iso(second), "type": kind, "payload": payload}

    def counted(second: float, total: int, last: dict | None) -> dict:
        info = None if last is None else {"total_token_usage": usage(total, 0, 1), "last_token_usage": last}
        return line(second, "event_msg", type="token_count", info=info)

    return [line(0, "session_meta", id="thread-1", cli_version="0.150"), line(0, "turn_context", model="m"),
            line(1, "response_item", type="message", role="user", content=[]),
            counted(1.1, 0, None),
            line(3, "response_item", type="reasoning", summary=[]),
            line(4, "response_item", type="function_call", name="exec_command", call_id="c1", arguments="{}"),
            counted(4.1, 100, usage(100, 60, 12)), counted(4.2, 100, usage(100, 60, 12)),
            line(9, "response_item", type="function_call_output", call_id="c1", output="ok"),
            line(11, "response_item", type="message", role="assistant", content=[]),
            counted(11.1, 300, usage(200, 112, 30))]


def tracelab() -> Rows:
    def row(k: int, at: float, total: int, prefix: int, kind: str, tools: list) -> dict:
        events = [{"event_type": kind, "timestamp": iso(at)}, {"event_type": "text", "timestamp": iso(at + 2)},
                  {"event_type": "tool_use", "timestamp": iso(at + 3)}]
        return {"session_id": "claude:1", "provider": "claude", "round_index": k, "model": "m", "prefix_tokens": prefix,
                "input_tokens_total": total, "newly_append_tokens": total - prefix, "output_tokens": 10 + k,
                "timing_events": events, "tools": tools}

    return [row(0, 0, 100, 0, "user_message", [{"name": "Bash", "wall_latency_ms": 4000}]),
            row(1, 8, 130, 100, "tool_result", [])]


def burstgpt() -> Rows:
    def row(at: float, session: Any, prompt: int, output: int) -> dict:
        return {"Timestamp": at, "Session ID": session, "Elapsed time": 2, "Model": "ChatGPT", "Request tokens": prompt,
                "Response tokens": output, "Total tokens": prompt + output, "Log Type": "Conversation log"}

    return [row(0.5, 1, 40, 9), row(3.0, "", 30, 8), row(10.5, 1, 60, 7), row(11, 2, 50, 0)]


def azure() -> Rows:
    return [{"TIMESTAMP": "2026-01-01 00:00:01.9799600", "ContextTokens": 4808, "GeneratedTokens": 10},
            {"TIMESTAMP": "2026-01-01 00:00:03.0319600", "ContextTokens": 3180, "GeneratedTokens": 8}]


def dynamo() -> Rows:
    def ended(name: str, session: str, sent: float, end: float, length: int, ids: list[int], **context: Any) -> dict:
        replay = {"trace_block_size": 64, "input_length": length, "input_sequence_hashes": ids}
        return {"schema": "dynamo.request.trace.v1", "event_type": "request_end",
                "event_time_unix_ms": int((T0 + end) * 1000), "agent_context": {"session_id": session, **context},
                "request": {"request_id": name, "model": "m", "output_tokens": 5, "cached_tokens": 64, "ttft_ms": 100.0,
                            "request_received_ms": int((T0 + sent) * 1000), "replay": replay}}

    tool = {"schema": "dynamo.request.trace.v1", "event_type": "tool_end", "event_time_unix_ms": (T0 + 6) * 1000,
            "agent_context": {"session_id": "a"},
            "tool": {"tool_call_id": "t", "tool_class": "search", "duration_ms": 3000}}
    return [ended("r1", "a", 0, 2, 128, [1 << 63, 12]), tool,
            ended("r2", "b", 3, 5, 100, [21, 22], parent_session_id="a"),
            ended("r3", "a", 7, 9, 192, [1 << 63, 12, 13])]


def otel_genai() -> Rows:
    def attributes(**values: Any) -> list[dict]:
        return [{"key": k.replace("__", "."),
                 "value": {"intValue": str(v)} if isinstance(v, int) else {"stringValue": v}}
                for k, v in values.items()]

    def span(name: str, parent: str, start: float, end: float, **values: Any) -> dict:
        return {"traceId": "t", "spanId": name, "parentSpanId": parent, "name": name,
                "startTimeUnixNano": str(int((T0 + start) * 1e9)), "endTimeUnixNano": str(int((T0 + end) * 1e9)),
                "attributes": attributes(**values)}

    def chat(name: str, parent: str, start: float, end: float, prompt: int) -> dict:
        return span(name, parent, start, end, gen_ai__operation__name="chat", gen_ai__usage__input_tokens=prompt,
                    gen_ai__usage__output_tokens=9, gen_ai__conversation__id="conv")

    spans = [span("root", "", 0, 20, gen_ai__operation__name="invoke_agent"), chat("c1", "root", 0, 2, 100),
             span("x1", "root", 2, 9, gen_ai__operation__name="execute_tool", gen_ai__tool__name="delegate"),
             span("sub", "x1", 2.1, 9, gen_ai__operation__name="invoke_agent"), chat("c2", "sub", 2.2, 5, 50),
             chat("c3", "root", 10, 12, 130)]
    return [{"resourceSpans": [{"resource": {"attributes": attributes(service__name="demo")},
                                "scopeSpans": [{"scope": {}, "spans": spans}]}]}]


def litellm() -> Rows:
    def row(name: str, start: float, end: float, prompt: int, **more: Any) -> dict:
        return {"request_id": name, "call_type": "acompletion", "startTime": iso(start), "endTime": iso(end),
                "completionStartTime": iso(start + 0.5), "prompt_tokens": prompt, "completion_tokens": 8, "model": "m",
                "session_id": "s", "team_id": "team", "metadata": {}, "cache_hit": "False", **more}

    return [row("a", 0, 2, 100), row("b", 5, 8, 120), row("c", 6, 9, 60), row("d", 20, 22, 140, cache_hit="True"),
            row("e", 30, 31, 50, session_id=None)]


def langfuse() -> Rows:
    def one(name: str, kind: str, start: float, end: float, parent: str | None = None, **more: Any) -> dict:
        return {"id": name, "traceId": "t", "type": kind, "name": name, "startTime": iso(start), "endTime": iso(end),
                "parentObservationId": parent, **more}

    def call(name: str, start: float, end: float, prompt: int) -> dict:
        return one(name, "GENERATION", start, end, "root", model="m",
                   usageDetails={"input": prompt, "input_cached_tokens": 20, "output": 9, "total": prompt + 29})

    return [one("root", "AGENT", 0, 20), call("c1", 0, 2, 80), one("search", "TOOL", 2, 6, "root"),
            call("c2", 7, 9, 110)]


def gemini_cli() -> Rows:
    def answer(name: str, at: float, prompt: int, tools: Rows) -> dict:
        tokens = {"input": prompt, "output": 10, "cached": 30, "thoughts": 5, "tool": 0, "total": prompt + 15}
        return {"id": name, "timestamp": iso(at), "type": "gemini", "content": "", "tokens": tokens, "model": "m",
                "toolCalls": tools}

    tool = {"id": "x", "name": "read_file", "args": {}, "status": "success", "timestamp": iso(6)}
    messages = [{"id": "1", "timestamp": iso(0), "type": "user", "content": "go"}, answer("2", 4, 100, [tool]),
                answer("3", 9, 150, [])]
    return [{"sessionId": "g", "projectHash": "h", "startTime": iso(0), "lastUpdated": iso(9), "messages": messages}]


def opencode() -> Rows:
    def message(name: str, start: float, end: float, fresh: int, parts: Rows) -> dict:
        tokens = {"input": fresh, "output": 10, "reasoning": 2, "cache": {"read": 50, "write": 10}}
        return {"info": {"id": name, "sessionID": "ses", "role": "assistant", "modelID": "m", "tokens": tokens,
                         "time": {"created": (T0 + start) * 1000, "completed": (T0 + end) * 1000}}, "parts": parts}

    tool = {"id": "p", "messageID": "m1", "sessionID": "ses", "type": "tool", "tool": "bash",
            "state": {"status": "completed", "time": {"start": (T0 + 2) * 1000, "end": (T0 + 5) * 1000}}}
    user = {"info": {"id": "u", "sessionID": "ses", "role": "user", "time": {"created": T0 * 1000}}, "parts": []}
    return [{"info": {"id": "ses", "projectID": "p", "directory": "d", "time": {"created": T0 * 1000}},
             "messages": [user, message("m1", 0, 2, 40, [tool]), message("m2", 6, 8, 90, [])]}]


ASK, ANSWER = "What is the capital of the made-up country?", "It is a made-up city, as you will have guessed by now."


def conversation(n: int) -> Rows:
    said = [{"role": "system", "content": "You answer questions about made-up countries."}]
    for _ in range(n):
        said += [{"role": "user", "content": ASK}, {"role": "assistant", "content": ANSWER}]
    return said


def chats() -> Rows:
    return [{"messages": conversation(2)},
            {"messages": [*conversation(1), {"role": "user", "content": ASK}, {"role": "assistant", "content": "No."}]}]


def vllm_multi_turn() -> Rows:
    return [{"id": f"conv-{k}", **row} for k, row in enumerate(chats())]


def lmcache() -> Rows:
    first = "You are an agent. " * 8
    return [{"timestamp": T0 * 1_000_000, "input": first, "output": ANSWER, "session_id": "s"},
            {"timestamp": (T0 + 9) * 1_000_000, "input": first + ANSWER + ASK, "output": ANSWER, "session_id": "s"}]


def swe_agent() -> Rows:
    steps = [{"action": "ls -la", "observation": "a file", "response": "r", "execution_time": 0.5},
             {"action": "submit", "observation": "", "response": "r", "execution_time": 0.1}]
    return [{"environment": "swe_main", "trajectory": steps, "history": conversation(2),
             "info": {"exit_status": "submitted"}}]


def openhands() -> Rows:
    def acts(name: str, number: int, at: float, tool: str) -> dict:
        return {"id": number, "timestamp": iso(at), "source": "agent", "action": "run",
                "tool_call_metadata": {"function_name": tool, "model_response": {"id": name, "usage": {}}}}

    history = [acts("r1", 3, 4, "execute_bash"), {"id": 4, "timestamp": iso(9), "observation": "run", "cause": 3},
               acts("r2", 5, 12, "finish")]
    usages = [{"model": "m", "prompt_tokens": 100 * k, "completion_tokens": 10, "cache_read_tokens": 5,
               "response_id": f"r{k}"} for k in (1, 2)]
    latencies = [{"latency": 2.0, "response_id": f"r{k}"} for k in (1, 2)]
    return [{"instance_id": "task-1", "history": history,
             "metrics": {"token_usages": usages, "response_latencies": latencies}}]


NO_GAP = {"gaps_unknown_taken_as_0": 2}


def _tokens(message: dict[str, Any]) -> int:
    """Four characters a token, with the role on a line of its own."""
    return -(-len(f"{message['role']}\n{message['content']}\n") // 4)


def _said(*conversations: Rows) -> tuple[int, int]:
    """(prompt, output) tokens of all answers of conversations."""
    prompt = output = 0
    for messages in conversations:
        for k, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt += sum(map(_tokens, messages[:k]))
                output += _tokens(message)
    return prompt, output


SAMPLES = [
    Sample("weka", weka, 2, 7, 1416, 51, {"outputs_raised_to_1_token": 1}, {"sessions_without_requests": 1},
           subagents=2, required="requests"),
    Sample("mooncake", mooncake, 3, 4, 5800, 65, required="input_length"),
    Sample("bailian", bailian, 3, 4, 213, 36, {"requests_whose_parent_is_missing_or_went_on_otherwise": 1},
           required="input_length"),
    Sample("jsonl", jsonl, 2, 7, 690, 70, {"contexts_compacted": 1}, {"field colour": 1}, subagents=2,
           required="session"),
    Sample("katas", katas, 2, 7, 690, 70, {"contexts_compacted": 1},
           {"field cfg": 7, "field colour": 1, "field stop": 7, "field trigger": 7}, subagents=2, required="session"),
    Sample("claude-code", claude_code, 1, 2, 230, 28, {}, {"lines of type summary": 1}, required="sessionId"),
    Sample("copilot-2026", copilot, 2, 5, 870, 67, {}, {"calls_cancelled": 1}, required="turns"),
    Sample("codex", codex, 1, 2, 300, 42, {}, {"token_counts_repeated": 1, "token_counts_without_info": 1},
           required="payload"),
    Sample("tracelab", tracelab, 1, 2, 230, 21, required="session_id"),
    Sample("burstgpt", burstgpt, 2, 3, 130, 24, {}, {"requests_that_failed": 1}, layout="csv"),
    Sample("azure", azure, 2, 2, 7988, 18, {"requests_without_block_ids": 2}, layout="csv"),
    Sample("dynamo", dynamo, 1, 3, 420, 15, subagents=1, required="request"),
    Sample("otel-genai", otel_genai, 1, 3, 280, 27, layout="document", subagents=1),
    Sample("litellm", litellm, 2, 4, 330, 32, {"agents_made_of_overlapping_calls": 1},
           {"calls_answered_from_litellms_own_cache": 1}, layout="array", subagents=1),
    Sample("langfuse", langfuse, 1, 2, 230, 18, layout="array"),
    Sample("gemini-cli", gemini_cli, 1, 2, 250, 30, layout="document"),
    Sample("opencode", opencode, 1, 2, 250, 24, layout="document"),
    Sample("chats", chats, 2, 4, *_said(*(r["messages"] for r in chats())), NO_GAP),
    Sample("vllm-multi-turn", vllm_multi_turn, 2, 4, *_said(*(r["messages"] for r in chats())), NO_GAP, layout="array"),
    Sample("lmcache", lmcache, 1, 2, 97, 28, required="input"),
    Sample("swe-agent", swe_agent, 1, 2, *_said(conversation(2)), layout="document"),
    Sample("openhands", openhands, 1, 2, 300, 20, required="history"),
]
