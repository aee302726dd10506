"""An agent that knows nothing of us: the OpenAI SDK, streaming, tools called under constrained decoding, and curl.

The device is emulated: where nothing is prescribed it says filler, and under a grammar the first token that is allowed,
so that every call of a tool is right for the reason that is tested.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:  # importing it here would only cost time
    pytest.skip("vLLM is not installed (extra serve or serve-cpu)", allow_module_level=True)
openai = pytest.importorskip("openai")
from agents_kit import TEMPLATE  # noqa: E402
from live_kit import BLOCK, LIMIT_S, Server, until  # noqa: E402

FILES = {"notes.txt": "buy milk, call the plumber, water the plants " * 3, "todo.txt": "nothing is left to do " * 6}
TOOL = {"type": "function", "function": {
    "name": "read_file", "description": "Read a text file.", "strict": True, "parameters": {
        "type": "object", "additionalProperties": False, "required": ["path", "lines"], "properties": {
            "path": {"type": "string", "enum": sorted(FILES)}, "lines": {"type": "integer", "enum": [10, 20]}}}}}
SYSTEM = ("You are an agent that answers questions about text files. Read a file with the tool read_file before you "
          "answer, say only what stands in it, and be brief. Files: " + ", ".join(sorted(FILES)) + ".")
TURNS = ({"type": "function", "function": {"name": "read_file"}}, "required", "none")
"""The tool choice of each turn: this tool, any tool, an answer in words."""

pytestmark = [pytest.mark.emulated, pytest.mark.timeout(2400)]


class Served(Server):
    """`saga-rl serve`, one engine, recording."""

    def __init__(self, folder: Path) -> None:
        self.record = folder / "served.parquet"
        super().__init__(
            folder, "--policy", "saga+", "--record", str(self.record), "--enable-prompt-tokens-details",
            "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--structured-outputs-config",
            '{"backend": "xgrammar", "disable_any_whitespace": true}',  # else blanks until its tokens are spent
            window=2048, blocks=128, template=TEMPLATE)
        self.base = f"{self.url}/v1"

    def rows(self, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """What the engine noted of requests, once that is `enough`; it writes them every second."""
        def read() -> list[dict[str, Any]] | None:
            found = [json.loads(line) for p in sorted(Path(f"{self.record}.journal").glob("*.jsonl"))
                     for line in p.read_text().splitlines()[1:]]
            return found if enough(found) else None

        return until(read, "the engine notes what it served")

    def steps(self, session: str, at_least: int) -> list[dict[str, Any]]:
        """Those of `session`."""
        def mine(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [r for r in found if r.get("session") == session]

        return mine(self.rows(lambda found: len(mine(found)) >= at_least))


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("agents"))
    try:
        server.wait()
        yield server
    finally:
        server.stop()


class Turn:
    """One answer, put together from its stream."""

    def __init__(self) -> None:
        self.text, self.name, self.arguments, self.call, self.finish = "", "", "", "", ""
        self.usage: dict[str, Any] = {}
        self.chunks = 0

    def take(self, chunk: dict[str, Any]) -> None:
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", ()):
            self.chunks += 1
            self.finish = choice.get("finish_reason") or self.finish
            delta = choice["delta"]
            self.text += delta.get("content") or ""
            for call in delta.get("tool_calls") or ():
                self.call = call.get("id") or self.call
                self.name = self.name or (call["function"].get("name") or "")
                self.arguments += call["function"].get("arguments") or ""

    @property
    def cached(self) -> int:
        return (self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0

    def message(self) -> dict[str, Any]:
        if not self.name:
            return {"role": "assistant", "content": self.text}
        return {"role": "assistant", "content": None, "tool_calls": [{
            "id": self.call, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}]}


def body(messages: list[dict[str, Any]], choice: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": messages, "tools": [TOOL], "tool_choice": choice, "temperature": 0,
            "max_tokens": 160, "stream": True, "stream_options": {"include_usage": True}}


def converse(ask: Any, question: str) -> list[Turn]:
    """Two calls of the tool, each run and answered, then words. ask: messages, choice -> chunks."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    turns = []
    for choice in TURNS:
        turn = Turn()
        for chunk in ask(messages, choice):
            turn.take(chunk)
        turns.append(turn)
        messages.append(turn.message())
        if turn.name:
            path = json.loads(turn.arguments)["path"]
            messages.append({"role": "tool", "tool_call_id": turn.call, "content": FILES[path]})
    return turns


def check_conversation(turns: list[Turn]) -> None:
    for turn in turns[:2]:
        assert turn.name == "read_file" and turn.call
        given = json.loads(turn.arguments)
        assert given.keys() == {"path", "lines"} and given["path"] in FILES and given["lines"] in (10, 20)
        assert turn.chunks > 3  # it came in pieces
    assert turns[2].text.strip() and not turns[2].name
    for before, turn in pairwise(turns):
        # All whole blocks of the prompt before are found again: nothing else is in this memory.
        assert turn.cached >= before.usage["prompt_tokens"] // BLOCK * BLOCK - BLOCK > 0
        assert turn.usage["prompt_tokens"] > before.usage["prompt_tokens"]


def check_recorded(rows: list[dict[str, Any]], turns: list[Turn]) -> None:
    """The engine's own notes: one chain of as many steps, with the tokens that the client was told of."""
    assert len(rows) == len(turns)
    assert len({r["agent"] for r in rows}) == 1
    assert [r["prompt"] for r in rows] == [t.usage["prompt_tokens"] for t in turns]
    assert [r["cached"] for r in rows] == [t.cached for t in turns]


def test_an_agent_on_the_openai_sdk(served):
    client = openai.OpenAI(base_url=served.base, api_key="none", default_headers={"X-Session-ID": "sdk-1"})

    def ask(messages: list[dict[str, Any]], choice: Any) -> Iterator[dict[str, Any]]:
        for chunk in client.chat.completions.create(**body(messages, choice)):
            yield chunk.model_dump()

    turns = converse(ask, "What do my notes say about plants?")
    check_conversation(turns)
    check_recorded(served.steps("sdk-1", 3), turns)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_same_with_curl(served):
    def ask(messages: list[dict[str, Any]], choice: Any) -> Iterator[dict[str, Any]]:
        done = subprocess.run(
            ["curl", "-sSN", "--fail-with-body", f"{served.base}/chat/completions", "-H",
             "Content-Type: application/json", "-H", "X-Session-ID: curl-1", "-d", "@-"],
            input=json.dumps(body(messages, choice)), capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [x[6:] for x in done.stdout.splitlines() if x.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        yield from map(json.loads, lines[:-1])

    turns = converse(ask, "Is there anything left to do?")
    check_conversation(turns)
    check_recorded(served.steps("curl-1", 3), turns)


def counted(served: Served, name: str) -> float:
    """A sample of /metrics, 0 if it is not there yet."""
    return next((value for key, value in served.figures().items() if key.startswith(name)), 0.0)


def test_an_agent_that_names_no_session_is_known_by_its_prefix_and_its_tools_are_told(served):
    """Nothing but what the SDK sends by itself: the session is the chain, the tools come from answers and prompts."""
    client = openai.OpenAI(base_url=served.base, api_key="none")
    begun = counted(served, 'saga_http_total{what="sessions begun"}')
    went_on = counted(served, 'saga_http_total{what="sessions by chain"}')
    applied = counted(served, 'saga_notes_total{engine="0"}')

    def ask(messages: list[dict[str, Any]], choice: Any) -> Iterator[dict[str, Any]]:
        for chunk in client.chat.completions.create(**body(messages, choice)):
            yield chunk.model_dump()

    turns = converse(ask, "How often do my notes speak of milk?")
    check_conversation(turns)
    assert counted(served, 'saga_http_total{what="sessions begun"}') == begun + 1
    assert counted(served, 'saga_http_total{what="sessions by chain"}') == went_on + 2
    until(lambda: counted(served, 'saga_notes_total{engine="0"}') >= applied + 2, "both calls of the tool are told")
    prompts = [t.usage["prompt_tokens"] for t in turns]
    rows = served.rows(lambda found: [r["prompt"] for r in found][-3:] == prompts)[-3:]
    assert len({(r["session"], r["agent"]) for r in rows}) == 1
    assert rows[0]["session"]
    assert [r["tool"] for r in rows] == [None, "read_file", "read_file"]


def test_responses_and_messages_go_on_in_one_session(served):
    client = openai.OpenAI(base_url=served.base, api_key="none")
    first = client.responses.create(model="tiny", input="Say one word about plants, please.", temperature=0,
                                    max_output_tokens=8, extra_headers={"X-Session-ID": "responses-1"})
    told = [{"role": "user", "content": "Say one word about plants, please."},
            {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "And another one?"}]
    client.responses.create(model="tiny", input=told, temperature=0, max_output_tokens=8,
                            extra_headers={"X-Session-ID": "responses-1"})
    assert len(served.steps("responses-1", 2)) == 2

    anthropic = pytest.importorskip("anthropic")
    other = anthropic.Anthropic(base_url=served.base.removesuffix("/v1"), api_key="none")
    given = {"name": "read_file", "description": "Read a text file.", "input_schema": TOOL["function"]["parameters"]}
    asked: list[dict[str, Any]] = [{"role": "user", "content": "Read my notes."}]
    other.messages.create(model="tiny", max_tokens=8, system=SYSTEM, messages=asked, tools=[given],
                          extra_body={"temperature": 0}, extra_headers={"X-Session-ID": "messages-1"})
    # This endpoint does not constrain calls, and filler is none that can be run: the client says it did.
    asked += [{"role": "assistant", "content": [{"type": "tool_use", "id": "call-1", "name": "read_file",
                                                 "input": {"path": "notes.txt", "lines": 10}}]},
              {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call-1",
                                            "content": FILES["notes.txt"]}]}]
    with other.messages.stream(model="tiny", max_tokens=8, system=SYSTEM, messages=asked, tools=[given],
                               extra_body={"temperature": 0}, extra_headers={"X-Session-ID": "messages-1"}) as stream:
        for _ in stream:
            pass
    rows = served.steps("messages-1", 2)
    assert len(rows) == 2
    assert [r["tool"] for r in rows] == [None, "read_file"]
    assert rows[1]["cached"] > 0


def test_a_tool_call_that_the_model_makes_of_itself_is_told(served):
    """Prescribed here: words, then a call in the model's own form, which vLLM's parser finds in the stream."""
    client = openai.OpenAI(base_url=served.base, api_key="none", default_headers={"X-Session-ID": "auto-1"})
    call = {"name": "read_file", "arguments": {"path": "todo.txt", "lines": 20}}
    said = "I look. <tool_call>\n" + json.dumps(call) + "\n</tool_call>"
    turn = Turn()
    tool = {"type": "function", "function": {k: v for k, v in TOOL["function"].items() if k != "strict"}}
    asked = {**body([{"role": "user", "content": "What is left to do?"}], "auto"), "tools": [tool]}
    for chunk in client.chat.completions.create(**asked, extra_body={"vllm_xargs": {"saga_answer": said}}):
        turn.take(chunk.model_dump())
    assert (turn.name, json.loads(turn.arguments)) == ("read_file", call["arguments"])
    assert turn.text.strip() == "I look." and turn.finish == "tool_calls"
    assert len(served.steps("auto-1", 1)) == 1
