"""A small OpenAI-compatible server with a known latency and a real prefix cache, for the replay's tests."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeServer:
    """Chained blocks of `block` tokens, least recently used out first beyond `capacity` blocks."""

    block: int = 4
    capacity: int = 1_000_000
    first_s: float = 0.01
    per_token_s: float = 0.0
    max_model_len: int | None = 1000
    token_ids: bool = True
    details: bool = True
    strict: bool = False
    says_block: bool = False
    """A page /metrics as vLLM's."""
    pools: tuple[int, ...] = ()
    """Blocks of each engine, which that page says."""
    offloading: str = "None"
    fail: Any = None
    """Called with (number of the request, body); a truthy answer is the status to fail with."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def chain(self, tokens: list[int]) -> list[int]:
        out: list[int] = []
        for i in range(len(tokens) // self.block):
            out.append(hash((out[-1] if out else 0, tuple(tokens[i * self.block:(i + 1) * self.block]))))
        return out

    def hit(self, prompt: list[int]) -> int:
        n = 0
        for key in self.chain(prompt)[:(len(prompt) - 1) // self.block]:
            if key not in self.cache:
                break
            n += self.block
        return n

    def store(self, tokens: list[int]) -> None:
        for key in self.chain(tokens):
            self.cache[key] = None
            self.cache.move_to_end(key)
        while len(self.cache) > self.capacity:
            self.cache.popitem(last=False)

    async def models(self, request: web.Request) -> web.Response:
        row: dict[str, Any] = {"id": "fake"}
        if self.max_model_len is not None:
            row["max_model_len"] = self.max_model_len
        return web.json_response({"object": "list", "data": [row]})

    async def metrics(self, request: web.Request) -> web.Response:
        lines = [f'vllm:cache_config_info{{hash_block_size="None",block_size="{self.block}",engine="{k}",'
                 f'kv_offloading_size="{self.offloading}"' + (f',num_gpu_blocks="{n}"' if n else "") + "} 1.0\n"
                 for k, n in enumerate(self.pools or (0,))]
        return web.Response(text="# TYPE vllm:cache_config_info gauge\n" + "".join(lines))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        now = asyncio.get_running_loop().time
        body = await request.json()
        known = {"model", "prompt", "temperature", "ignore_eos", "return_token_ids", "max_tokens", "stream",
                 "stream_options"}
        if self.strict and set(body) - known:
            return web.json_response({"error": {"message": f"unknown fields {sorted(set(body) - known)}"}}, status=400)
        status = self.fail(len(self.requests), body) if self.fail else None
        log = {"body": body, "header": request.headers.get("X-Session-ID"), "at": now(),
               "headers": dict(request.headers)}
        self.requests.append(log)
        if status:
            return web.json_response({"error": {"message": "made to fail"}}, status=status)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        prompt = body["prompt"]
        cached = self.hit(prompt)
        self.store(prompt)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def event(value: dict[str, Any]) -> None:
            await response.write(b"data: " + json.dumps(value).encode() + b"\n\n")

        await asyncio.sleep(self.first_s)
        output = [(sum(prompt) + i) % 97 + 1 for i in range(body["max_tokens"])]
        for token in output:
            choice: dict[str, Any] = {"index": 0, "text": "x"}
            if self.token_ids:
                choice["token_ids"] = [token]
            await event({"choices": [choice]})
            if self.per_token_s:
                await asyncio.sleep(self.per_token_s)
        self.store((prompt + output)[:-1])
        usage: dict[str, Any] = {"prompt_tokens": len(prompt), "completion_tokens": len(output)}
        if self.details:
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        await event({"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        log |= {"done": now(), "cached": cached, "output": output}
        self.running -= 1
        return response

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.completions)
        if self.says_block:
            app.router.add_get("/metrics", self.metrics)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
