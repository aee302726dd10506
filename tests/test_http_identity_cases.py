"""Requests as agents send them: what the server drops, answers that tell runs of one task apart, names in headers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from test_http_middleware import ASK, CHAT, MESSAGES, RESPONSES, Server, after, chat_answer

from saga_rl.runtime.server.http.dialects import without_reasoning
from saga_rl.runtime.server.http.settings import Settings


@pytest.mark.parametrize("named", [{}, {"X-Claude-Code-Session-Id": "s"}])
def test_a_billing_line_that_vllm_drops_is_no_part_of_identity(named: dict[str, str]) -> None:
    """Claude Code puts another one first on each request: agent 0 and one session throughout."""
    server = Server()
    messages: list[dict[str, Any]] = [{"role": "user", "content": "u"}]
    for k in range(4):
        line = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.97; cch={k:05x};"}
        body = {"model": "m", "system": [line, {"type": "text", "text": "You are an agent."}], "messages": messages}
        answer = {"id": "x", "content": [{"type": "text", "text": f"a{k}"}]}
        seen = server.post(MESSAGES, body, named, answer)
        if k == 0:
            first = server.headers[b"x-session-id"]
        assert server.headers[b"x-session-id"] == first
        assert "saga_agent" not in seen.get("vllm_xargs", {})
        messages = [*messages, {"role": "assistant", "content": f"a{k}"}, {"role": "user", "content": f"u{k}"}]


def test_a_billing_line_in_chat_leaves_the_rest_of_its_text() -> None:
    """A gateway that translates to chat completions keeps it; vLLM drops the line there."""
    server, sessions = Server(), []
    for k, prompt in enumerate(("one", "one", "other")):
        head = {"role": "system", "content": f"x-anthropic-billing-header: cch={k};\n{prompt}"}
        body = {"model": "m", "messages": [head, {"role": "user", "content": "u"}]}
        if k == 1:
            body["messages"] += [{"role": "assistant", "content": "a"}, {"role": "user", "content": "v"}]
        sessions.append(server.post(CHAT, body, answer=chat_answer("a"))["session_id"])
    assert sessions[0] == sessions[1] != sessions[2]


def call(name: str, arguments: dict[str, Any], number: str = "functions.bash:0") -> dict[str, Any]:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def goes_on(server: Server, made: dict[str, Any], said: dict[str, Any]) -> str:
    result = {"role": "tool", "tool_call_id": made["id"], "content": "r"}
    return server.post(CHAT, after(ASK, said, result), answer=chat_answer("done"))["session_id"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("stream", [False, True])
def test_call_ids_that_restart_do_not_swap_two_runs(order: tuple[int, int], stream: bool) -> None:
    """Both answers call `functions.bash:0`; the arguments tell them apart."""
    server = Server()
    calls = [call("bash", {"command": c}) for c in ("ls", "pwd")]
    names = []
    for made in calls:
        answer: Any = chat_answer(None, [made])
        if stream:
            text = made["function"]["arguments"]
            pieces = [{"index": 0, "id": made["id"], "function": {"name": "bash", "arguments": ""}},
                      {"index": 0, "function": {"arguments": text[:5]}},
                      {"index": 0, "function": {"arguments": text[5:]}}]
            events = [{"choices": [{"index": 0, "delta": {"tool_calls": [p]}}]} for p in pieces]
            answer = [b"data: " + json.dumps(e).encode() + b"\n\n" for e in events]
        names.append(server.post(CHAT, ASK, answer=answer)["session_id"])
    assert names[0] != names[1]
    for k in order:
        said = {"role": "assistant", "content": None, "tool_calls": [calls[k]]}
        assert goes_on(server, calls[k], said) == names[k]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_reasoning_that_the_client_leaves_out_does_not_swap_two_runs(order: tuple[int, int]) -> None:
    server = Server()
    texts = ("Paris it is.", "Rome it is.")
    names = [server.post(CHAT, ASK, answer=chat_answer(f"<think>hm {k}</think>\n\n{t}"))["session_id"]
             for k, t in enumerate(texts)]
    for k in order:
        body = after(ASK, {"role": "assistant", "content": texts[k]}, {"role": "user", "content": "go on"})
        assert server.post(CHAT, body)["session_id"] == names[k]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_response_of_text_and_a_call_does_not_swap_two_runs(order: tuple[int, int], stream: bool) -> None:
    """The Responses API gives an answer as several items: all up to the tool's result are the answer."""
    server = Server()
    ask = {"model": "m", "input": [{"type": "message", "role": "user", "content": "u"}]}
    items = [[{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": f"I try {c}."}]},
              {"type": "function_call", "call_id": "c0", "name": "bash", "arguments": json.dumps({"command": c})}]
             for c in ("ls", "pwd")]
    names = []
    for k, output in enumerate(items):
        answer: Any = {"id": f"r{k}", "output": output}
        if stream:
            events = [{"type": "response.output_text.delta", "delta": output[0]["content"][0]["text"]},
                      {"type": "response.output_item.done", "item": output[1]},
                      {"type": "response.completed", "response": answer}]
            answer = [b"data: " + json.dumps(e).encode() + b"\n\n" for e in events]
        names.append(server.post(RESPONSES, ask, answer=answer)["session_id"])
    assert names[0] != names[1]
    for k in order:
        result = {"type": "function_call_output", "call_id": "c0", "output": "r"}
        body = {"model": "m", "input": [*ask["input"], *items[k], result]}
        assert server.post(RESPONSES, body)["session_id"] == names[k]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_anthropic_stream_of_calls_tells_two_runs_apart(order: tuple[int, int]) -> None:
    server = Server()
    ask = {"model": "m", "messages": [{"role": "user", "content": "u"}]}
    names = []
    for command in ("ls", "pwd"):
        block = {"type": "tool_use", "id": "t0", "name": "bash", "input": {}}
        text = json.dumps({"command": command})
        events = [{"type": "content_block_start", "index": 0, "content_block": block},
                  *({"type": "content_block_delta", "index": 0,
                     "delta": {"type": "input_json_delta", "partial_json": p}} for p in (text[:4], text[4:]))]
        server.post(MESSAGES, ask, answer=[b"data: " + json.dumps(e).encode() + b"\n\n" for e in events])
        names.append(server.headers[b"x-session-id"])
    assert names[0] != names[1]
    for k in order:
        use = {"type": "tool_use", "id": "t0", "name": "bash", "input": {"command": ("ls", "pwd")[k]}}
        result = {"type": "tool_result", "tool_use_id": "t0", "content": "r"}
        server.post(MESSAGES, {"model": "m", "messages": [*ask["messages"], {"role": "assistant", "content": [use]},
                                                          {"role": "user", "content": [result]}]})
        assert server.headers[b"x-session-id"] == names[k]


@pytest.mark.parametrize(("headers", "extra"), [
    ({"X-Dynamo-Session-ID": "s1"}, {}), ({"X-Correlation-ID": "s1"}, {}), ({}, {"metadata": {"sessionId": "s1"}}),
    ({"X-LiteLLM-Session-Id": "s1"}, {}), ({"Helicone-Session-Id": "s1"}, {}), ({"X-OpenCode-Session": "s1"}, {}),
    ({"X-Session-Affinity": "s1"}, {}), ({}, {"metadata": {"thread_id": "s1"}}), ({}, {"conversation": "s1"}),
    ({"X-Session-ID": "s1"}, {}), ({"X-Claude-Code-Session-Id": "s1"}, {}), ({"session-id": "s1"}, {}),
    ({"session_id": "s1"}, {}), ({"X-Conversation-ID": "s1"}, {}), ({"conversation_id": "s1"}, {}),
    ({}, {"session_id": "s1"}), ({}, {"vllm_xargs": {"session_id": "s1"}}), ({}, {"metadata": {"session_id": "s1"}}),
    ({}, {"metadata": {"conversation_id": "s1"}}), ({}, {"conversation": {"id": "s1"}}),
    ({}, {"vllm_xargs": {"agentic_context": {"session_id": "s1", "program_id": "p"}}}),
    ({}, {"vllm_xargs": {"agentic_context": json.dumps({"program_id": "s1"})}})])
def test_names_that_agents_and_routers_send(headers: dict[str, str], extra: dict[str, Any]) -> None:
    assert Server().post(CHAT, {**ASK, **extra}, headers)["session_id"] == "s1"


def agent_of(seen: dict[str, Any]) -> int:
    return seen.get("vllm_xargs", {}).get("saga_agent", 0)


def test_claude_codes_sub_agents_are_agents_of_their_session() -> None:
    server = Server()
    main = {"X-Claude-Code-Session-Id": "s"}
    assert agent_of(server.post(CHAT, ASK, main, chat_answer("one"))) == 0
    sub = [main | {"X-Claude-Code-Agent-Id": name, "X-Claude-Code-Parent-Agent-Id": "main"} for name in "ab"]
    seen = [server.post(CHAT, ASK, sub[k]) for k in (0, 1, 0)]  # prompts like the main agent's: only names tell
    assert [s["session_id"] for s in seen] == ["s"] * 3
    assert agent_of(seen[0]) == agent_of(seen[2]) != agent_of(seen[1]) and 0 not in map(agent_of, seen)
    other = {"model": "m", "messages": [{"role": "system", "content": "title"}, {"role": "user", "content": "u"}]}
    assert agent_of(server.post(CHAT, other, main)) not in {0, *map(agent_of, seen)}, "a number is given once"


@pytest.mark.parametrize(("own", "parent"), [("X-Session-ID", "X-Parent-Session-Id"),
                                             ("X-Dynamo-Session-ID", "X-Dynamo-Parent-Session-ID")])
def test_a_session_with_a_parent_is_its_sub_agent(own: str, parent: str) -> None:
    server = Server()
    server.post(CHAT, ASK, {own: "top"}, chat_answer("one"))
    child = server.post(CHAT, ASK, {own: "child", parent: "top"})
    grandchild = server.post(CHAT, ASK, {own: "grandchild", parent: "child"})
    again = server.post(CHAT, ASK, {own: "child", parent: "top"})
    assert [s["session_id"] for s in (child, grandchild, again)] == ["top"] * 3
    assert agent_of(child) == agent_of(again) and len({0, agent_of(child), agent_of(grandchild)}) == 3
    assert agent_of(server.post(CHAT, ASK, {own: "top", parent: "top"})) == 0, "its own parent is nobody's"


def test_a_parent_is_looked_for_among_the_tenants_own_sessions() -> None:
    """A name with a slash is written otherwise, or tenant `org` with `a/top` would be tenant `org/a` with `top`."""
    keys = {name: hashlib.sha256(key).hexdigest() for name, key in (("org/a", b"k1"), ("org", b"k2"))}
    server = Server(Settings(tenants={digest: name for name, digest in keys.items()}), ["k1", "k2"])
    first, second = {"Authorization": "Bearer k1"}, {"Authorization": "Bearer k2"}
    top = server.post(CHAT, ASK, first | {"X-Session-ID": "top"}, chat_answer("one"))
    child = server.post(CHAT, ASK, first | {"X-Session-ID": "child", "X-Parent-Session-Id": "top"})
    foreign = server.post(CHAT, ASK, second | {"X-Session-ID": "child", "X-Parent-Session-Id": "a/top"})
    assert child["session_id"] == top["session_id"] != foreign["session_id"]


@pytest.mark.parametrize(("text", "left"), [
    ("plain", "plain"), ("<think>hm</think> so", "so"), ("hm, from the prompt</think>so", "so"),
    ("a <think>x</think>b<think>y</think>c", "a bc"), ("<think>open", "<think>open"), ("a<think>x</think>b</think>c",
                                                                                      "ab</think>c")])
def test_reasoning_is_left_out_of_what_an_answer_said(text: str, left: str) -> None:
    assert without_reasoning(text) == left


def test_an_end_that_a_header_tells() -> None:
    seen = Server().post(CHAT, ASK, {"X-Dynamo-Session-ID": "s", "X-Dynamo-Session-Final": "true"})
    assert seen["vllm_xargs"] == {"saga_final": 1}
