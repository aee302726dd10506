"""The HTTP middleware over a small app that shows what reaches it; answers in the forms that vLLM's API gives."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.errors import UserError
from saga_rl.runtime.server.http.chains import Chains
from saga_rl.runtime.server.http.dialects import Turn
from saga_rl.runtime.server.http.middleware import SagaMiddleware
from saga_rl.runtime.server.http.prompts import Answer, Prompt
from saga_rl.runtime.server.http.settings import Settings, read_settings

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (f"/v1/{p}" for p in ("chat/completions", "completions", "responses",
                                                              "messages"))
CALL = {"id": "call-1", "type": "function", "function": {"name": "bash", "arguments": "{}"}}
ASK = {"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}


class Server:
    """An ASGI app behind the middleware. answer: bytes of the body, or pieces of a stream."""

    def __init__(self, set_: Settings | None = None, keys: list[str] | None = None) -> None:
        self.answer: bytes | list[bytes] = b"{}"
        self.seen, self.headers = b"", {}
        self.notes: list[dict[str, Any]] = []
        self.middleware = SagaMiddleware(self.app, set_ or Settings(), self.send_notes, keys)

    async def send_notes(self, notes: list[dict[str, Any]]) -> None:
        self.notes += notes

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.seen, self.headers = body, dict(scope["headers"])
        stream = isinstance(self.answer, list)
        kind = b"text/event-stream; charset=utf-8" if stream else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for piece in self.answer if stream else [self.answer]:
            await send({"type": "http.response.body", "body": piece, "more_body": stream})
        if stream:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None, answer: Any = b"{}") -> dict[str, Any]:
        """The body as the app reads it, {} if it is no JSON object."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answer = answer if isinstance(answer, bytes | list) else json.dumps(answer).encode()
        sent = asyncio.run(self._sent(path, raw, headers))
        pieces = self.answer if isinstance(self.answer, list) else [self.answer]
        assert b"".join(m.get("body", b"") for m in sent) == b"".join(pieces)
        assert int(self.headers[b"content-length"]) == len(self.seen)
        try:
            value = json.loads(self.seen)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def refused(self, path: str, raw: bytes, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and body of an answer that the app knows nothing of."""
        self.seen = b"unseen"
        sent = asyncio.run(self._sent(path, raw, headers))
        assert self.seen == b"unseen"
        return sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in sent))

    async def _sent(self, path: str, raw: bytes, headers: dict[str, str] | None) -> list[Any]:
        given = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in (headers or {}).items()]
        scope = {"type": "http", "method": "POST", "path": path,
                 "headers": [(b"content-length", str(len(raw)).encode()), *given]}
        parts = [{"type": "http.request", "body": raw[:7], "more_body": True},
                 {"type": "http.request", "body": raw[7:], "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            return parts.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        await self.middleware(scope, receive, send)
        for _ in range(3):
            await asyncio.sleep(0)
        return sent


def chat_answer(text: str | None = "a", calls: list[Any] | None = None) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": text,
                                                            "tool_calls": calls or []}}]}


def after(body: dict[str, Any], *more: dict[str, Any]) -> dict[str, Any]:
    return {**body, "messages": [*body["messages"], *more]}


RESULT = {"role": "tool", "tool_call_id": "call-1", "content": "r"}
SAID = {"role": "assistant", "content": None, "tool_calls": [CALL]}


# ---------------------------------------------------------------------- sessions
@pytest.mark.parametrize(("headers", "extra"), [
    ({"X-Session-ID": "s1"}, {}), ({"session_id": "s1"}, {}), ({"x-claude-code-session-id": "s1"}, {}),
    ({}, {"session_id": "s1"}), ({}, {"metadata": {"session_id": "s1"}}), ({}, {"conversation": {"id": "s1"}}),
    ({}, {"vllm_xargs": {"session_id": "s1"}}), ({}, {"metadata": {"user_id": json.dumps({"session_id": "s1"})}}),
    ({"session_id": "no"}, {"session_id": "s1"})])
def test_a_named_session_is_taken(headers: dict[str, str], extra: dict[str, Any]) -> None:
    assert Server().post(CHAT, {**ASK, **extra}, headers)["session_id"] == "s1"


def test_a_chain_is_one_session_and_the_tool_goes_both_ways() -> None:
    server = Server()
    first = server.post(CHAT, ASK, answer=chat_answer(None, [CALL]))
    assert server.notes == [{"session": first["session_id"], "agent": 0, "next_tool": "bash", "final": False}]
    second = server.post(CHAT, after(ASK, SAID, RESULT))
    assert second["session_id"] == first["session_id"] and second["vllm_xargs"] == {"saga_tool": "bash"}


def test_messages_written_anew_are_recognised() -> None:
    server = Server()
    first = server.post(CHAT, ASK, answer=chat_answer(None, [CALL]))["session_id"]
    anew = {"messages": [{"content": [{"text": "s ", "type": "text"}], "role": "developer"},
                         {"name": None, "content": "u\n", "role": "user"},
                         {"tool_calls": [CALL], "reasoning_content": "hm", "role": "assistant"}, RESULT], "model": "m"}
    assert server.post(CHAT, anew)["session_id"] == first


def test_sessions_that_begin_alike_are_told_apart_by_their_answers() -> None:
    server = Server()
    calls = [{**CALL, "id": f"call-{i}"} for i in range(5)]
    names = [server.post(CHAT, ASK, answer=chat_answer(None, [c]))["session_id"] for c in calls]
    assert len(set(names)) == 5
    for name, c in reversed(list(zip(names, calls, strict=True))):
        body = after(ASK, {**SAID, "tool_calls": [c]}, {**RESULT, "tool_call_id": c["id"]})
        assert server.post(CHAT, body)["session_id"] == name


def test_edited_history_stays_and_another_system_prompt_does_not() -> None:
    server = Server()
    first = server.post(CHAT, ASK, answer=chat_answer("one"))["session_id"]
    one = {"role": "assistant", "content": "one"}
    server.post(CHAT, after(ASK, one, {"role": "user", "content": "x"}), answer=chat_answer("two"))
    assert server.post(CHAT, after(ASK, one, {"role": "user", "content": "y"}))["session_id"] == first
    other = {"model": "m", "messages": [{"role": "system", "content": "t"}, *ASK["messages"][1:]]}
    assert server.post(CHAT, other)["session_id"] != first


def test_in_a_named_session_another_system_prompt_is_a_sub_agent_and_compaction_is_not() -> None:
    server, name = Server(), {"X-Session-ID": "s"}
    assert "vllm_xargs" not in server.post(CHAT, ASK, name, chat_answer("one"))
    sub = {"model": "m", "messages": [{"role": "system", "content": "sub"}, {"role": "user", "content": "task"}]}
    assert server.post(CHAT, sub, name, chat_answer(None, [CALL]))["vllm_xargs"] == {"saga_agent": 1}
    again = server.post(CHAT, after(sub, SAID, RESULT), name)
    assert again["vllm_xargs"] == {"saga_agent": 1, "saga_tool": "bash"}
    compacted = {"model": "m", "messages": [ASK["messages"][0], {"role": "user", "content": "summary"}]}
    assert "vllm_xargs" not in server.post(CHAT, compacted, name)


def test_plain_prompts_go_on() -> None:
    server, prompt = Server(), "line\n" * 3000
    answer = {"choices": [{"index": 0, "text": " yes"}]}
    first = server.post(COMPLETIONS, {"prompt": prompt}, answer=answer)["session_id"]
    assert server.post(COMPLETIONS, {"prompt": prompt + " yes\nmore"})["session_id"] == first
    assert server.post(COMPLETIONS, {"prompt": "other" + prompt})["session_id"] != first


def test_plain_prompts_and_turns_are_never_taken_for_one_another() -> None:
    chains = Chains()
    plain = chains.arrive(Prompt(b"s", text=b"a short plain prompt, longer in bytes than the next one in turns"))
    chains.answered(plain, Answer(text=b"x"))
    turns = chains.arrive(Prompt(b"s", [Turn("user", "hi")]))
    assert turns.chain is not plain.chain
    chains.answered(turns, Answer(text=b"x"))
    assert chains.arrive(Prompt(b"s", text=b"hi")).chain not in (plain.chain, turns.chain)


def test_memory_is_bounded() -> None:
    server = Server(Settings(most_nodes=8))
    for i in range(50):
        server.post(CHAT, {"messages": [{"role": "user", "content": str(i)}]})
    assert server.middleware.planner is not None
    assert len(server.middleware.planner.chains) == 8


# ---------------------------------------------------------------------- tools, all endpoints, cut at every byte
TOOL_USE = {"type": "tool_use", "id": "t1", "name": "bash", "input": {}}
ITEM = {"type": "function_call", "call_id": "t1", "name": "bash", "arguments": "{}"}


def sse(*events: Any) -> bytes:
    return b"".join(b"event: e\ndata: " + json.dumps(e).encode() + b"\n\n" for e in events) + b"data: [DONE]\n\n"


STREAMS = [
    (CHAT, ASK, sse({"choices": [{"index": 0, "delta": {"content": "h\u00e9"}}]},
                    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **CALL}]}}]},
                    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {
                        "arguments": "{}"}}]}}]})),
    (MESSAGES, ASK, sse({"type": "content_block_start", "index": 0, "content_block": TOOL_USE},
                        {"type": "message_stop"})),
    (RESPONSES, {"input": "u"}, sse({"type": "response.created", "response": {"id": "r1", "output": []}},
                                    {"type": "response.output_item.added", "item": ITEM},
                                    {"type": "response.completed", "response": {"id": "r1", "output": [ITEM]}}))]


@pytest.mark.parametrize(("path", "body", "stream"), STREAMS)
def test_streams_cut_anywhere_name_the_tool(path: str, body: Any, stream: bytes) -> None:
    for cut in range(len(stream) + 1):
        server = Server()
        server.post(path, body, {"X-Session-ID": "s"}, [stream[:cut], stream[cut:]])
        assert [n["next_tool"] for n in server.notes] == ["bash"]


@pytest.mark.parametrize(("path", "body", "answer"), [
    (CHAT, ASK, chat_answer(None, [CALL])), (MESSAGES, ASK, {"content": [TOOL_USE]}),
    (RESPONSES, {"input": "u"}, {"id": "r1", "output": [{"type": "reasoning"}, ITEM]})])
def test_whole_answers_name_the_tool(path: str, body: Any, answer: Any) -> None:
    server = Server()
    server.post(path, body, {"X-Session-ID": "s"}, answer)
    assert [n["next_tool"] for n in server.notes] == ["bash"]


def test_a_response_goes_on_from_the_one_before() -> None:
    server = Server()
    first = server.post(RESPONSES, {"input": "u"}, answer={"id": "r1", "output": [ITEM]})
    more = {"previous_response_id": "r1", "input": [{"type": "function_call_output", "call_id": "t1", "output": "r"}]}
    second = server.post(RESPONSES, more)
    assert second["session_id"] == first["session_id"] and second["vllm_xargs"]["saga_tool"] == "bash"


def test_anthropic_gets_its_session_by_header_and_its_tool_by_body() -> None:
    server = Server()
    server.post(MESSAGES, ASK, answer={"content": [TOOL_USE]})
    first = server.headers[b"x-session-id"]
    got = server.post(MESSAGES, after(ASK, {"role": "assistant", "content": [TOOL_USE]}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t1", "content": "r"}]}))
    assert server.headers[b"x-session-id"] == first and got["vllm_xargs"]["saga_tool"] == "bash"


# ---------------------------------------------------------------------- tenants
def test_a_key_names_a_tenant_and_nobody_forges_another() -> None:
    known = Settings(tenants={hashlib.sha256(b"k1").hexdigest(): "team-a"}, cache_salt=True, most_bytes=4000)
    server, k1, k2 = Server(known, ["k1", "k2"]), {"Authorization": "Bearer k1"}, {"Authorization": "Bearer k2"}
    forged = {**ASK, "session_id": "s", "vllm_xargs": {"saga_tenant": "team-a"}}
    a, b = server.post(CHAT, forged, k1), server.post(CHAT, forged, k2)
    assert a["vllm_xargs"]["saga_tenant"] == "team-a" and b["vllm_xargs"]["saga_tenant"].startswith("key-")
    assert a["session_id"] != b["session_id"] and a["cache_salt"] != b["cache_salt"]
    text = json.dumps(forged)
    hostile = [text.replace('"m"', "NaN"), text.replace('"m"', '"\\ud800"'), text + " " * 5000,
               text[:-1] + ', "vllm_xargs": {"saga_tenant": "team-a"}}']
    for raw in [*(h.encode() for h in hostile), text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode()]:
        got = server.post(CHAT, raw, k2)
        assert got["vllm_xargs"]["saga_tenant"] == b["vllm_xargs"]["saga_tenant"], raw[:80]
        assert got["cache_salt"] == b["cache_salt"]


def test_without_keys_the_body_names_the_tenant() -> None:
    got = Server().post(CHAT, {**ASK, "vllm_xargs": {"saga_tenant": "t", "other": 1}}, {"Authorization": "Bearer x"})
    assert got["vllm_xargs"] == {"saga_tenant": "t", "other": 1, "saga_unnamed": 1}


def test_only_a_prompt_that_nobody_named_and_that_extends_none_is_called_unnamed() -> None:
    server = Server()
    first = server.post(CHAT, ASK)
    again = server.post(CHAT, {**ASK, "messages": [*ASK["messages"], {"role": "assistant", "content": "fine"},
                                                   {"role": "user", "content": "and then"}]})
    assert first["session_id"] == again["session_id"]
    assert first["vllm_xargs"]["saga_unnamed"] == 1 and "saga_unnamed" not in again.get("vllm_xargs", {})
    assert "saga_unnamed" not in server.post(CHAT, {**ASK, "session_id": "s"}).get("vllm_xargs", {})


@pytest.mark.parametrize("bad", [{"chainz": True}, {"chains": 1}, {"tenants": {"key": "a"}}, {"most_bytes": 0}, 3])
def test_wrong_settings_are_told(bad: Any) -> None:
    with pytest.raises(UserError):
        read_settings({"saga_http": bad})


# ---------------------------------------------------------------------- anything at all
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda x: st.lists(
    x, max_size=4) | st.dictionaries(st.sampled_from([
        "messages", "role", "content", "tool_calls", "id", "function", "name", "type", "text", "prompt", "input",
        "vllm_xargs", "saga_agent", "saga_tool", "session_id", "metadata", "user_id", "cache_salt", "choices", "delta",
        "system", "previous_response_id", "output", "item", "call_id", "conversation", "content_block"]), x,
        max_size=5), max_leaves=25)
PATH = st.sampled_from([CHAT, COMPLETIONS, RESPONSES, MESSAGES])
SET = [(Settings(), []), (Settings(cache_salt=True), ["k"])]


@settings(max_examples=300, deadline=None)
@given(path=PATH, body=st.binary(max_size=200), answer=st.lists(st.binary(max_size=60), max_size=4),
       name=st.text(st.characters(max_codepoint=255), max_size=20), which=st.sampled_from(SET))
def test_any_bytes_pass(path: str, body: bytes, answer: list[bytes], name: str, which: Any) -> None:
    server = Server(*which)
    server.post(path, body, {"X-Session-ID": name, "Authorization": name}, answer)
    try:
        understood = isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        understood = False
    assert understood or server.seen == body
    assert not [c for c in server.middleware.counts if c.startswith("failed")]


@settings(max_examples=400, deadline=None)
@given(path=PATH, body=JSON, answer=JSON, which=st.sampled_from(SET), stream=st.booleans())
def test_any_json_passes(path: str, body: Any, answer: Any, which: Any, stream: bool) -> None:
    server = Server(*which)
    for _ in range(2):
        got = server.post(path, body, {}, [sse(answer)] if stream else json.dumps(answer).encode())
        if isinstance(body, dict):
            kept = {k: v for k, v in body.items() if k not in ("vllm_xargs", "session_id", "cache_salt")}
            assert json.dumps({k: got[k] for k in kept}) == json.dumps(kept)
    assert not [c for c in server.middleware.counts if c.startswith("failed")], server.middleware.counts


def test_other_paths_and_a_failing_planner_change_nothing() -> None:
    server = Server()
    raw = json.dumps(ASK).encode()
    server.post("/v1/embeddings", raw)
    assert server.seen == raw and not server.middleware.counts
    server.middleware.planner.plan = None  # type: ignore[assignment, union-attr]
    server.post(CHAT, raw)
    assert server.seen == raw and server.middleware.counts["failed/request TypeError"] == 1


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_session_that_is_a_number_is_taken_by_its_digits(path: str) -> None:
    """vLLM would refuse it: of two equal keys the later counts, and that is text."""
    body = {**(ASK if path == CHAT else {"input": "x"}), "session_id": 7}
    assert Server().post(path, body)["session_id"] == "7"
