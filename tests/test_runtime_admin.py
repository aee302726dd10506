"""The operator's routes over engines that fail in every way: who may ask, and that a change is whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (extra serve or serve-cpu)")
import httpx
from starlette.applications import Starlette

from saga_rl.policies.registry import make
from saga_rl.runtime.config.settings import SagaConfig
from saga_rl.runtime.routing.placement import Placement
from saga_rl.runtime.server import admin
from saga_rl.runtime.server.admin import Operator, routes
from saga_rl.runtime.server.app import api_keys
from saga_rl.runtime.server.poller import Poller


class Engine:
    """One engine's side of the channel, without a scheduler: which policy it was told last."""

    def __init__(self, how: str = "well") -> None:
        self.how, self.spec, self.before, self.change = how, "saga+", "saga+", None

    async def __call__(self, command: str, payload: dict[str, Any]) -> dict[str, Any]:
        if self.how == "gone":
            raise RuntimeError("engine died")
        if command == "swap":
            if self.how == "refuses":
                return {"error": "policy: cannot be used here; name another"}
            if self.how == "dies":
                raise RuntimeError("engine died")
            self.before, self.spec, self.change = self.spec, payload["policy"], payload["change"]
            if self.how == "late":
                await asyncio.sleep(0.3)
        elif command == "revert" and payload["change"] == self.change:
            self.spec = self.before
        return {"spec": self.spec, "requests": 1}


class Client:
    def __init__(self, *engines: Engine) -> None:
        self.engines = engines
        self.core_engines = [bytes([i]) for i in range(len(engines))]

    async def _call_utility_async(self, method: str, *args: Any, engine: bytes) -> Any:
        return await self.engines[engine[0]](*args)


def served(*engines: Engine, keys: tuple[str, ...] = ("sesame",), place: bool = True,
           root: str | None = None) -> tuple[Operator, Starlette]:
    client = Client(*engines)
    config = SagaConfig(policy="saga+", poll_s=0.05, policy_root=root,
                        admin_keys=[hashlib.sha256(key.encode()).hexdigest() for key in keys])
    placement = Placement(make("placement", "saga:theta=100"), config) if place else None
    poller = Poller(client, config.poll_s, placement)
    operator = Operator(client, config, poller, placement)
    poller.on_answers = operator.follow
    return operator, Starlette(routes=routes(operator))


def send(app: Starlette, method: str, path: str, *, key: str | None = "sesame", host: str = "10.0.0.9",
         **kwargs: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, client=(host, 1))
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as http:
            return await http.request(method, path, **kwargs)

    return asyncio.run(go())


ALL = [("GET", "/saga/status"), ("POST", "/saga/policy"), ("POST", "/saga/stock")]


@pytest.mark.parametrize(("method", "path"), ALL)
@pytest.mark.parametrize("key", [None, "", "Sesame", "sesame ", "sesames"])
def test_the_wrong_key_is_refused_everywhere(method, path, key):
    engine = Engine()
    _, app = served(engine)
    assert send(app, method, path, key=key, host="127.0.0.1", json={"policy": "lru"}).status_code == 401
    assert engine.spec == "saga+"


@pytest.mark.parametrize(("method", "path"), ALL)
def test_without_a_key_only_this_machine_sees_the_status_and_nobody_changes_anything(method, path):
    engine = Engine()
    _, app = served(engine, keys=())
    for host in ("10.0.0.9", "127.0.0.1", "::1"):
        allowed = path == "/saga/status" and host != "10.0.0.9"
        assert send(app, method, path, host=host, key="anything").status_code == (200 if allowed else 403)
    assert engine.spec == "saga+"


def test_any_of_several_keys_opens():
    _, app = served(Engine(), keys=("one", "two"))
    assert [send(app, "GET", "/saga/status", key=k).status_code for k in ("one", "two", "three")] == [200, 200, 401]


def test_keys_are_those_of_vllms_server(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "env")
    assert api_keys(SimpleNamespace(api_key=["a", "", "b"])) == ["a", "b"]
    assert api_keys(SimpleNamespace(api_key="one")) == ["one"]
    assert api_keys(SimpleNamespace(api_key=None)) == ["env"]
    monkeypatch.delenv("VLLM_API_KEY")
    assert api_keys(SimpleNamespace(api_key=None)) == []


def test_a_change_reaches_every_engine_and_the_router():
    engines = [Engine(), Engine()]
    operator, app = served(*engines)
    answer = send(app, "POST", "/saga/policy", json={"policy": "lru"})
    assert (answer.status_code, answer.json()["engines"]) == (200, 2)
    assert [e.spec for e in engines] == ["lru", "lru"]
    assert (operator.placement.policy.name, operator.placement.stock) == ("sticky", False)
    send(app, "POST", "/saga/stock")
    assert [e.spec for e in engines] == ["stock", "stock"]
    assert operator.placement.stock


@pytest.mark.parametrize("how", ["refuses", "dies", "late"])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_one_engine_that_cannot_change_keeps_all_at_the_old_policy(monkeypatch, how, where):
    monkeypatch.setattr(admin, "CHANGE_S", 0.05)
    engines = [Engine(how if i == where else "well") for i in range(3)]
    operator, app = served(*engines)
    answer = send(app, "POST", "/saga/policy", json={"policy": "lru"})
    assert answer.status_code == 409
    assert answer.json()["error"]["message"].startswith(f"engine {where}: ")
    assert [e.spec for e in engines] == ["saga+"] * 3
    assert (operator.spec, operator.placement.policy.name) == ("saga+", "saga")


def test_another_servers_change_is_followed():
    async def run() -> None:
        engines = [Engine(), Engine()]
        operator, _ = served(*engines)
        await operator.poller.ask(1.0)
        assert operator._following is None
        engines[0].spec = "lru"
        await operator.poller.ask(1.0)
        assert operator.spec == "saga+"  # the engines do not agree yet
        engines[1].spec = "lru"
        await operator.poller.ask(1.0)
        await operator._following
        assert (operator.spec, operator.placement.policy.name) == ("lru", "sticky")

    asyncio.run(run())


def test_the_status_shows_engines_that_do_not_answer():
    _, app = served(Engine(), Engine("gone"), place=False)
    status = send(app, "GET", "/saga/status").json()
    assert [(e["answers"], e["unanswered"]) for e in status["engines"]] == [(True, 0), (False, 1)]
    assert (status["policy"], status["consistent"], status["router"]) == ("saga+", False, None)


@pytest.mark.parametrize("body", [b"", b"{", b"null", b'{"policy": 1}', b'{"polcy": "lru"}', b"\xff", b"[" * 60_000,
                                  b'{"policy": "lru"' + b" " * 70_000, b'{"policy": ' + b"9" * 5000 + b"}"])
def test_a_body_that_is_no_policy_is_a_bad_request(body):
    engine = Engine()
    _, app = served(engine)
    answer = send(app, "POST", "/saga/policy", content=body)
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]["message"]
    assert engine.spec == "saga+"


def test_other_methods_are_not_allowed():
    _, app = served(Engine())
    assert [send(app, m, p).status_code for m, p in
            (("POST", "/saga/status"), ("GET", "/saga/policy"), ("GET", "/saga/stock"), ("DELETE", "/saga/policy"))
            ] == [405] * 4
