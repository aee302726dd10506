"""vLLM's own server with two flags: placement is the other test's; here metrics, policies changed in service, the kill
switch, keys and hostile checkpoints; and what the plugin leaves alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from live_kit import ENV, Server, until

from saga_rl.replay.tiny_model import build_tiny_model

KEY = "sesame"
CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoints" / "eviction"
SCHEDULER = "saga_rl.runtime.engine.scheduler.SagaScheduler"


class Plain(Server):
    """`python -m vllm.entrypoints.openai.api_server` (what `vllm serve` runs) with our scheduler and our key."""

    def __init__(self, folder: Path, saga: dict[str, Any]) -> None:
        super().__init__(folder, "--scheduler-cls", SCHEDULER, "--additional-config",
                         json.dumps({"saga": saga, "saga_http": {"tenant_in_body": True}}), plain=True, key=KEY,
                         window=512, blocks=23)

    def served(self, session: str, text: str, tenant: str = "team-a", final: int = 0) -> int:
        return self.complete(text, session_id=session,
                             vllm_xargs={"saga_tenant": tenant, "saga_final": final}).status_code

    def until_figure(self, key: str, value: float) -> dict[str, float]:
        """/metrics, once `key` is `value`; engines are asked now and then."""
        def there() -> dict[str, float] | None:
            found = self.figures()
            return found if found.get(key) == value else None

        return until(there, f"{key} is {value}")

    def events(self) -> list[dict[str, Any]]:
        lines = [line[line.index('{"event"'):] for line in self.log.read_text().splitlines() if '{"event"' in line]
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    s = Plain(tmp_path_factory.mktemp("served"), {"policy": "saga+", "poll_s": 0.2, "events": True,
                                                   "kv_floors": {"team-a": 0.1}, "metrics_tenants": 2,
                                                   "policy_root": "/"})
    try:
        s.wait()
        yield s
    finally:
        s.stop()


pytestmark = [pytest.mark.emulated, pytest.mark.timeout(2400)]
TEXT = "a prompt that is longer than one block of tokens, and says nothing " * 3


def test_it_says_at_the_start_what_is_in_force(server):
    log = server.log.read_text()
    assert ("saga-rl: policy saga+ (eviction youngest, placement saga, ordering session-fcfs, "
            "admission reserve-older), checkpoint none, constraints KV floor team-a=0.1, vLLM ") in log
    started = [e for e in server.events() if e["event"] == "start"]
    assert [e["policies"]["eviction"] for e in started] == ["youngest"]


def test_metrics_stand_beside_vllms_and_count_what_was_served(server):
    for i in range(6):
        assert server.served(f"s{i}", f"{i} {TEXT}", tenant=f"team-{'abcd'[i % 4]}", final=1) == 200
    found = server.until_figure('saga_sessions_ended_total{end="known",engine="0"}', 6.0)
    assert any(k.startswith("vllm:") for k in found)
    assert found['saga_requests_total{engine="0"}'] == 6
    assert found['saga_session_tct_seconds_bucket{engine="0",le="+Inf"}'] == 6
    assert found['saga_session_tct_seconds_count{engine="0"}'] == 6
    states = {k: v for k, v in found.items() if k.startswith("saga_kv_blocks{")}
    assert len(states) == 5
    assert sum(states.values()) == found['saga_kv_capacity_blocks{engine="0"}'] == 23
    assert found['saga_decision_seconds_count{engine="0",kind="schedule"}'] > 0
    tenants = {re.search('tenant="(.*)"', k)[1] for k in found if k.startswith("saga_tenant_service_tokens")}
    assert len(tenants) == 3
    assert {"team-a", "other"} < tenants


def test_status_needs_the_key_and_shows_engines_and_versions(server):
    assert server.http.get("/saga/status", headers={"Authorization": "Bearer wrong"}).status_code == 401
    status = server.http.get("/saga/status").json()
    assert (status["policy"], status["consistent"], len(status["engines"])) == ("saga+", True, 1)
    assert status["engines"][0]["kv/blocks"] == 23
    assert status["vllm"].startswith("0.")


@pytest.mark.parametrize("path", ["/saga/policy", "/saga/stock"])
@pytest.mark.parametrize("header", [{"Authorization": ""}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}])
def test_nothing_is_changed_without_the_key(server, path, header):
    assert server.http.post(path, json={"policy": "lru"}, headers=header).status_code == 401
    assert server.http.get("/saga/status").json()["policy"] == "saga+"


def test_policies_are_changed_in_service_and_the_kill_switch_takes_constraints_out(server):
    answer = server.http.post("/saga/policy", json={"policy": str(CHECKPOINT)})
    assert answer.status_code == 200, answer.text
    sha = json.loads((CHECKPOINT / "policy.json").read_text())["sha256"]
    assert answer.json()["checkpoints"] == {"eviction": sha}
    status = server.http.get("/saga/status").json()
    assert status["engines"][0]["checkpoints"] == {"eviction": sha}
    assert status["engines"][0]["policies/eviction"] == "learned"
    assert server.served("after", TEXT) == 200
    assert server.http.post("/saga/stock").json()["policy"] == "stock"
    status = server.http.get("/saga/status").json()["engines"][0]
    assert [status[f"policies/{s}"] for s in ("eviction", "ordering", "admission")] == ["lru", "fcfs", "none"]
    assert server.served("after", TEXT + TEXT) == 200
    back = server.http.post("/saga/policy", json={"policy": {"eviction": "wa-lru:alpha=0.2", "ordering": "afs"}})
    assert back.status_code == 200
    assert server.served("after", TEXT) == 200
    assert server.http.post("/saga/policy", json={"policy": "saga+"}).status_code == 200
    assert server.http.get("/saga/status").json()["engines"][0]["policy swaps"] == 4
    assert [e["policy"] for e in server.events() if e["event"] == "policy"] == [
        str(CHECKPOINT), "stock", {"eviction": "wa-lru:alpha=0.2", "ordering": "afs"}, "saga+"]


def hostile(folder: Path, kind: str) -> Any:
    """The policy to ask for, and what is wrong with it."""
    copy = folder / kind
    shutil.copytree(CHECKPOINT, copy)
    weights, manifest = copy / "policy.safetensors", copy / "policy.json"
    doc = json.loads(manifest.read_text())
    if kind == "one bit":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(bytes(data))
    elif kind == "cut short":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif kind == "a pickle":
        import pickle

        weights.write_bytes(pickle.dumps(_Bomb(folder / "exploded")))
    elif kind == "too large":
        with weights.open("r+b") as f:
            f.truncate(1 << 33)
    elif kind == "other decision":
        manifest.write_text(json.dumps({**doc, "seam": "placement"}))
    elif kind == "deep json":
        manifest.write_text("[" * 100_000)
    elif kind == "companion":
        manifest.write_text(json.dumps({**doc, "companions": {**doc["companions"], "ordering": "os.system:echo"}}))
    return str(copy)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["one bit", "cut short", "a pickle", "too large", "other decision", "deep json",
                                  "companion"])
def test_a_hostile_checkpoint_is_refused_in_one_line_and_nothing_changes(server, tmp_path, kind):
    swaps = server.http.get("/saga/status").json()["engines"][0].get("policy swaps", 0)
    answer = server.http.post("/saga/policy", json={"policy": hostile(tmp_path, kind)})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400, answer.text
    assert message and "\n" not in message and "Traceback" not in message
    assert not (tmp_path / "exploded").exists()
    engine = server.http.get("/saga/status").json()["engines"][0]
    assert (engine["spec"], engine.get("policy swaps", 0)) == ("saga+", swaps)
    assert server.served("still", TEXT) == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"policy": 1}', b'{"policy": null}', b'{"policy": {}}',
                                  b'{"policy": {"eviction": 1}}', b'{"policy": {"evictoin": "lru"}}',
                                  b'{"policy": "nonsense"}', b'{"policy": "a\\u0000b"}', b'{"policy": "lru", "x": 1}',
                                  b'{"policy": {"eviction": "wa-lru:alpha=nan"}}', b"\xff\xfe", b"[" * 50_000,
                                  b'{"policy": "' + b"x" * 10_000 + b'"}', b" " * 70_000])
def test_what_is_not_a_policy_is_a_bad_request(server, body):
    assert server.http.post("/saga/policy", content=body).status_code == 400
    assert server.http.get("/saga/status").json()["engines"][0]["spec"] == "saga+"


# ---------------------------------------------------------------------- without a server
WATCHED = """
import json, sys
import vllm.platforms as platforms
if platforms.current_platform.is_unspecified():  # a CUDA wheel and no GPU: it makes no configuration
    from vllm.platforms.cpu import CpuPlatform
    platforms.current_platform = CpuPlatform()
import vllm.engine.arg_utils as a, vllm.v1.engine.core as core, vllm.v1.engine.core_client as clients
from fastapi import FastAPI
from saga_rl.runtime.launch import plugin

def hooks():
    out = {"app": FastAPI.__call__}
    for cls in (clients.DPLBAsyncMPClient, clients.AsyncMPClient, clients.BackgroundResources, core.EngineCore):
        out |= {f"{cls.__name__}.{k}": v for k, v in vars(cls).items()}
    return out

model = sys.argv[1]
before = hooks()
plugin.register()
plugin.register()
print(json.dumps({"registered": sorted(k for k, v in hooks().items() if before.get(k) is not v),
                  "heavy": [m for m in ("numba", "saga_rl.policies") if m in sys.modules]}))
for saga in json.loads(sys.argv[2]):
    config = a.EngineArgs(model=model, **saga).create_engine_config()
    print(json.dumps({"configured": sorted(k for k, v in hooks().items() if before.get(k) is not v),
                      "scheduler": config.scheduler_config.scheduler_cls}))
"""


def watched(model: Path, *configurations: dict[str, Any]) -> list[dict[str, Any]]:
    """What is hooked when the plugin is registered, and after each of the configurations in turn."""
    done = subprocess.run([sys.executable, "-c", WATCHED, str(model), json.dumps(configurations)], env=ENV,
                          capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_vllm_without_saga_is_left_alone_and_with_it_gets_every_hook(tmp_path):
    model = build_tiny_model(tmp_path / "model", layers=1, hidden=64, max_len=512)
    ours = {"scheduler_cls": SCHEDULER}
    registered, stock, killed, hooked = watched(
        model, {}, {**ours, "additional_config": {"saga": {"policy": "stock"}}}, ours)
    assert registered == {"registered": ["EngineCore.saga_control"], "heavy": []}
    assert stock == {"configured": ["EngineCore.saga_control"], "scheduler": None}
    assert killed == stock
    assert {"app", "DPLBAsyncMPClient.get_core_engine_for_request"} < set(hooked["configured"])


class Config:
    """As much of vLLM's configuration as is looked at before anything is loaded."""

    def __init__(self, saga: dict[str, Any] | None, scheduler: Any = SCHEDULER, **vllm: Any) -> None:
        from types import SimpleNamespace

        self.additional_config = {} if saga is None else {"saga": saga}
        self.scheduler_config = SimpleNamespace(**{"scheduler_cls": scheduler, "async_scheduling": True,
                                                     "policy": "fcfs", **vllm})
        self.parallel_config = SimpleNamespace(data_parallel_size=1)


@pytest.mark.parametrize(("saga", "scheduler", "message"), [
    ({"policy": "lru"}, None, "the engines run another scheduler; add --scheduler-cls saga_rl.runtime.engine"),
    ({"policy": "sage"}, SCHEDULER, "there is no policy named 'sage'"),
    ({"polcy": "lru"}, SCHEDULER, "there is no key"),
    ({"poll_s": 0}, SCHEDULER, "poll_s: is 0; give a number above 0"),
    ({"metrics_tenants": 1e9}, SCHEDULER, "metrics_tenants: is 1000000000.0"),
    ({"events": "yes"}, SCHEDULER, "events: is 'yes'"),
    ({"policy": "stock", "record": "x.parquet"}, SCHEDULER, "needs our scheduler"),
])
def test_a_wrong_configuration_ends_the_start(saga, scheduler, message):
    from saga_rl.errors import UserError
    from saga_rl.runtime.launch.plugin import configured

    with pytest.raises(UserError) as e:
        configured(Config(saga, scheduler))
    assert message in str(e.value)


@pytest.mark.parametrize(("saga", "ours"), [
    ({"policy": "likely"}, "the ordering session-fcfs"), ({"policy": {"ordering": "afs"}}, "the ordering afs"),
    ({"policy": "lru", "service_gap_tokens": 100}, "the service gap"),
    ({"policy": "lru", "afs_preempt_s": 0.5}, "AFS preemption")])
def test_two_orders_of_the_queue_are_refused_before_a_model_loads(saga, ours):
    from saga_rl.errors import UserError
    from saga_rl.runtime.launch import startup

    with pytest.raises(UserError, match=f"--scheduling-policy priority: is set beside {ours} of saga-rl"):
        startup.checked(Config(saga, policy="priority"))
    assert startup.checked(Config(saga)) is not None
    assert startup.checked(Config({"policy": {"eviction": "bayes-tables"}}, policy="priority")) is not None


def test_an_unknown_version_is_refused_unless_asked_for(monkeypatch):
    from saga_rl.errors import UserError
    from saga_rl.runtime.config import versions
    from saga_rl.runtime.launch import startup

    monkeypatch.delenv(versions.ALLOW, raising=False)  # `make vllm` sets it
    monkeypatch.setattr(versions, "installed", lambda: ("vllm", "0.99.0"))
    with pytest.raises(UserError, match="outside the tested range"):
        startup.checked(Config({}))
    assert startup.checked(Config({"allow_untested": True})).policy == "auto"


def test_a_hook_that_vllm_no_longer_has_is_refused_by_name(monkeypatch):
    from vllm.v1.engine.core_client import AsyncMPClient

    from saga_rl.errors import UserError
    from saga_rl.runtime.config import versions

    versions.check_plugin_hooks()
    monkeypatch.delattr(AsyncMPClient, "_call_utility_async")
    with pytest.raises(UserError, match=r"AsyncMPClient\._call_utility_async: does not exist"):
        versions.check_plugin_hooks()


def test_a_recording_under_plain_vllm_gets_a_key_and_a_place(tmp_path, monkeypatch):
    from saga_rl.runtime.launch import startup

    monkeypatch.chdir(tmp_path)
    config = Config({"record": "x.parquet"})
    startup.checked(config)
    sent = config.additional_config["saga"]
    assert sent["record"] == str(tmp_path / "x.parquet")
    assert len(sent["record_key"]) == 32


def test_the_plugin_never_ends_vllm(monkeypatch):
    from types import SimpleNamespace

    from saga_rl.runtime.launch import plugin

    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", SimpleNamespace())
    plugin.register()
