"""The ASGI middleware: reads what a request says of its workflow, adds it to the body, listens to the answer.

What is added stands at the end of the client's own bytes (of two equal keys the later counts), so nothing is parsed
twice or written anew. Whatever fails in here is counted and logged, and vLLM gets what the client sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from saga_rl.errors import UserError
from saga_rl.runtime.server.http import anthropic_hook
from saga_rl.runtime.server.http.decoding import NotDecoded, decoded
from saga_rl.runtime.server.http.dialects import MESSAGES, PATHS
from saga_rl.runtime.server.http.notes import Notes
from saga_rl.runtime.server.http.plan import Plan, Planner, doubled, splice, utf8
from saga_rl.runtime.server.http.reading import LARGE, read
from saga_rl.runtime.server.http.settings import Settings, Tenants, read_settings

log = logging.getLogger("vllm.saga_rl")
Message = Any
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class SagaMiddleware:
    """settings, send_notes, prove: for tests; else they come from the app's state at its first request. send_notes,
    prove: async functions that take a list of notes, and what proves a tenant."""

    def __init__(self, app: Any, settings: Settings | None = None, send_notes: Any = None,
                 keys: list[str] | None = None, prove: Any = None) -> None:
        self.app = app
        self._prove = prove
        self._agreeing = asyncio.Lock()
        self.counts: Counter[str] = Counter()
        self.planner: Planner | None = None
        self.notes: Notes | None = None
        self._broken = False
        if settings is not None:
            self._begin(settings, keys or [], send_notes)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not self._ready(scope):
            return await self.app(scope, receive, send)
        assert self.planner is not None
        tenants = self.planner.tenants
        if tenants.strict:
            if (name := doubled(scope.get("headers", ()), (b"authorization", tenants.header))) is not None:
                self.counts["doubled headers"] += 1
                return await _refuse(scope, receive, send, f"two {name.decode('latin-1')} headers say different things")
            await self._agree()
        dialect = self._dialect(scope)
        if dialect is None:
            return await self.app(scope, receive, send)
        held: list[Message] = []
        body, whole = b"", False
        if not self._too_long(scope):
            held, body, whole = await self._read(receive)
        if whole and body:
            try:
                plain = await self._decoded(scope, body)
            except NotDecoded as e:
                self.counts["bodies not decoded"] += 1
                return await _refuse(scope, receive, send, str(e), e.status)
            if plain is not None:
                self.counts["bodies decoded"] += 1
                scope, body = {**scope, "headers": plain[0]}, plain[1]
                held = [{"type": "http.request", "body": body, "more_body": False}]
        plan = await self._plan(dialect, scope, body, whole)
        if plan is None:
            return await self.app(scope, _again(held, receive), send)
        token = anthropic_hook.EXTRA.set(plan.extra) if dialect == MESSAGES else None
        message = {"type": "http.request", "body": plan.body, "more_body": False}
        try:
            await self.app({**scope, "headers": plan.headers}, _again([message], receive), self._listen(plan, send))
        finally:
            if token is not None:
                anthropic_hook.EXTRA.reset(token)
            self._done(plan)

    # ------------------------------------------------------------------ start
    def _begin(self, settings: Settings, keys: list[str], send_notes: Any) -> None:
        self.planner = Planner(settings, Tenants(settings, keys), self.counts)
        if settings.notes and send_notes is not None:
            self.notes = Notes(send_notes, self.counts)

    async def _agree(self) -> None:
        """Tell the engines, once and ahead of the first request, what proves a tenant. Until one has answered it is
        asked again with the next request."""
        if self._prove is None:
            return
        async with self._agreeing:
            prove = self._prove
            if prove is None:
                return
            assert self.planner is not None
            try:
                wrong = [a["error"] for a in await prove(self.planner.tenants.proof_key) if "error" in a]
            except Exception as e:
                wrong = [f"{type(e).__name__}: {e}"]
            if not wrong:
                self._prove = None
                return
            self.counts["proofs not agreed"] += 1
            if self.counts["proofs not agreed"] in (1, 10, 100, 1000):
                log.error("saga-rl: an engine does not know what proves a tenant, and believes whoever names one: %s",
                          wrong[0])

    def _ready(self, scope: Any) -> bool:
        if self.planner is None and not self._broken:
            try:
                self._from_app(scope["app"].state)
            except Exception as e:
                self._broken = True
                what = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
                log.error("saga-rl: workflows are not read from HTTP: %s", what)
        return self.planner is not None

    def _from_app(self, state: Any) -> None:
        from saga_rl.runtime.server import control
        from saga_rl.runtime.server.app import api_keys

        async def send_notes(notes: list[dict[str, Any]]) -> None:
            answers = await control.everywhere(state.engine_client, "notes", {"notes": notes})
            self.counts["notes unanswered"] += sum("error" in a for a in answers)
            self.counts["notes applied"] += sum(int(a.get("applied", 0)) for a in answers)

        async def prove(key: str) -> list[dict[str, Any]]:
            return await control.everywhere(state.engine_client, "prove", {"key": key})

        anthropic_hook.install()
        self._prove = prove
        settings = read_settings(state.vllm_config.additional_config)
        self._begin(settings, api_keys(getattr(state, "args", None)), send_notes)
        state.saga_http = self.counts

    # ------------------------------------------------------------------ one request
    def _dialect(self, scope: Any) -> str | None:
        if scope["type"] != "http" or scope.get("method") != "POST":
            return None
        path, root = scope.get("path", ""), scope.get("root_path", "")
        return PATHS.get(path[len(root):] if root and path.startswith(root) else path)

    def _too_long(self, scope: Any) -> bool:
        """Whether its length stands above what is read, and nobody's tenant depends on reading it."""
        assert self.planner is not None
        if self.planner.tenants.strict or self.planner.settings.cache_salt:
            return False
        given = next((v for k, v in scope.get("headers", ()) if k.lower() == b"content-length"), b"0")
        return given.isdigit() and len(given) < 20 and int(given) > self.planner.settings.most_bytes

    async def _read(self, receive: Receive) -> tuple[list[Message], bytes, bool]:
        """The messages of a body, its bytes, and whether it is whole. Stops where it grows too long to be read, unless
        tenants must be told apart: then it is held as vLLM itself would hold it."""
        assert self.planner is not None
        strict = self.planner.tenants.strict or self.planner.settings.cache_salt
        held: list[Message] = []
        size = 0
        while True:
            message = await receive()
            held.append(message)
            if message["type"] != "http.request":
                return held, b"", False
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                return held, b"".join(m.get("body", b"") for m in held), True
            if size > self.planner.settings.most_bytes and not strict:
                return held, b"", False

    async def _decoded(self, scope: Any, body: bytes) -> tuple[list[tuple[bytes, bytes]], bytes] | None:
        """Outside the loop, since a small one may become long."""
        assert self.planner is not None
        headers = scope.get("headers", ())
        if not any(k.lower() == b"content-encoding" for k, _ in headers):
            return None
        return await _outside(decoded, headers, body, self.planner.settings.most_bytes)

    async def _plan(self, dialect: str, scope: Any, body: bytes, whole: bool) -> Plan | None:
        assert self.planner is not None
        if not whole:
            self.counts["bodies not read"] += 1
            return None
        headers, large, reading = scope.get("headers", ()), len(body) > LARGE, None
        try:
            if large and len(body) <= self.planner.settings.most_bytes:
                self.counts["bodies read outside the loop"] += 1
                body = utf8(body)
                reading = await _outside(read, dialect, body)
            plan = self.planner.plan(dialect, headers, body, reading)
            if plan is not None and large:
                await _outside(splice, plan)
            return plan
        except Exception as e:
            self._failed("request", e)
        try:
            plan = self.planner.blind(dialect, headers, body)
            if plan is not None and large:
                splice(plan)
            return plan
        except Exception as e:
            self._failed("tenant", e)
            return None

    def _listen(self, plan: Plan, send: Send) -> Send:
        async def listening(message: Message) -> None:
            await send(message)
            try:
                if message["type"] == "http.response.body":
                    plan.tap.body(message.get("body", b""), not message.get("more_body", False))
                elif message["type"] == "http.response.start":
                    plan.tap.start(message)
            except Exception as e:
                self._failed("answer", e)

        return listening

    def _done(self, plan: Plan) -> None:
        assert self.planner is not None
        try:
            note = self.planner.done(plan)
            if note is not None and self.notes is not None:
                self.notes.post(note)
        except Exception as e:
            self._failed("end", e)

    def _failed(self, what: str, e: Exception) -> None:
        name = f"failed/{what} {type(e).__name__}"
        self.counts[name] += 1
        if self.counts[name] in (1, 10, 100, 1000) or self.counts[name] % 10_000 == 0:
            log.exception("saga-rl: http %s failed (%d times so far)", what, self.counts[name], exc_info=e)


async def _outside(work: Callable[..., Any], *args: Any) -> Any:
    """`work(*args)`, in a thread that reads bodies."""
    return await asyncio.get_running_loop().run_in_executor(_readers(), work, *args)


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, thread_name_prefix="saga-rl reader")


def _again(messages: list[Message], receive: Receive) -> Receive:
    """`messages` first, then what comes."""
    waiting = list(reversed(messages))

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _refuse(scope: Any, receive: Receive, send: Send, message: str, status: int = 400) -> None:
    from starlette.responses import JSONResponse
    from starlette.websockets import WebSocketClose

    if scope["type"] == "websocket":
        return await WebSocketClose(1008, message)(scope, receive, send)
    error = {"message": message, "type": "BadRequestError", "code": status}
    await JSONResponse({"error": error}, status)(scope, receive, send)
