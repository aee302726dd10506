"""Who may do what: tenants that do not trust each other, and an operator who is none of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runtime_kit import BLOCK, Clock, drain, make_request, make_scheduler, vllm
from test_http_middleware import ASK, CHAT, Server

from saga_rl.policies.state import chains as ch
from saga_rl.runtime.engine.commands import handle
from saga_rl.runtime.engine.scheduler import SagaSyncScheduler
from saga_rl.runtime.server.http.middleware import SagaMiddleware
from saga_rl.runtime.server.http.settings import Settings
from saga_rl.runtime.sessions.hints import UNPROVED, Hints, proof_of, read_hints
from saga_rl.runtime.sessions.tracker import MAX_TOOLS, Tracker

assert vllm is not None
KEYS = ["one", "two"]


def request(headers: list[tuple[bytes, bytes]], path: str = CHAT, set_: Settings | None = None
            ) -> tuple[int, list[Any]]:
    """Status of the middleware's own answer (0: the request passed), and what the app behind it saw."""
    seen: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, await receive()))

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(ASK).encode(), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = SagaMiddleware(app, set_ or Settings(), keys=KEYS)
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    asyncio.run(middleware(scope, receive, send))
    return sent[0]["status"] if sent else 0, seen


# ---------------------------------------------------------------------- one meaning of a request
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings", "/invocations"])
def test_two_keys_in_one_request_are_refused(path: str) -> None:
    """vLLM would check the first and we believe the last: each request another tenant."""
    status, seen = request([(b"authorization", b"Bearer one"), (b"Authorization", b"Bearer invented")], path)
    assert (status, seen) == (400, [])
    same = [(b"authorization", b"Bearer one"), (b"authorization", b"Bearer one")]
    assert request(same, path)[0] == 0


def test_two_tenants_of_one_gateway_are_refused() -> None:
    set_ = Settings(tenant_header="X-Tenant")
    assert request([(b"x-tenant", b"a"), (b"x-tenant", b"b")], set_=set_)[0] == 400
    assert request([(b"x-tenant", b"a")], set_=set_)[0] == 0


def test_of_two_sessions_the_one_that_vllm_takes_counts() -> None:
    server = Server()
    server.post(CHAT, ASK, {"X-Session-ID": "a"})
    raw = [(b"x-session-id", b"first"), (b"X-Session-ID", b"last")]
    _, seen = request(raw, set_=Settings(tenant_in_body=True))
    assert json.loads(seen[0][1]["body"])["session_id"] == "first"


# ---------------------------------------------------------------------- names
def test_no_two_tenants_have_a_session_of_one_name() -> None:
    pairs = [("org", "team/x"), ("org/team", "x"), ("org%2Fteam", "x"), ("org", "team%2Fx")]
    names = []
    for tenant, session in pairs:
        server = Server(Settings(tenant_header="X-Tenant"), KEYS)
        names.append(server.post(CHAT, {**ASK, "session_id": session}, {"X-Tenant": tenant})["session_id"])
    assert len(set(names)) == len(pairs) and names[0] == "org/team/x"


def test_names_of_tools_are_left_for_tenants_that_come_later() -> None:
    """200 invented tools of one make `bash` another name for all."""
    def use(t: Tracker, tenant: str, tool: str) -> str:
        served = t.arrive(Hints(session=f"{tenant} {tool}", tenant=tenant, next_tool=tool), 0.0, 10)
        t.finish(served, 0.0, 1)
        return next(name for name, code in t.tools.codes.items() if code == t.chains[served.chain, ch.TOOL])

    t = Tracker()
    t.quotas = True
    found = [use(t, "rude", f"invented-{k}") for k in range(200)]
    assert found.count("other") >= 200 - MAX_TOOLS // 2 - 1
    assert [use(t, f"tenant-{k}", f"bash-{k}") for k in range(3)] == ["bash-0", "bash-1", "bash-2"]
    alone = Tracker()  # nobody tells tenants apart: the table is everybody's
    assert [use(alone, "default", f"tool-{k}") for k in range(100)] == [f"tool-{k}" for k in range(100)]


# ---------------------------------------------------------------------- proof
def test_a_tenant_is_believed_only_with_a_proof() -> None:
    keys = ("ab" * 32, "cd" * 32)
    good = {"saga_tenant": "a", "saga_proof": proof_of(keys[1], "a"), "saga_tool": "bash"}
    assert read_hints("s", good, keys) == Hints(session="s", tenant="a", tool="bash")
    for bad in ({}, {"saga_proof": "x"}, {"saga_proof": 7}, {"saga_tenant": "b"}, {"saga_tenant": ["a"]},
                {"saga_proof": proof_of("ef" * 32, "a")}):
        forged = {**good, **bad} if bad else {"saga_tenant": "a", "saga_tool": "bash"}
        assert read_hints("s", forged, keys) == Hints(session=f"{UNPROVED}s", tool="bash")
        assert read_hints(None, forged, keys).session is None
    assert read_hints("s", {"saga_tenant": "a"}) == Hints(session="s", tenant="a")


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer one"}, {}])
def test_the_middleware_proves_what_it_says_and_passes_no_proof_of_a_client(headers: dict[str, str]) -> None:
    server = Server(None, KEYS)
    tenants = server.middleware.planner.tenants
    forged = {**ASK, "vllm_xargs": {"saga_tenant": "victim", "saga_proof": "x"}}
    xargs = server.post(CHAT, forged, headers)["vllm_xargs"]
    tenant = xargs.get("saga_tenant", "default")
    assert tenant != "victim" and xargs["saga_proof"] == tenants.proof(tenant)
    open_ = Server()  # clients name their tenants, and nothing is to prove
    assert "saga_proof" not in open_.post(CHAT, forged)["vllm_xargs"]


def test_engines_are_told_once_and_until_they_answer() -> None:
    told: list[str] = []

    async def prove(key: str) -> list[dict[str, Any]]:
        told.append(key)
        return [{"error": "busy"}] if len(told) == 1 else [{"servers": 1}]

    server = Server(None, KEYS)
    server.middleware._prove = prove
    for path in ("/invocations", CHAT, CHAT):
        server.post(path, ASK, {"Authorization": "Bearer one"})
    assert told == [server.middleware.planner.tenants.proof_key] * 2


def test_what_comes_by_an_unread_way_is_nobodys(tmp_path: Path) -> None:
    """A forged tenant and session on a route that nobody reads: no service on another account, no end of a session."""
    s = make_scheduler(SagaSyncScheduler, tmp_path, blocks=64, clock=Clock(), saga={"policy": "likely"})
    key = "12" * 32
    assert handle(s, "prove", {"key": key}) == {"servers": 1}
    assert "error" in handle(s, "prove", {"key": "no hex"})
    s.add_request(make_request("own", [1] * 3 * BLOCK, session="t/s", tenant="t", proof=proof_of(key, "t")))
    drain(s)
    c = s.tracker.chain_of("t/s")
    s.add_request(make_request("forged", [1] * 3 * BLOCK, session="t/s", tenant="t", final=1))
    tenant = s.served["forged"].hints.tenant
    drain(s)
    assert tenant == "default" and s.tracker.chains[c, ch.STEPS] == 1 and s.tracker.chains[c, ch.ENDED] == 0
    assert set(s.tracker.tenants.codes) == {"t", "default"}


# ---------------------------------------------------------------------- the operator
def test_a_policys_folder_lies_below_the_root(tmp_path: Path) -> None:
    from saga_rl.errors import UserError
    from saga_rl.runtime.server.admin import require_below

    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "good", outside):
        folder.mkdir(parents=True)
    (root / "link").symlink_to(outside)
    for spec in ("likely", "stock", {"eviction": "wa-lru:alpha=0.2"}, str(root / "good"),
                 {"eviction": f"learned:{root / 'good'}"}):
        require_below(spec, str(root))
    for spec in (str(outside), str(root / "link"), str(root / ".." / "outside"), {"eviction": f"learned:{outside}"}):
        with pytest.raises(UserError, match="outside the configured policy_root"):
            require_below(spec, str(root))
    with pytest.raises(UserError, match="no policy_root is configured"):
        require_below(str(root / "good"), None)


def test_a_tenants_key_is_no_admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from saga_rl.runtime.config.settings import SagaConfig
    from saga_rl.runtime.server.admin import ADMIN_VARIABLE, admin_digests
    from saga_rl.runtime.server.app import api_keys

    monkeypatch.setenv("VLLM_API_KEY", "tenant")
    assert api_keys(SimpleNamespace(api_key=None)) == ["tenant"] and admin_digests(SagaConfig()) == []
    monkeypatch.setenv(ADMIN_VARIABLE, "root, second")
    assert len(admin_digests(SagaConfig(admin_keys=["ab" * 32]))) == 3
