"""Names that agents and gateways send: those that everybody has, sub-agents and their callers, what a name ends."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from typing import Any

import pyarrow as pa
import pytest
from test_http_middleware import ASK, CHAT, MESSAGES, RESPONSES, Server, chat_answer

from saga_rl.errors import UserError
from saga_rl.runtime.server.http.settings import Settings, read_settings

GATEWAY = {"X-Session-ID": "gateway"}


def call(text: str) -> dict[str, Any]:
    return {"id": "c0", "type": "function", "function": {"name": "task", "arguments": json.dumps({"prompt": text})}}


class Talk:
    """One conversation with a server. system: its system prompt; named: the headers of its requests."""

    def __init__(self, server: Server, user: str, named: dict[str, str] | None = None, system: str = "one app") -> None:
        self.server, self.named = server, GATEWAY if named is None else named
        self.messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        self.n = 0

    def step(self, answer: str | None = None, calls: list[Any] | None = None) -> tuple[str, int]:
        """(session, agent) of its next request."""
        self.n += 1
        text = f"{self.messages[1]['content']} answer {self.n}" if answer is None else answer
        seen = self.server.post(CHAT, {"model": "m", "messages": self.messages}, self.named, chat_answer(text, calls))
        said: dict[str, Any] = {"role": "assistant", "content": text}
        reply: dict[str, Any] = {"role": "user", "content": f"go on {self.n}"}
        if calls:
            said["tool_calls"], reply = calls, {"role": "tool", "tool_call_id": calls[0]["id"], "content": "done"}
        self.messages = [*self.messages, said, reply]
        return seen["session_id"], seen.get("vllm_xargs", {}).get("saga_agent", 0)


def counted(server: Server, what: str) -> int:
    return server.middleware.counts[what]


# ---------------------------------------------------------------------- one name for everybody
def test_users_one_after_another_under_one_name_are_found_out(caplog: pytest.LogCaptureFixture) -> None:
    """Four users of three calls: from the fourth on, each has a session of its own, which it keeps."""
    server = Server()
    with caplog.at_level(logging.WARNING, "vllm.saga_rl"):
        seen = [[Talk(server, f"user {k}")] for k in range(6)]
        found = [[talk.step() for _ in range(3)] for (talk,) in seen]
    later = found[4:]
    assert all(len(set(steps)) == 1 and steps[0][0] != "gateway" and steps[0][1] == 0 for steps in later)
    assert later[0][0] != later[1][0]
    assert counted(server, "names found out") == 1 and counted(server, "names not believed") >= 6
    assert [r for r in caplog.records if "'gateway'" in r.getMessage() and "x-session-id" in r.getMessage()]


def test_users_at_the_same_time_under_one_name_are_found_out() -> None:
    """They take turns: each return to an older conversation says that there are several."""
    server = Server()
    talks = [Talk(server, f"user {k}") for k in range(3)]
    for _ in range(4):
        found = [talk.step() for talk in talks]
    assert len({session for session, _ in found}) == 3 and "gateway" not in {session for session, _ in found}
    assert [talk.step() for talk in talks] == found, "what goes on stays what it became"


def test_apps_with_prompts_of_their_own_under_one_name_are_found_out() -> None:
    server = Server()
    for k in range(6):
        talk = Talk(server, f"user {k}", system=f"app {k}")
        found = [talk.step() for _ in range(3)]
    assert len(set(found)) == 1 and found[0][0] != "gateway"


def test_one_session_with_sub_agents_titles_and_compaction_keeps_its_name() -> None:
    """Twenty sub-agents of two kinds, a title for each of ten turns, and three compactions that quote the summary."""
    server, name = Server(), {"X-Session-ID": "s"}
    main = Talk(server, "the task", name)
    for turn in range(10):
        main.step()
        assert Talk(server, f"make a title of turn {turn}", name, "titles").step("title")[0] == "s"
        task = f"look for the place where turn {turn} goes wrong, and say it"
        main.step("I ask others", [call(task)])
        for system in ("one app", "explorer"):
            sub = Talk(server, task, name, system)
            assert {sub.step()[0] for _ in range(3)} == {"s"}
        if turn % 3 == 2:
            summary = f"Summary {turn}: what was done up to now, in one line of some length."
            assert main.step(summary) == ("s", 0)
            main = Talk(server, f"This goes on from before.\n{summary}", name)
    assert main.step() == ("s", 0)
    assert not counted(server, "names found out")


@pytest.mark.parametrize("answered", [True, False])
def test_a_title_before_the_main_agent_is_not_the_main_agent(answered: bool) -> None:
    """OpenCode asks for one under the session's name, without tools, before or while the main agent begins."""
    server, name = Server(), {"X-Session-ID": "s"}
    tools = [{"type": "function", "function": {"name": "task"}}]

    def post(system: str, user: str, named: dict[str, str] = name, **more: Any) -> tuple[Any, ...]:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        seen = server.post(CHAT, {"model": "m", "messages": messages, **more}, named,
                           chat_answer("Of x" if user == "x" else "one") if answered else None)
        return seen["session_id"], *xargs(seen, "saga_agent", "saga_caller")

    assert post("titles", "x") == ("s", None, None)
    assert post("main", "y", tools=tools) == ("s", None, None)
    assert post("titles", "z") == ("s", 1, None), "another title is the title's agent, not the main one"
    assert post("sub", "w", {"X-Session-ID": "t", "X-Parent-Session-Id": "s"}, tools=tools) == ("s", 2, 0)
    assert post("helper", "v", tools=tools) == ("s", 3, None), "only once"


def test_a_name_begins_anew_after_its_end() -> None:
    """A trace that is replayed over and over under one name, ends told."""
    server = Server()
    for k in range(8):
        talk = Talk(server, f"task {k}")
        assert talk.step()[0] == "gateway"
        talk.named = GATEWAY | {"X-Saga-Final": "1"}
        assert talk.step()[0] == "gateway"
        talk.named = GATEWAY
    assert not counted(server, "names found out")


def test_a_header_can_be_ignored() -> None:
    server = Server(read(["X-Session-ID"]))
    found = {Talk(server, f"user {k}").step()[0] for k in range(3)}
    assert len(found) == 3 and "gateway" not in found
    assert b"x-session-id" not in server.headers, "vLLM reads it too"
    assert server.post(CHAT, ASK, {"X-Conversation-ID": "c"} | GATEWAY)["session_id"] == "c"
    for bad in ("X-Session-ID", [1], [""]):
        with pytest.raises(UserError, match="ignored_headers"):
            read(bad)


def read(names: Any) -> Settings:
    return read_settings({"saga_http": {"ignored_headers": names}})


# ---------------------------------------------------------------------- sub-agents and their callers
def xargs(seen: dict[str, Any], *keys: str) -> tuple[Any, ...]:
    return tuple(seen.get("vllm_xargs", {}).get(key) for key in keys)


def test_claude_codes_sub_agents_say_who_called_them() -> None:
    server, main = Server(), {"X-Claude-Code-Session-Id": "s"}
    server.post(CHAT, ASK, main, chat_answer("one"))
    a = xargs(server.post(CHAT, ASK, main | {"X-Claude-Code-Agent-Id": "a"}), "saga_agent", "saga_caller")
    b = xargs(server.post(CHAT, ASK, main | {"X-Claude-Code-Agent-Id": "b", "X-Claude-Code-Parent-Agent-Id": "a"}),
              "saga_agent", "saga_caller")
    assert a[1] == 0 and b[1] == a[0] != b[0]


def test_codexs_sub_agents_have_threads_of_their_own() -> None:
    server = Server()
    main = server.post(RESPONSES, {"input": "u"}, {"session-id": "s", "thread-id": "s"})
    sub = server.post(RESPONSES, {"input": "u"}, {"session-id": "s", "thread-id": "t"})
    assert main["session_id"] == sub["session_id"] == "s" and xargs(main, "saga_agent") == (None,)
    assert xargs(sub, "saga_agent", "saga_caller") == (1, 0)
    for parent, number, caller in (("t", 2, 1), ("s", 3, 0)):
        named = {"session-id": "s", "thread-id": f"of {parent}", "X-Codex-Parent-Thread-Id": parent}
        assert xargs(server.post(RESPONSES, {"input": "u"}, named), "saga_agent", "saga_caller") == (number, caller)


@pytest.mark.parametrize(("said", "tool"), [
    ("<subagent_notification>\n{}\n</subagent_notification>", "wait_agent"),
    ("<system-reminder>Remember.</system-reminder>", "wait_agent"),
    ("<system-reminder>Remember.</system-reminder> And now?", None), ("Go on.", None)])
def test_what_an_agent_says_in_the_users_place_hides_no_tool(said: str, tool: str | None) -> None:
    """Codex tells its model so that a sub-agent has ended."""
    items = [{"type": "message", "role": "user", "content": "u"},
             {"type": "function_call", "call_id": "c0", "name": "wait_agent", "arguments": "{}"},
             {"type": "function_call_output", "call_id": "c0", "output": "r"},
             {"type": "message", "role": "user", "content": [{"type": "input_text", "text": said}]}]
    assert xargs(Server().post(RESPONSES, {"model": "m", "input": items}), "saga_tool") == (tool,)


def test_a_reminder_after_a_tools_result_hides_no_tool() -> None:
    """Claude Code puts one there as a message of the system."""
    use = {"type": "tool_use", "id": "t0", "name": "Bash", "input": {}}
    body = {"model": "m", "messages": [
        {"role": "user", "content": "u"}, {"role": "assistant", "content": [use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t0", "content": "r"}]},
        {"role": "system", "content": [{"type": "text", "text": "Remember this."}]}]}
    assert xargs(Server().post(MESSAGES, body), "saga_tool") == ("Bash",)


def test_a_sessions_parents_are_the_callers() -> None:
    server = Server()
    server.post(CHAT, ASK, {"X-Session-ID": "top"}, chat_answer("one"))
    child = xargs(server.post(CHAT, ASK, {"X-Session-ID": "child", "X-Parent-Session-Id": "top"}),
                  "saga_agent", "saga_caller")
    inner = xargs(server.post(CHAT, ASK, {"X-Session-ID": "inner", "X-Parent-Session-Id": "child"}),
                  "saga_agent", "saga_caller")
    assert child[1] == 0 and inner[1] == child[0] != inner[0]


@pytest.mark.parametrize("named", [{}, {"X-Session-ID": "s"}])
def test_a_sub_agent_that_nobody_names_is_found_by_its_task(named: dict[str, str]) -> None:
    """Its prompt stood in its caller's call."""
    server, task = Server(), "Find all the places that read the configuration file."
    main = Talk(server, "the task", named)
    session, _ = main.step("I ask another", [call(task)])
    other = Talk(server, "another user's quite different question, of some length",
                 {"X-Session-ID": "t"} if named else {})
    assert other.step()[0] != session
    sub = server.post(CHAT, {"model": "m", "messages": [{"role": "system", "content": "explorer"},
                                                        {"role": "user", "content": task}]}, named, chat_answer("it"))
    assert sub["session_id"] == session and xargs(sub, "saga_agent", "saga_caller") == (1, 0)


@pytest.mark.parametrize("as_text", [False, True])
def test_agentic_context_of_vllm_router(as_text: bool) -> None:
    """Read, and written as vLLM takes it: it would refuse an object."""
    server = Server()

    def post(**context: Any) -> dict[str, Any]:
        value = json.dumps(context) if as_text else context
        return server.post(CHAT, {**ASK, "vllm_xargs": {"agentic_context": value}}, answer=chat_answer("one"))

    main = post(program_id="p0", session_id="s", agent_id="lead")
    assert main["session_id"] == "s" and xargs(main, "saga_agent")[0] == 0
    assert json.loads(main["vllm_xargs"]["agentic_context"])["program_id"] == "p0"
    sub = post(program_id="p1", session_id="s", agent_id="scout", parent_agent_id="lead", subagent_type="explore",
               deadline_seconds=30)
    assert sub["session_id"] == "s"
    assert xargs(sub, "saga_agent", "saga_caller", "saga_agent_type", "saga_deadline_s") == (1, 0, "explore", 30)
    program = post(program_id="p2", session_id="s", parent_program_id="p1")
    assert program["session_id"] == "s" and xargs(program, "saga_agent")[0] == 2
    alone = post(program_id="q1", parent_program_id="q0")
    assert alone["session_id"] == "q0" and xargs(alone, "saga_agent", "saga_caller") == (1, 0)
    assert xargs(post(program_id="r", expected_resume=False), "saga_final") == (1,)
    assert xargs(post(program_id="r", expected_resume=True), "saga_final") == (None,)


# ---------------------------------------------------------------------- bodies with a coding
CODINGS = {"gzip": gzip.compress, "zstd": lambda raw: pa.Codec("zstd").compress(raw, asbytes=True),
           "br": lambda raw: pa.Codec("brotli").compress(raw, asbytes=True)}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_body_with_a_coding_follows_a_tenants_rules(coding: str, path: str) -> None:
    body = {**(ASK if path != RESPONSES else {"input": "u"}), "vllm_xargs": {"saga_tenant": "team-a"}}
    known = Settings(tenants={hashlib.sha256(b"k1").hexdigest(): "team-a"})
    server, key = Server(known, ["k1", "k2"]), {"Authorization": "Bearer k2"}
    plain = server.post(path, body, key)
    seen = server.post(path, CODINGS[coding](json.dumps(body).encode()), key | {"Content-Encoding": coding})
    assert seen["vllm_xargs"]["saga_tenant"] == plain["vllm_xargs"]["saga_tenant"] != "team-a"
    assert b"content-encoding" not in server.headers and counted(server, "bodies decoded") == 1


@pytest.mark.parametrize(("coding", "raw", "status", "says"), [
    ("gzip", b"{}", 400, "is not gzip"), ("zstd", b"\x28\xb5\x2f\xfdxx", 400, "is not zstd"),
    ("compress", b"{}", 415, "send the body plain"), ("gzip", gzip.compress(b" " * 100_000), 413, "longer than 50000")])
def test_a_body_that_cannot_be_decoded_is_refused(coding: str, raw: bytes, status: int, says: str) -> None:
    server = Server(Settings(most_bytes=50_000))
    answer = server.refused(CHAT, raw, {"Content-Encoding": coding})
    assert answer[0] == status and says in answer[1]["error"]["message"]
    assert counted(server, "bodies not decoded") == 1
