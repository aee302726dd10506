"""Servers on emulated devices: real vLLM; what it answers, how long a step takes and what breaks is the test's word.

Nothing here decides by a deadline: what a test waits for either happens or, after `LIMIT_S`, never does.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (extra serve or serve-cpu)")
import httpx
import psutil

from saga_rl.replay.tiny_model import build_tiny_model
from saga_rl.runtime.config.emulated import Settings

LIMIT_S = 300.0
"""What has not happened by then never does, however busy the machine."""
START_S = 900.0
"""The same for the start of a server: half a minute on a quiet machine."""
SAGA = [sys.executable, str(Path(sys.executable).with_name("saga-rl"))]
ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1",
       "VLLM_LOGGING_LEVEL": "WARNING", "SAGA_RL_CHECK": "log"}
BLOCK = 32
WINDOW = 65_536
ENDLESS = 60_000
"""Tokens of an answer that is not over before the test is: five minutes of steps, or more."""


def until(look: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """The first true answer of `look`; fails if there is none."""
    end = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < end, f"it never happened: {what} (last: {found!r})"
        time.sleep(0.1)
    return found


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def profile(folder: Path, step_s: float, kv_tokens: int = 2 * WINDOW) -> Path:
    """A cost profile of which every step takes `step_s` seconds, whatever is in it."""
    path = folder / "device.json"
    path.write_text(json.dumps({"name": "as-the-test-says", "base_s": step_s, "per_prefill_token_s": 1e-9,
                                "per_kv_token_s": 0.0, "kv_tokens": kv_tokens}))
    return path


class Server:
    """A server process on emulated devices, `saga-rl serve` or (`plain`) vLLM's own; `stop` ends it as an operator
    would. step_s: seconds of every step of a device; blocks: KV pool of one; key: the server's and its admin key, sent
    with every request."""

    def __init__(self, folder: Path, *flags: str, step_s: float = 0.005, window: int = WINDOW, blocks: int = 4096,
                 seqs: int = 4, key: str | None = None, plain: bool = False, template: str | None = None) -> None:
        self.port, self.log = free_port(), folder / "log"
        self.url = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        model = str(build_tiny_model(folder / "model", layers=1, hidden=64, max_len=window))
        if template is not None:
            path = Path(model, "tokenizer_config.json")
            path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
        device = Settings(str(profile(folder, step_s)), kv_tokens=blocks * BLOCK)
        start = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model] if plain else [
            *SAGA, "serve", model]
        if key is not None:
            flags = (*flags, "--api-key", key)
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [*start, "--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", "tiny",
                 "--max-model-len", str(window), "--block-size", str(BLOCK), "--max-num-seqs", str(seqs), *flags],
                env={**ENV, "SAGA_RL_EMULATE": device.value(), **({} if key is None else {"SAGA_RL_ADMIN_KEY": key})},
                stdout=out, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True)
        self.headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=self.url, timeout=LIMIT_S, headers=self.headers)

    # ------------------------------------------------------------------ its life
    def wait(self) -> None:
        """Return when it answers."""
        def up() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            return self.health() == 200

        until(up, f"the server starts: {self.log}", START_S)

    def health(self) -> int:
        """Status of /health, 0 if nobody answers."""
        try:
            return self.http.get("/health").status_code
        except httpx.TransportError:
            return 0

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Ask it to end; returns its status. Fails if anything of it is left."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            code = self.process.wait(LIMIT_S)
            until(lambda: not self.processes(), "all its processes end")
            return code
        finally:
            for p in self.processes():
                p.kill()

    def processes(self) -> list[psutil.Process]:
        """What lives of it: its session, by number."""
        out = []
        for p in psutil.process_iter():
            try:
                if os.getsid(p.pid) == self.process.pid and p.status() != psutil.STATUS_ZOMBIE:
                    out.append(p)
            except (ProcessLookupError, psutil.NoSuchProcess):
                pass
        return out

    def engine(self, rank: int) -> int:
        """Process number of an engine."""
        titles = {p.pid: " ".join(p.cmdline()) for p in psutil.Process(self.process.pid).children(recursive=True)}
        found = [pid for pid, title in titles.items() if f"EngineCore_DP{rank}" in title]
        assert len(found) == 1, titles
        return found[0]

    # ------------------------------------------------------------------ what it says
    def status(self) -> dict[str, Any]:
        r = self.http.get("/saga/status")
        assert r.status_code == 200, r.text
        return r.json()

    def engines(self) -> dict[int, dict[str, Any]]:
        """What the engines that live say of themselves now, by number."""
        found = {e["engine"]: e for e in self.status()["engines"]}
        assert all("requests/running" in e for e in found.values()), found
        return found

    def until_idle(self) -> dict[int, dict[str, Any]]:
        """Wait until no request is left; returns `engines`."""
        def idle() -> dict[int, dict[str, Any]] | None:
            now = self.engines()
            busy = any(e["requests/running"] + e["requests/waiting"] for e in now.values())
            return None if busy else now

        return until(idle, "no request is left")

    def figures(self) -> dict[str, float]:
        """/metrics, a sample a key."""
        text = self.http.get("/metrics").text
        return {name: float(value) for name, value in re.findall(r"^(\S+(?:\{.*\})?) (\S+)$", text, re.M)}

    def numbers(self, name: str, enough: Callable[[dict[str, Any]], bool] = bool) -> dict[str, Any]:
        """The file of counters `name` below the folder of `--metrics` beside the log, once it holds `enough`."""
        path = self.log.with_name("numbers") / f"{name}.json"

        def read() -> dict[str, Any] | None:
            have = json.loads(path.read_text()) if path.is_file() else {}
            return have if have and enough(have) else None

        return until(read, f"{name}.json says it")

    # ------------------------------------------------------------------ what it is asked
    def complete(self, prompt: str | Sequence[int], tokens: int = 4, **more: Any) -> httpx.Response:
        return self.http.post("/v1/completions", json={"model": "tiny", "prompt": prompt, "max_tokens": tokens,
                                                       "temperature": 0, "ignore_eos": True, **more})

    async def stream(self, client: httpx.AsyncClient, session: str, tokens: int, *, rank: int | None = None,
                     first: asyncio.Event | None = None, **xargs: Any) -> tuple[int, str]:
        """(tokens of the whole answer, 0 if its end never came; the error that came instead). first: set when the
        answer has begun."""
        body = {"model": "tiny", "prompt": f"{session} says something " * 12, "max_tokens": tokens, "stream": True,
                "temperature": 0, "ignore_eos": True, "session_id": session, "vllm_xargs": xargs,
                "stream_options": {"include_usage": True}}
        headers = self.headers | ({} if rank is None else {"X-data-parallel-rank": str(rank)})
        n, error = 0, ""
        async with client.stream("POST", f"{self.url}/v1/completions", json=body, headers=headers,
                                 timeout=2 * LIMIT_S) as answer:
            if answer.status_code != 200:
                return 0, (await answer.aread()).decode()
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    error = json.dumps(chunk["error"]) if "error" in chunk else error
                    n = (chunk.get("usage") or {}).get("completion_tokens", n)
                    if first is not None and chunk.get("choices"):
                        first.set()
        return n, error


class Crowd:
    """Clients at once, in one event loop: `begin` starts an answer, `closing` ends those that have no end."""

    def __init__(self, server: Server, client: httpx.AsyncClient) -> None:
        self.server, self.client = server, client
        self._held: list[asyncio.Task] = []

    def ask(self, session: str, tokens: int, **how: Any) -> asyncio.Task:
        return asyncio.ensure_future(self.server.stream(self.client, session, tokens, **how))

    async def hold(self, *sessions: str, rank: int | None = None) -> list[asyncio.Task]:
        """Answers without an end, all of which have begun."""
        began = [asyncio.Event() for _ in sessions]
        tasks = [self.ask(s, ENDLESS, rank=rank, first=e) for s, e in zip(sessions, began, strict=True)]
        self._held += tasks
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*(e.wait() for e in began))
        return tasks

    async def until(self, look: Callable[[], Any], what: str) -> Any:
        return await asyncio.to_thread(until, look, what)

    async def close(self) -> None:
        """The clients of answers without an end leave."""
        for task in self._held:
            task.cancel()
        await asyncio.gather(*self._held, return_exceptions=True)
        self._held.clear()


def together(server: Server, scene: Callable[[Crowd], Any], kept_alive: int | None = None) -> Any:
    """What `scene` returns, with a crowd of clients that all leave at its end. kept_alive: connections that may be
    used again, None = all; 0 = each request has its own."""
    async def go() -> Any:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=kept_alive)
        async with httpx.AsyncClient(limits=limits) as client:
            crowd = Crowd(server, client)
            try:
                return await scene(crowd)
            finally:
                await crowd.close()

    return asyncio.run(go())
