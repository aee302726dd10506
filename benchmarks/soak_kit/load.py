"""The load of a soak: sessions that come as a Poisson stream, and what became of each of their requests.

Growing contexts, tools of three kinds, four tenants; one session in ten is broken off in mid-stream, one in three never
says that it ended. Times are the device's seconds; `scale` of them pass in one real second.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from typing import Any

import aiohttp

MODEL = "soak"
CONTEXT = 2048
TOOLS = {"bash": 2.0, "search": 8.0, "human": 60.0}
"""Mean seconds of each."""
TOKENS = 16
"""Of an answer."""
ANSWERED, UNBEGUN, BROKEN, LEFT = "answered", "failed unbegun", "broken", "broken off"
"""What becomes of a request: answered to its end; failed before the first token; failed after it; left by its client.
"""
LIMIT_S = 600.0
"""A request without an end for so long (real seconds) is lost."""
RETRIES = 2
"""As the OpenAI and Anthropic SDKs do when a connection closes before an answer."""


class Load:
    """Sends sessions and counts what came of their requests. retries: how often a request is sent again whose
    connection closed before its answer began, 0 = never. tools: mean seconds by name; tokens: of an answer."""

    def __init__(self, url: str, key: str, per_s: float, seed: int, scale: float = 1.0, retries: int = 0,
                 tools: Mapping[str, float] = TOOLS, tokens: int = TOKENS) -> None:
        self.url, self.key, self.per_s, self.scale, self.retries = url, key, per_s, scale, retries
        self.rng, self.tools, self.tokens = random.Random(seed), tools, tokens
        self.counts = dict.fromkeys(("sessions", "requests", ANSWERED, UNBEGUN, BROKEN, LEFT, "sent again"), 0)
        self.alive = 0
        self.late_s: list[float] = []
        """By how much later than drawn each session began (real seconds): a machine that keeps up has small ones."""
        self.answer_s: list[float] = []
        """From the request to the end of its answer, in the device's seconds."""
        self.errors: list[str] = []
        self.tenants = 4

    async def run(self, until: float) -> None:
        """New sessions until `until` (monotonic, real s); returns when the last one has ended."""
        connector = aiohttp.TCPConnector(limit=0, force_close=self.retries > 0)  # each request draws its server
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT_S), connector=connector,
                                         headers={"Authorization": f"Bearer {self.key}"}) as http:
            tasks: set[asyncio.Task[None]] = set()
            due = time.monotonic()
            while (due := due + self.rng.expovariate(self.per_s) / self.scale) < until:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                self.late_s.append(time.monotonic() - due)
                self.counts["sessions"] += 1
                task = asyncio.create_task(self.session(http, self.counts["sessions"]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    async def session(self, http: aiohttp.ClientSession, number: int) -> None:
        rng = random.Random(f"{self.rng.random()}-{number}")
        tokens = [rng.randrange(10, 500) for _ in range(rng.randrange(100, 500))]
        steps, tell, stop_at = rng.randrange(1, 9), rng.random() < 2 / 3, rng.random() < 0.1
        tool: str | None = None
        self.alive += 1
        try:
            for k in range(steps):
                last = k == steps - 1
                hints: dict[str, Any] = {"saga_tenant": f"team-{number % self.tenants}",
                                         "saga_final": int(last and tell)}
                if tool is not None:
                    hints["saga_tool"] = tool
                body = {"model": MODEL, "prompt": tokens, "max_tokens": self.tokens, "ignore_eos": True, "stream": True,
                        "session_id": f"soak-{number}", "vllm_xargs": hints}
                if await self.request(http, body, stop_at and last) == LEFT:
                    return
                tokens = tokens + [rng.randrange(10, 500) for _ in range(rng.randrange(20, 200))]
                if len(tokens) > CONTEXT - 64:
                    return
                tool = rng.choice(list(self.tools))
                if not last:
                    await asyncio.sleep(rng.expovariate(1 / self.tools[tool]) / self.scale)
        finally:
            self.alive -= 1

    async def request(self, http: aiohttp.ClientSession, body: dict[str, Any], break_off: bool = False) -> str:
        """What became of one request, counted."""
        self.counts["requests"] += 1
        began = time.monotonic()
        for attempt in range(self.retries + 1):
            what, closed = await self._once(http, body, break_off)
            if what != UNBEGUN or not closed or attempt == self.retries:
                break
            self.counts["sent again"] += 1
        self.counts[what] += 1
        if what == ANSWERED:
            self.answer_s.append((time.monotonic() - began) * self.scale)
        return what

    async def _once(self, http: aiohttp.ClientSession, body: dict[str, Any], break_off: bool) -> tuple[str, bool]:
        """(what became of it, whether its connection closed)."""
        begun = False
        try:
            async with http.post(f"{self.url}/v1/completions", json=body) as answer:
                if answer.status != 200:
                    self.errors.append(f"{answer.status} {(await answer.text())[:300]}")
                    return UNBEGUN, False
                async for line in answer.content:
                    if not line.startswith(b"data:"):
                        continue
                    if line.strip() == b"data: [DONE]":
                        return ANSWERED, False
                    chunk = json.loads(line[5:])
                    if "error" in chunk:
                        self.errors.append(str(chunk["error"])[:300])
                        return BROKEN if begun else UNBEGUN, False
                    begun = True
                    if break_off:
                        return LEFT, False
            self.errors.append("the stream ended without its end")
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            self.errors.append(f"{type(e).__name__} {e}"[:300])
        return BROKEN if begun else UNBEGUN, True
