"""An agent that knows nothing of us: the OpenAI SDK, streaming, tools called under constrained decoding, and curl."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from smollm2_kit import smollm2

if importlib.util.find_spec("vllm") is None:  # importing it here would only cost time
    pytest.skip("vLLM is not installed (extra serve or serve-cpu)", allow_module_level=True)
openai = pytest.importorskip("openai")

START_S = 600.0
BLOCK = 32
FILES = {"notes.txt": "buy milk, call the plumber, water the plants " * 3, "todo.txt": "nothing is left to do " * 6}
TOOL = {"type": "function", "function": {
    "name": "read_file", "description": "Read a text file.", "strict": True, "parameters": {
        "type": "object", "additionalProperties": False, "required": ["path", "lines"], "properties": {
            "path": {"type": "string", "enum": sorted(FILES)}, "lines": {"type": "integer", "enum": [10, 20]}}}}}
SYSTEM = ("You are an agent that answers questions about text files. Read a file with the tool read_file before you "
          "answer, say only what stands in it, and be brief. Files: " + ", ".join(sorted(FILES)) + ".")
TURNS = ({"type": "function", "function": {"name": "read_file"}}, "required", "none")
"""The tool choice of each turn: this tool, any tool, an answer in words."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Served:
    """`saga-rl serve` with SmolLM2, one engine, recording."""

    def __init__(self, folder: Path) -> None:
        self.model, self.record, self.log = smollm2(), folder / "served.parquet", folder / "log"
        self.base = f"http://127.0.0.1:{(port := free_port())}/v1"
        env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
               "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from saga_rl.cli import main; main()", "serve", str(self.model),
                 "--policy", "saga+", "--record", str(self.record), "--port", str(port), "--host", "127.0.0.1",
                 "--served-model-name", "smollm2", "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048",
                 "--max-num-seqs", "4", "--block-size", str(BLOCK), "--num-gpu-blocks-override", "129",
                 "--enable-prompt-tokens-details", "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
                 # else a small model may write blanks until its tokens are spent
                 "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'],
                env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)

    def wait(self) -> None:
        import httpx

        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if httpx.get(f"{self.base}/models", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.3)
        raise AssertionError(f"not up after {START_S:.0f} s: {self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # its engine, too

    def rows(self, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """What the engine noted of requests, once that is `enough`; it writes them every second."""
        deadline = time.monotonic() + 20
        while True:
            found = [json.loads(line) for p in sorted(Path(f"{self.record}.journal").glob("*.jsonl"))
                     for line in p.read_text().splitlines()[1:]]
            if enough(found) or time.monotonic() > deadline:
                return found
            time.sleep(0.3)

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
    return {"model": "smollm2", "messages": messages, "tools": [TOOL], "tool_choice": choice, "temperature": 0,
            "max_tokens": 96, "stream": True, "stream_options": {"include_usage": True}}


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


@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_an_agent_on_the_openai_sdk(served):
    client = openai.OpenAI(base_url=served.base, api_key="none", default_headers={"X-Session-ID": "sdk-1"})

    def ask(messages: list[dict[str, Any]], choice: Any) -> Iterator[dict[str, Any]]:
        for chunk in client.chat.completions.create(**body(messages, choice)):
            yield chunk.model_dump()

    turns = converse(ask, "What do my notes say about plants?")
    check_conversation(turns)
    check_recorded(served.steps("sdk-1", 3), turns)


@pytest.mark.vllm
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_same_with_curl(served):
    def ask(messages: list[dict[str, Any]], choice: Any) -> Iterator[dict[str, Any]]:
        done = subprocess.run(
            ["curl", "-sSN", "--fail-with-body", f"{served.base}/chat/completions", "-H",
             "Content-Type: application/json", "-H", "X-Session-ID: curl-1", "-d", "@-"],
            input=json.dumps(body(messages, choice)), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [x[6:] for x in done.stdout.splitlines() if x.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        yield from map(json.loads, lines[:-1])

    turns = converse(ask, "Is there anything left to do?")
    check_conversation(turns)
    check_recorded(served.steps("curl-1", 3), turns)


def counted(served: Served, name: str) -> float:
    """A sample of /metrics, 0 if it is not there yet."""
    import httpx

    text = httpx.get(served.base.removesuffix("/v1") + "/metrics", timeout=10).text
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)), 0.0)


def until(served: Served, name: str, at_least: float) -> None:
    deadline = time.monotonic() + 20
    while (have := counted(served, name)) < at_least:
        assert time.monotonic() < deadline, f"{name} is {have}, not {at_least}"
        time.sleep(0.3)


@pytest.mark.vllm
@pytest.mark.timeout(1200)
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
    until(served, 'saga_notes_total{engine="0"}', applied + 2)  # two answers called a tool
    prompts = [t.usage["prompt_tokens"] for t in turns]
    rows = served.rows(lambda found: [r["prompt"] for r in found][-3:] == prompts)[-3:]
    assert len({(r["session"], r["agent"]) for r in rows}) == 1
    assert rows[0]["session"]
    assert [r["tool"] for r in rows] == [None, "read_file", "read_file"]


@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_responses_and_messages_go_on_in_one_session(served):
    client = openai.OpenAI(base_url=served.base, api_key="none")
    first = client.responses.create(model="smollm2", input="Say one word about plants, please.", temperature=0,
                                    max_output_tokens=8, extra_headers={"X-Session-ID": "responses-1"})
    told = [{"role": "user", "content": "Say one word about plants, please."},
            {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "And another one?"}]
    client.responses.create(model="smollm2", input=told, temperature=0, max_output_tokens=8,
                            extra_headers={"X-Session-ID": "responses-1"})
    assert len(served.steps("responses-1", 2)) == 2

    anthropic = pytest.importorskip("anthropic")
    other = anthropic.Anthropic(base_url=served.base.removesuffix("/v1"), api_key="none")
    given = {"name": "read_file", "description": "Read a text file.", "input_schema": TOOL["function"]["parameters"]}
    asked: list[dict[str, Any]] = [{"role": "user", "content": "Read my notes."}]
    other.messages.create(model="smollm2", max_tokens=8, system=SYSTEM, messages=asked, tools=[given],
                          extra_body={"temperature": 0}, extra_headers={"X-Session-ID": "messages-1"})
    # This endpoint does not constrain calls, and so small a model makes none that can be run: the client says it did.
    asked += [{"role": "assistant", "content": [{"type": "tool_use", "id": "call-1", "name": "read_file",
                                                 "input": {"path": "notes.txt", "lines": 10}}]},
              {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call-1",
                                            "content": FILES["notes.txt"]}]}]
    with other.messages.stream(model="smollm2", max_tokens=8, system=SYSTEM, messages=asked, tools=[given],
                               extra_body={"temperature": 0}, extra_headers={"X-Session-ID": "messages-1"}) as stream:
        for _ in stream:
            pass
    rows = served.steps("messages-1", 2)
    assert len(rows) == 2
    assert [r["tool"] for r in rows] == [None, "read_file"]
    assert rows[1]["cached"] > 0
