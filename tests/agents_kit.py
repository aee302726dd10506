"""Agents of others against a real server on an emulated device: what the model answers is the test's word, told by a
proxy in front, since these agents cannot be made to send it. They know nothing of us.

The proxy hands every request on as it came, but for the model's name and the prescribed answer.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web
from live_kit import LIMIT_S, Server, free_port, until

GENERATES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{% for c in m.get('tool_calls') or [] %}<tool_call>{{ c['function']['name'] }} "
    "{{ c['function']['arguments'] if c['function']['arguments'] is string else c['function']['arguments'] | tojson }}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPPED = ("host", "content-length", "transfer-encoding", "connection", "accept-encoding")


def call(name: str, /, **arguments: Any) -> str:
    """A tool call as the served model writes it."""
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


@dataclass
class Request:
    """What an agent sent."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    text: str = field(repr=False, default="")

    @property
    def tools(self) -> list[str]:
        return [t.get("name") or t.get("function", {}).get("name", "") for t in self.body.get("tools") or ()]


Script = Callable[[Request], str]
"""What is answered."""


class Served(Server):
    """`saga-rl serve`, one engine, recording."""

    def __init__(self, folder: Path, window: int = 262_144) -> None:
        self.record = folder / "served.parquet"
        super().__init__(
            folder, "--policy", "likely", "--record", str(self.record), "--enable-prompt-tokens-details",
            "--enable-auto-tool-choice", "--tool-call-parser", "hermes", step_s=0.002, window=window,
            blocks=4 * window // 32, seqs=16, template=TEMPLATE)

    def steps(self, sessions: set[str] | None, at_least: int, but: set[str] = frozenset()) -> list[dict[str, Any]]:
        """What the engine noted of `sessions` (None: of all `but` those), once it is so many; it writes every second.
        In order of arrival."""
        def read() -> list[dict[str, Any]] | None:
            mine = [r for r in self.noted() if (r["session"] in sessions if sessions is not None else
                                                r["session"] not in but)]
            return sorted(mine, key=lambda r: r["queued"]) if len(mine) >= at_least else None

        return until(read, f"the engine notes {at_least} requests of {sessions or 'new sessions'}")

    def noted(self) -> list[dict[str, Any]]:
        """All that the engine noted so far; a line is there when its end is."""
        found = [json.loads(line) for p in sorted(Path(f"{self.record}.journal").glob("*.jsonl"))
                 for line in p.read_text().rpartition("\n")[0].splitlines()[1:]]
        return [r for r in found if "session" in r]

    def sessions(self) -> set[str]:
        """Names of all sessions that the engine noted so far."""
        return {r["session"] for r in self.noted()}


class Prescriber:
    """The proxy, in a thread of its own."""

    def __init__(self, server: str, script: Script | None = None) -> None:
        self.server, self.script = server, script
        self.asked: list[Request] = []
        self.failures: list[str] = []
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._up.wait(LIMIT_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{tail:.*}", self._serve)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", self.port).start())
        self._client = httpx.AsyncClient(base_url=self.server, timeout=2 * LIMIT_S)
        self._up.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._client.aclose())
        self._loop.run_until_complete(runner.cleanup())

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in DROPPED}
        path = request.path
        if request.method == "POST" and path in GENERATES and raw:
            body = json.loads(raw)
            asked = Request(path, {k.lower(): v for k, v in request.headers.items()}, body, raw.decode())
            self.asked.append(asked)
            body["model"] = "tiny"
            if self.script is not None:
                try:
                    body["vllm_xargs"] = {**(body.get("vllm_xargs") or {}), "saga_answer": self.script(asked)}
                except Exception as e:  # told by the test, not swallowed by the agent's retries
                    self.failures.append(repr(e))
                    return web.json_response({"error": {"message": repr(e)}}, status=400)
            raw = json.dumps(body).encode()
        upstream = self._client.build_request(request.method, request.path_qs, headers=headers, content=raw)
        answer = await self._client.send(upstream, stream=True)
        out: web.StreamResponse | None = None
        try:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in (*DROPPED, "content-encoding")}
            out = web.StreamResponse(status=answer.status_code, headers=kept)
            await out.prepare(request)
            async for part in answer.aiter_bytes():
                await out.write(part)
            if answer.status_code >= 400 and path in GENERATES:
                self.failures.append(f"{path}: {answer.status_code}")
            await out.write_eof()
            return out
        except ConnectionResetError:  # it has heard enough
            assert out is not None
            return out
        finally:
            await answer.aclose()
