"""The operator's routes below `/saga/`: what is in force, another policy without a restart, and the kill switch.

All need an admin key: every tenant has one of the server's API keys, and what is changed here holds for all. Where
there is no admin key they answer 403, but for the status to a client of this machine. A change is whole or not at all:
the checkpoint is read and checked here, then by every engine (which must find the same weights), and engines that
changed go back if one of them could not.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from saga_rl.errors import UserError
from saga_rl.policies.base import PolicySet
from saga_rl.policies.presets import PRESETS
from saga_rl.runtime.config import versions
from saga_rl.runtime.config.emulated import active
from saga_rl.runtime.config.settings import STOCK, SagaConfig
from saga_rl.runtime.engine.policy_change import Spec, hashes, load, read_spec, shown
from saga_rl.runtime.server import control, events
from saga_rl.runtime.server.poller import Poller

log = logging.getLogger("vllm.saga_rl")
MOST_BYTES = 65_536
"""Largest body that is read."""
CHANGE_S = 60.0
"""An engine that has not changed its policy within so long keeps, or goes back to, the old one."""
ADMIN_VARIABLE = "SAGA_RL_ADMIN_KEY"
LOOPBACK = ("127.0.0.1", "::1")


def admin_digests(config: SagaConfig) -> list[bytes]:
    """SHA-256 of the keys that open these routes: the configuration's, and `ADMIN_VARIABLE`'s (commas between them)."""
    given = (key.strip() for key in os.environ.get(ADMIN_VARIABLE, "").split(","))
    return [*(bytes.fromhex(key) for key in config.admin_keys),
            *(hashlib.sha256(key.encode()).digest() for key in given if key)]


def require_below(spec: Spec, root: str | None) -> None:
    """`UserError` if a checkpoint of `spec` does not lie below the folder `root`, wherever links lead."""
    parts = [spec] if isinstance(spec, str) else [p[8:] for p in spec.values() if p.startswith("learned:")]
    for part in parts:
        if part == STOCK or part in PRESETS:
            continue
        if root is None:
            raise UserError("policy", "is a folder, and no policy_root is configured",
                            'name a preset, or start the server with {"saga": {"policy_root": FOLDER}}')
        if not Path(part).resolve().is_relative_to(Path(root).resolve()):
            raise UserError("policy", "is a folder outside the configured policy_root", "put the checkpoint below it")


class Operator:
    """One API server's view of the policies in force. placement: its `Placement`, None with one engine."""

    def __init__(self, engine_client: Any, config: SagaConfig, poller: Poller, placement: Any = None) -> None:
        self.engine_client, self.config, self.poller, self.placement = engine_client, config, poller, placement
        self.keys = admin_digests(config)
        self.spec: Spec = config.policy
        self.policies = load(config.policy)
        self._changing = asyncio.Lock()
        self._following: asyncio.Task | None = None

    # ------------------------------------------------------------------ what is asked
    async def status(self) -> dict[str, Any]:
        """What is in force, from engines asked now; one that does not answer shows what it last said."""
        await self.poller.ask(control.TIMEOUT_S, anew=True)
        engines = []
        for engine in control.live_engines(self.engine_client):
            said = self.poller.latest.get(engine)
            engines.append({"engine": engine, "answers": said is not None, **(said or {}),
                            "unanswered": self.poller.unanswered[engine]})
        return {"policy": shown(self.spec), "policies": self.policies.names(), "checkpoints": hashes(self.policies),
                "consistent": all(e.get("spec") == self.spec for e in engines), "vllm": versions.installed()[1],
                "saga_rl": _own_version(), "engines": engines,
                "device": {"device": "real"} if (settings := active()) is None else settings.described(),
                "router": None if self.placement is None else self.placement.metrics.snapshot()}

    async def change(self, given: Any) -> dict[str, Any]:
        """Another policy everywhere. Raises `UserError`; then nothing has changed. An engine that does not answer in
        time is told to change and to change back, and does both when it comes to it."""
        async with self._changing:
            spec = read_spec(given)
            require_below(spec, self.config.policy_root)
            policies = await asyncio.to_thread(load, spec)
            expect = hashes(policies)
            order = {"policy": spec, "expect": expect, "change": secrets.token_hex(8)}
            answers = await control.everywhere(self.engine_client, "swap", order, CHANGE_S)
            wrong = next((a for a in answers if "error" in a), None)
            if wrong is not None:
                await self._undo(answers, order["change"])
                raise UserError(f"engine {wrong['engine']}", wrong["error"], "nothing was changed")
            self._adopt(spec, policies)
            log.warning("saga-rl: policy %s is in force in %d engines (checkpoint %s)", shown(spec), len(answers),
                        " ".join(h[:12] for h in expect.values()) or "none")
            events.emit("policy", policy=spec, policies=policies.names(), checkpoints=expect, engines=len(answers))
            return {"policy": shown(spec), "policies": policies.names(), "checkpoints": expect,
                    "engines": len(answers)}

    async def _undo(self, answers: list[dict[str, Any]], change: Any) -> None:
        """Engines obey in the order in which they are told, so one that was only late goes back, too."""
        back = [a["engine"] for a in answers if "error" not in a or a["error"].startswith("no answer")]
        for engine in back:
            try:
                await asyncio.wait_for(control.ask(self.engine_client, engine, "revert", {"change": change}),
                                       control.TIMEOUT_S)
            except TimeoutError:
                log.error("saga-rl: engine %d does not answer; it goes back to the old policy when it does", engine)

    def _adopt(self, spec: Spec, policies: PolicySet) -> None:
        if self.placement is not None:
            self.placement.swap(policies.placement, spec == STOCK)
        self.spec, self.policies = spec, policies

    # ------------------------------------------------------------------ several API servers
    def follow(self) -> None:
        """Take over what the engines say is in force: another API server may have been told to change it."""
        said = [a.get("spec") for a in self.poller.latest.values()]
        if (not said or said[0] is None or any(s != said[0] for s in said) or said[0] == self.spec
                or self._changing.locked() or (self._following is not None and not self._following.done())):
            return
        self._following = asyncio.get_running_loop().create_task(self._follow(said[0]))

    async def _follow(self, spec: Spec) -> None:
        async with self._changing:
            try:
                self._adopt(spec, await asyncio.to_thread(load, spec))
            except Exception:
                log.exception("saga-rl: placement cannot follow the engines to policy %s", shown(spec))
                self.spec = spec  # not tried again until it changes

    # ------------------------------------------------------------------ who may ask
    def refusal(self, request: Request, loopback: bool = False) -> Response | None:
        """Why this client is not answered; None if it is. loopback: clients of this machine may, without any key."""
        if not self.keys:
            if loopback and request.client is not None and request.client.host in LOOPBACK:
                return None
            return _error(403, f"this server has no admin key; start it with {ADMIN_VARIABLE} set to use /saga/")
        named = request.headers.getlist("authorization")
        if len(set(named)) > 1:
            return _error(400, "two Authorization headers say different things")
        scheme, _, given = (named or [""])[0].partition(" ")
        digest = hashlib.sha256(given.encode()).digest()
        same = [secrets.compare_digest(digest, key) for key in self.keys]
        if scheme.lower() == "bearer" and any(same):
            return None
        return _error(401, "wrong or missing admin key")


def routes(operator: Operator) -> list[BaseRoute]:
    """The three routes of `operator`."""
    async def status(request: Request) -> Response:
        return operator.refusal(request, loopback=True) or JSONResponse(await operator.status())

    async def policy(request: Request) -> Response:
        refused = operator.refusal(request)
        if refused is not None:
            return refused
        try:
            return await _change(operator, await _policy_in(request))
        except ValueError as e:
            return _error(400, str(e))

    async def stock(request: Request) -> Response:
        return operator.refusal(request) or await _change(operator, STOCK)

    return [Route("/saga/status", status, methods=["GET"]), Route("/saga/policy", policy, methods=["POST"]),
            Route("/saga/stock", stock, methods=["POST"])]


async def _change(operator: Operator, given: Any) -> Response:
    try:
        return JSONResponse(await operator.change(given))
    except UserError as e:
        log.error("saga-rl: policy refused: %s", e)
        events.emit("policy refused", cause=str(e))
        return _error(409 if e.where.startswith("engine ") else 400, str(e))


async def _policy_in(request: Request) -> Any:
    """The body's `policy`; ValueError for anything else than `{"policy": ...}`."""
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                raise ValueError(f"the body is longer than {MOST_BYTES} bytes")
        value = json.loads(body)
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError, ClientDisconnect):
        raise ValueError('the body is not JSON; send {"policy": NAME}') from None
    if not isinstance(value, dict) or set(value) != {"policy"}:
        raise ValueError('send {"policy": NAME} and nothing else')
    return value["policy"]


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message.splitlines()[0] if message else "", "code": status}}, status)


def _own_version() -> str:
    from importlib.metadata import version

    return version("saga-rl")
