"""Agents that know nothing of us, as their makers ship them: what they send is what they always send; what the model
answers is prescribed. Sessions, agents, callers and tools must be recognised as they were.

The command-line agents come by `make agents` (npm); their tests are left out where that was not done, as in CI.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:  # importing it here would only cost time
    pytest.skip("vLLM is not installed (extra serve or serve-cpu)", allow_module_level=True)
from agents_kit import Prescriber, Request, Script, Served, call
from live_kit import ENDLESS, LIMIT_S

from saga_rl.aeg.importers import import_trace

pytestmark = [pytest.mark.emulated, pytest.mark.timeout(2400)]
CLIENTS = Path(__file__).resolve().parents[1] / ".agents" / "node_modules" / ".bin"
TASK = "Look into the folder, and say which files are in it and what they are for."
UNREACHABLE = "http://127.0.0.1:9"
"""What these clients would look up elsewhere fails at once."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("agents"))
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture
def front(served: Served) -> Iterator[Prescriber]:
    proxy = Prescriber(served.url)
    try:
        yield proxy
    finally:
        proxy.close()
        assert proxy.failures == []


class Seen:
    """What the engine notes from here on."""

    def __init__(self, served: Served) -> None:
        self.served, self.before = served, served.sessions()

    def rows(self, n: int) -> list[dict[str, Any]]:
        """The first n requests of sessions that are new."""
        found = self.served.steps(None, n, self.before)
        assert len(found) == n, found
        return found


def adapter(name: str) -> ModuleType:
    """The code of docs/examples."""
    path = Path(__file__).resolve().parents[1] / "docs" / "examples" / f"session_{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def client(name: str) -> str:
    found = CLIENTS / name
    path = str(found) if found.exists() else shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: make agents")
    return path


def run(front: Prescriber, home: Path, *command: str, **env: str) -> str:
    """What a command-line client says, in an empty folder and with a home of its own."""
    work = home / "work"
    work.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ANTHROPIC", "CLAUDE", "OPENAI", "CODEX"))}
    done = subprocess.run(
        command, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        env={**kept, "HOME": str(home), "HTTPS_PROXY": UNREACHABLE, "HTTP_PROXY": UNREACHABLE,
             "NO_PROXY": "127.0.0.1,localhost", **env})
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:], front.failures)
    return done.stdout


def lengths(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(agent, prompt tokens) of each call, in order."""
    return sorted((r["agent"], r["prompt"]) for r in rows)


def history(folder: Path) -> list[tuple[int, int]]:
    """The same, of the history that the client itself wrote: one session."""
    trace = import_trace(None, folder)
    assert trace.n_sessions == 1
    return sorted(zip(trace.steps.agent.tolist(), trace.steps.prompt_tokens.tolist(), strict=True))


def results(request: Request) -> int:
    """Tool results that the prompt shows."""
    return sum(request.text.count(mark) for mark in ('"tool_result"', '"function_call_output"', '"role": "tool"',
                                                     '"role":"tool"'))


# ---------------------------------------------------------------------- command-line clients
def test_claude_code(served: Served, front: Prescriber, tmp_path: Path) -> None:
    """A command, then a sub-agent that runs one: its session and its agents by the names that it sends."""
    program, seen = client("claude"), Seen(served)

    def script(request: Request) -> str:
        sub = "x-claude-code-agent-id" in request.headers
        n = results(request)
        if n == 0:
            return call("Bash", command=f"echo {'sub' if sub else 'main'}", description="say it")
        if sub:
            return "There is nothing in it."
        if n > 1:
            return "All done."
        return call("Agent", description="look", prompt=TASK, subagent_type="general-purpose")

    front.script = script
    said = run(front, tmp_path, program, "-p", "What is here?", "--dangerously-skip-permissions",
               ANTHROPIC_BASE_URL=front.url, ANTHROPIC_AUTH_TOKEN="none", ANTHROPIC_MODEL="tiny", IS_SANDBOX="1",
               CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1", DISABLE_AUTOUPDATER="1")
    assert "All done." in said
    rows = seen.rows(5)
    assert {r["session"] for r in rows} == {front.asked[0].headers["x-claude-code-session-id"]}
    assert [(r["agent"], r["caller"], r["tool"]) for r in rows] == [
        (0, -1, None), (0, -1, "Bash"), (1, 0, None), (1, 0, "Bash"), (0, -1, "Agent")]
    assert history(tmp_path / ".claude") == lengths(rows)
    assert all(after["cached"] >= before["prompt"] // 32 * 32 > 1000 for before, after in
               ((rows[0], rows[1]), (rows[1], rows[4]))), "the billing line, if any, costs no cache"


def codex(front: Prescriber, home: Path, more: str = "") -> str:
    """What it says, asked for once; more: lines for the end of its configuration."""
    program, settings = client("codex"), home / ".codex"
    settings.mkdir()
    (settings / "config.toml").write_text(
        'model = "tiny"\nmodel_provider = "local"\n[model_providers.local]\nname = "local"\n'
        f'base_url = "{front.url}/v1"\nwire_api = "responses"\n{more}')
    return run(front, home, program, "exec", "--skip-git-repo-check", "-s", "danger-full-access", "What is here?",
               CODEX_HOME=str(settings))


def test_codex(served: Served, front: Prescriber, tmp_path: Path) -> None:
    seen = Seen(served)
    front.script = lambda r: call("exec_command", cmd="echo it") if not results(r) else "All done."
    assert "All done." in codex(front, tmp_path)
    rows = seen.rows(2)
    assert {r["session"] for r in rows} == {front.asked[0].headers["session-id"]}
    assert [(r["agent"], r["tool"]) for r in rows] == [(0, None), (0, "exec_command")]


def test_codex_sub_agents(served: Served, front: Prescriber, tmp_path: Path) -> None:
    """The main agent starts one and waits for it; that one does the same; the last runs a command. The two before it
    go on at the same time, so that only each agent's own order is certain."""
    seen, threads = Seen(served), list[str]()

    def script(request: Request) -> str:
        thread, n = request.headers["thread-id"], results(request)
        if thread not in threads:
            threads.append(thread)
        depth = threads.index(thread)
        if depth == 2:
            return call("exec_command", cmd="echo it") if n == 0 else "There is nothing in it."
        if n == 0:
            return call("multi_agent_v1__spawn_agent", message=f"{TASK} You are at depth {depth + 1}.")
        if n == 1:
            started = next(i["output"] for i in request.body["input"] if i.get("type") == "function_call_output")
            return call("multi_agent_v1__wait_agent", targets=[json.loads(started)["agent_id"]], timeout_ms=600_000)
        return "All done."

    front.script = script
    assert "All done." in codex(front, tmp_path, "[agents]\nmax_depth = 2\n")
    rows = seen.rows(8)
    assert {r["session"] for r in rows} == {threads[0]} and len(threads) == 3
    waits = [None, "spawn_agent", "wait_agent"]
    for agent, tools in enumerate((waits, waits, [None, "exec_command"])):
        mine = [r for r in rows if r["agent"] == agent]
        assert [(r["caller"], r["tool"]) for r in mine] == [(agent - 1, tool) for tool in tools]
    assert history(tmp_path / ".codex") == lengths(rows)


def asks(front: Prescriber, name: str, command: str, agent: str, /, **arguments: Any) -> str:
    """The main agent runs a command, then an agent that runs one too. name: of the client; command, agent: of the
    tools; arguments: what the second takes beside the task. What has no tools gets a title. Returns what to ask for.
    The task is another for each client: a line that two sessions said is nobody's."""
    begins = f"What is here, {name}?"

    def script(request: Request) -> str:
        n, main = results(request), begins in request.text
        if not request.tools:
            return "A title"
        if n == 0:
            return call(command, command=f"echo {'main' if main else 'sub'}", description="say it")
        if not main:
            return "There is nothing in it."
        task = f"{TASK} Do it as {name} does."
        return call(agent, description="look", prompt=task, **arguments) if n == 1 else "All done."

    front.script = script
    return begins


def steps_of_asks(rows: list[dict[str, Any]], command: str, agent: str, sub: int = 1) -> None:
    """What `asks` leads to, as the engine noted it."""
    assert len({r["session"] for r in rows}) == 1
    assert [(r["agent"], r["caller"], r["tool"]) for r in rows] == [
        (0, -1, None), (0, -1, command), (sub, 0, None), (sub, 0, command), (0, -1, agent)]


def test_qwen_code(served: Served, front: Prescriber, tmp_path: Path) -> None:
    """It says nothing of its session."""
    program, seen = client("qwen"), Seen(served)
    asked = asks(front, "Qwen", "run_shell_command", "agent", subagent_type="general-purpose")
    said = run(front, tmp_path, program, "--yolo", "--auth-type", "openai", asked, HTTP_PROXY="",
               HTTPS_PROXY="", OPENAI_API_KEY="none", OPENAI_BASE_URL=f"{front.url}/v1", OPENAI_MODEL="tiny")
    assert "All done." in said
    steps_of_asks(seen.rows(5), "run_shell_command", "agent")


def test_copilot(served: Served, front: Prescriber, tmp_path: Path) -> None:
    """With a provider of one's own, which asks for no account; it says nothing of its session."""
    program, seen = client("copilot"), Seen(served)
    asked = asks(front, "Copilot", "bash", "task", name="look", agent_type="general-purpose")
    said = run(front, tmp_path, program, "-p", asked, "--allow-all-tools", COPILOT_MODEL="tiny",
               COPILOT_PROVIDER_BASE_URL=f"{front.url}/v1", COPILOT_OFFLINE="true")
    assert "All done." in said
    steps_of_asks(seen.rows(5), "bash", "task")


def test_opencode(served: Served, front: Prescriber, tmp_path: Path) -> None:
    """A title is made at the side, under the session's name; a sub-agent's session names its parent."""
    program, seen = client("opencode"), Seen(served)
    provider = {"npm": "@ai-sdk/openai-compatible", "options": {"baseURL": f"{front.url}/v1", "apiKey": "none"},
                "models": {"tiny": {"limit": {"context": 200_000, "output": 4096}}}}
    settings = tmp_path / ".config" / "opencode" / "opencode.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"model": "local/tiny", "small_model": "local/tiny", "autoupdate": False,
                                    "share": "disabled", "provider": {"local": provider}}))
    asked = asks(front, "OpenCode", "bash", "task", subagent_type="general")
    assert "All done." in run(front, tmp_path, program, "run", "--auto", asked,
                              OPENCODE_DISABLE_MODELS_FETCH="1")
    rows = seen.rows(6)
    assert {r["session"] for r in rows} == {front.asked[0].headers["x-session-id"]}
    title = min(rows, key=lambda r: r["prompt"])
    assert title["agent"] in (0, 1) and title["tool"] is None, "it begins with the main agent, before or after"
    steps_of_asks([r for r in rows if r is not title], "bash", "task", sub=2)
    exported = tmp_path / "exported"
    exported.mkdir()
    for name in {r.headers["x-session-id"] for r in front.asked}:
        (exported / f"{name}.json").write_text(run(front, tmp_path, program, "export", name))
    assert [p for _, p in history(exported)] == [r["prompt"] for r in sorted(rows, key=lambda r: r["agent"])
                                                 if r is not title]


# ---------------------------------------------------------------------- frameworks
def two_runs(script_of: str = "lookup") -> Script:
    """Two calls of a tool, whose arguments differ between runs of one task, then words."""
    count = iter(range(1000))

    def script(request: Request) -> str:
        n = results(request)
        return call(script_of, topic=f"topic {next(count)}") if n < 2 else f"All done {next(count)}."

    return script


def check_two_runs(rows: list[dict[str, Any]]) -> None:
    """Two sessions of three steps, which nobody named."""
    by: dict[str, list[dict[str, Any]]] = {}
    for r in rows:
        by.setdefault(r["session"], []).append(r)
    assert sorted(map(len, by.values())) == [3, 3], rows
    for mine in by.values():
        assert [(r["agent"], r["tool"]) for r in mine] == [(0, None), (0, "lookup"), (0, "lookup")]
        assert mine[0]["prompt"] < mine[1]["prompt"] < mine[2]["prompt"]


@pytest.mark.parametrize("api", ["responses", "chat"])
def test_openai_agents_sdk(served: Served, front: Prescriber, api: str) -> None:
    """Two runs of one task at once, then a sub-agent's, named as the adapter of the docs does."""
    agents = pytest.importorskip("agents", reason="extra agents")
    openai = pytest.importorskip("openai")
    agents.set_tracing_disabled(True)
    seen = Seen(served)
    front.script = two_runs()

    @agents.function_tool
    def lookup(topic: str) -> str:
        """Look something up."""
        return f"nothing about {topic}"

    async def go() -> list[str]:
        connection = openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none")
        kind = agents.OpenAIResponsesModel if api == "responses" else agents.OpenAIChatCompletionsModel
        model = kind(model="tiny", openai_client=connection)
        agent = agents.Agent(name="finder", instructions="You find things.", tools=[lookup], model=model)
        found = await asyncio.gather(*(agents.Runner.run(agent, TASK) for _ in range(2)))
        check_two_runs(await asyncio.to_thread(seen.rows, 6))
        named = adapter("openai_agents").named
        for config in (named(f"{api}-7"), named(f"{api}-8", parent=f"{api}-7")):
            await agents.Runner.run(agent, "Another task.", run_config=config)
        await connection.close()
        return [r.final_output for r in found]

    assert all("All done" in text for text in asyncio.run(go()))
    rows = served.steps({f"{api}-7"}, 6)
    assert [(r["agent"], r["caller"]) for r in rows] == [(0, -1)] * 3 + [(1, 0)] * 3


def test_an_agent_as_a_tool_of_another_is_of_its_session(served: Served, front: Prescriber) -> None:
    agents = pytest.importorskip("agents", reason="extra agents")
    openai = pytest.importorskip("openai")
    agents.set_tracing_disabled(True)
    seen = Seen(served)

    def script(request: Request) -> str:
        if "You explore." in request.text:
            return "There is nothing in it."
        return call("explore", input=TASK) if not results(request) else "All done."

    front.script = script

    async def go() -> str:
        connection = openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none")
        model = agents.OpenAIResponsesModel(model="tiny", openai_client=connection)
        explorer = agents.Agent(name="explorer", instructions="You explore.", model=model)
        lead = agents.Agent(name="lead", instructions="You lead.", model=model,
                            tools=[explorer.as_tool("explore", "Explore.")])
        found = await agents.Runner.run(lead, "What is here?")
        await connection.close()
        return str(found.final_output)

    assert asyncio.run(go()) == "All done."
    rows = seen.rows(3)
    assert len({r["session"] for r in rows}) == 1
    assert [(r["agent"], r["caller"], r["tool"]) for r in rows] == [(0, -1, None), (1, 0, None), (0, -1, "explore")]


def test_langgraph(served: Served, front: Prescriber) -> None:
    """Two runs of one task at once; then a thread whose name the adapter of the docs sends."""
    adapters = adapter("langgraph")
    prebuilt = pytest.importorskip("langgraph.prebuilt", reason="extra agents")
    chat = pytest.importorskip("langchain_openai", reason="extra agents")
    seen = Seen(served)
    front.script = two_runs()

    def lookup(topic: str) -> str:
        """Look something up."""
        return f"nothing about {topic}"

    async def go() -> None:
        model = chat.ChatOpenAI(model="tiny", base_url=f"{front.url}/v1", api_key="none")
        graph = prebuilt.create_react_agent(model, [lookup], prompt="You find things.")
        asked = {"messages": [("user", f"LangGraph: {TASK}")]}
        await asyncio.gather(*(graph.ainvoke(asked) for _ in range(2)))
        check_two_runs(await asyncio.to_thread(seen.rows, 6))
        await adapters.langgraph_agent(model, [lookup]).ainvoke(asked, {"configurable": {"thread_id": "thread-7"}})

    asyncio.run(go())
    assert len(served.steps({"thread-7"}, 3)) == 3


# ---------------------------------------------------------------------- SDKs
def test_anthropic_sdk(served: Served, front: Prescriber) -> None:
    anthropic = pytest.importorskip("anthropic")
    seen = Seen(served)
    front.script = two_runs()
    connection = anthropic.Anthropic(base_url=front.url, api_key="none")
    tool = {"name": "lookup", "description": "Look something up.",
            "input_schema": {"type": "object", "properties": {"topic": {"type": "string"}}}}
    histories: list[list[dict[str, Any]]] = [[{"role": "user", "content": f"Anthropic: {TASK}"}] for _ in range(2)]
    for _ in range(3):  # they take turns
        for history in histories:
            with connection.messages.stream(model="tiny", max_tokens=200, system="You find things.", tools=[tool],
                                            messages=history) as stream:
                answer = stream.get_final_message()
            history.append({"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in answer.content]})
            used = [b for b in answer.content if b.type == "tool_use"]
            history.append({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": b.id, "content": "nothing"} for b in used] or "Thanks."})
    check_two_runs(seen.rows(6))


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_openai_sdk_a_client_that_leaves_and_asks_again(served: Served, front: Prescriber, api: str) -> None:
    """It leaves in the middle of the stream; the same prompt and what follows are one session."""
    openai = pytest.importorskip("openai")
    seen = Seen(served)
    connection = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    asked = [{"role": "user", "content": f"{api}: {TASK}"}]

    def ask(messages: list[dict[str, Any]], **more: Any) -> Any:
        if api == "chat":
            return connection.chat.completions.create(model="tiny", messages=messages, **more)
        if "max_tokens" in more:
            more["max_output_tokens"] = more.pop("max_tokens")
        return connection.responses.create(model="tiny", input=messages, **more)

    endless = {"stream": True, "max_tokens": ENDLESS, "extra_body": {"ignore_eos": True}}
    with ask(asked, **endless) as stream:
        next(iter(stream))
    served.until_idle()
    text = {"extra_body": {"vllm_xargs": {"saga_answer": "One thing is in it."}}, "max_tokens": 50}
    first = ask(asked, **text)
    said = first.choices[0].message.content if api == "chat" else first.output_text
    ask([*asked, {"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}], **text)
    rows = seen.rows(2)
    assert len({(r["session"], r["agent"]) for r in rows}) == 1
    assert rows[1]["prompt"] > rows[0]["prompt"]
