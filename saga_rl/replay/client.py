"""The little of the OpenAI completions API that a replay needs, streamed, with errors that say what to do."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from saga_rl.errors import UserError

QUIET_S = 900.0
"""A stream without a byte for this long counts as failed."""
LINE_BYTES = 1 << 24
"""vLLM echoes the whole prompt's ids in one line of the stream."""
LABEL = re.compile(r'(\w+)="([^"]*)"')
KEEP_S = 2.0
"""Idle connections are closed after so long: before the server does (uvicorn: 5 s), or a request could be sent into a
connection that is just being closed."""


class RequestFailed(Exception):
    """The server refused or broke off one request. `status` is 0 when the connection failed."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(f"HTTP {status}: {message}" if status else message)


@dataclass
class Reply:
    """One completion. Times are the event loop's clock; None: the server did not say."""

    sent_s: float
    first_token_s: float
    end_s: float
    output_ids: list[int] | None
    output_tokens: int
    cached_tokens: int | None
    text: str = field(repr=False, default="")


class OpenAIClient:
    """`async with OpenAIClient(url) as c: await c.complete(body)`. `url` may or may not end in /v1."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.base = url.rstrip("/").removesuffix("/v1")
        if not self.base.startswith(("http://", "https://")):
            raise UserError(f"--url {url}", "is not an http address", "write e.g. --url http://127.0.0.1:8000")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> OpenAIClient:
        self._session = aiohttp.ClientSession(
            headers=self._headers, connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S),
            read_bufsize=LINE_BYTES, timeout=aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=QUIET_S))
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("OpenAIClient is used outside `async with`")
        return self._session

    async def model(self, name: str | None) -> tuple[str, int | None]:
        """The model to ask for (`name`, or the first one served) and its longest context, if the server says."""
        try:
            async with self.http.get(f"{self.base}/v1/models", timeout=aiohttp.ClientTimeout(total=30)) as r:
                if r.status in (401, 403):
                    raise UserError(self.base, f"the server answers {r.status} to /v1/models",
                                    "pass its key with --api-key")
                if r.status != 200:
                    raise UserError(self.base, f"the server answers {r.status} to /v1/models",
                                    "give the address of an OpenAI-compatible server")
                rows = (await r.json())["data"]
        except (aiohttp.ClientError, OSError) as e:
            raise UserError(self.base, f"no server answers there ({type(e).__name__})",
                            "start one with `saga-rl serve MODEL` or correct --url") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(self.base, "/v1/models does not answer as an OpenAI server does",
                            "give the address of an OpenAI-compatible server") from None
        by_name = {row["id"]: row.get("max_model_len") for row in rows}
        if not by_name:
            raise UserError(self.base, "the server serves no model", "load one")
        if name is not None and name not in by_name:
            raise UserError(f"--model {name}", f"{self.base} does not serve it", "choose one of: " + ", ".join(by_name))
        chosen = name or next(iter(by_name))
        return chosen, by_name[chosen]

    async def _metrics(self) -> str:
        """The page /metrics; empty where there is none."""
        try:
            async with self.http.get(f"{self.base}/metrics", timeout=aiohttp.ClientTimeout(total=10)) as r:
                return await r.text() if r.status == 200 else ""
        except (aiohttp.ClientError, OSError):
            return ""

    async def block_tokens(self) -> int | None:
        """Tokens of the server's KV blocks, as vLLM says on /metrics; None where it does not."""
        for engine in await self.caches():
            if engine.get("block_size", "").isdigit():
                return int(engine["block_size"])
        return None

    async def caches(self) -> list[dict[str, str]]:
        """What each of the server's engines says of its KV cache on /metrics (vLLM's `cache_config_info`), by name;
        empty where there is no such page."""
        return [dict(LABEL.findall(line)) for line in (await self._metrics()).splitlines()
                if line.startswith("vllm:cache_config_info{")]

    async def counters(self, names: dict[str, str]) -> dict[str, float]:
        """Sums of Prometheus counters of /metrics, renamed as `names` says; empty where there is no such page."""
        out: dict[str, float] = {}
        for line in (await self._metrics()).splitlines():
            name = line.partition("{")[0].partition(" ")[0]
            if name in names:
                out[names[name]] = out.get(names[name], 0.0) + float(line.rsplit(" ", 1)[1])
        return out

    async def complete(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> Reply:
        """POST /v1/completions with streaming; raises `RequestFailed`."""
        now = asyncio.get_running_loop().time
        data = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
        sent, first, end = now(), 0.0, 0.0
        ids: list[int] | None = None
        usage: dict[str, Any] = {}
        chunks, text = 0, []
        try:
            async with self.http.post(f"{self.base}/v1/completions", data=data,
                                      headers={"Content-Type": "application/json"} | (headers or {})) as r:
                if r.status != 200:
                    raise RequestFailed(r.status, _message(await r.text()))
                async for raw in r.content:
                    line = raw.strip()
                    if not line.startswith(b"data:") or line == b"data: [DONE]":
                        continue
                    event = json.loads(line[5:])
                    if "error" in event:
                        raise RequestFailed(500, _message(line[5:].decode()))
                    usage = event.get("usage") or usage
                    for choice in event.get("choices", ()):
                        end = now()
                        first = first or end
                        chunks += 1
                        text.append(choice.get("text") or "")
                        if choice.get("token_ids") is not None:
                            ids = (ids or []) + choice["token_ids"]
        except (aiohttp.ClientError, OSError, ValueError) as e:
            raise RequestFailed(0, f"{type(e).__name__}: {e}") from None
        if not first:
            raise RequestFailed(0, "the stream ended without a token")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        produced = usage.get("completion_tokens", len(ids) if ids is not None else chunks)
        return Reply(sent, first, end, ids, produced, cached, "".join(text))


def _message(text: str) -> str:
    """The sentence inside an OpenAI error body, else its beginning."""
    try:
        err = json.loads(text)
        err = err.get("error", err)
        return str(err.get("message", err) if isinstance(err, dict) else err)[:400]
    except (ValueError, AttributeError):
        return text.strip()[:400] or "no message"
