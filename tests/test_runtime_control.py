"""The channel between API server and engines, and policies changed in a real scheduler: all of it or nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runtime_kit import Clock, drain, make_request, make_scheduler, step

from saga_rl.errors import UserError
from saga_rl.runtime.engine import commands
from saga_rl.runtime.engine.policy_change import change, read_spec, revert
from saga_rl.runtime.engine.queueing.request_queue import PolicyRequestQueue
from saga_rl.runtime.engine.scheduler import SagaSyncScheduler
from saga_rl.runtime.server import control

CHECKPOINT = str(Path(__file__).resolve().parents[1] / "checkpoints" / "eviction")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


def scheduler(folder: Path, **saga: Any) -> Any:
    return make_scheduler(SagaSyncScheduler, folder, blocks=17, seqs=2, clock=Clock(), saga={"policy": "lru", **saga})


def test_an_answer_is_made_of_plain_values_and_errors_are_one_line(folder):
    s = scheduler(folder)
    s.add_request(make_request("r", list(range(100)), session="a", tenant="t"))
    step(s)
    said = commands.handle(s, "snapshot", {})
    assert said["kv/blocks"] == 16
    assert (said["spec"], said["checkpoints"]) == ("lru", {})
    assert {type(v) for v in said.values()} <= {int, float, str, dict}
    note = {"session": "a", "agent": 0, "next_tool": None, "final": False}
    assert commands.handle(s, "notes", {"notes": [note]}) == {"applied": 0}
    assert commands.handle(s, "no such", {}) == {"error": "no command 'no such'"}
    assert commands.handle(object(), "snapshot", {}) == {"error": "this engine runs another scheduler"}
    assert "KeyError" in commands.handle(s, "swap", {})["error"]
    assert s.metrics.counts["failed/control swap"] == 1


def test_the_method_is_given_to_the_engine_once():
    class Core:
        def __init__(self) -> None:
            self.scheduler = SimpleNamespace()

    commands.attach(Core)
    first = Core.saga_control
    commands.attach(Core)
    assert Core.saga_control is first
    assert Core().saga_control("snapshot") == {"error": "this engine runs another scheduler"}


def test_stock_takes_every_rule_out_and_the_next_policy_brings_them_back(folder):
    s = scheduler(folder, policy="saga+", service_gap_tokens=100.0, kv_floors={"t": 0.25}, afs_preempt_s=0.5)
    rules, floors = s.rules, s.block_queue.floors
    for i in range(6):
        s.add_request(make_request(f"r{i}", list(range(100 * i, 100 * i + 60)), session=f"s{i}", tenant="tu"[i % 2]))
    step(s)
    assert isinstance(s.waiting, PolicyRequestQueue)
    waiting = len(s.waiting)
    assert commands.handle(s, "swap", {"policy": "stock"})["policy"] == "stock"
    assert s.policies.names() == {"eviction": "lru", "placement": "sticky", "ordering": "fcfs", "admission": "none"}
    assert not isinstance(s.waiting, PolicyRequestQueue)
    assert (s.block_queue.floors, len(s.waiting)) == (None, waiting)
    assert [r.request_id for r in s.waiting] == sorted(r.request_id for r in s.waiting)
    step(s)
    assert commands.handle(s, "swap", {"policy": {"ordering": "afs"}})["spec"] == {"ordering": "afs"}
    assert (s.rules, s.block_queue.floors) == (rules, floors)
    assert sorted(drain(s)) == [f"r{i}" for i in range(6)]


def test_a_change_is_undone_once_and_only_the_last(folder):
    s = scheduler(folder)
    change(s, CHECKPOINT, None, "first")
    assert s.policies.eviction.name == "learned"
    change(s, "saga", None, "second")
    with pytest.raises(UserError, match="nothing to undo"):
        revert(s, "first")
    assert revert(s, "second")["spec"] == CHECKPOINT
    assert s.policies.eviction.name == "learned"
    with pytest.raises(UserError, match="nothing to undo"):
        revert(s, "second")


@pytest.mark.parametrize("given", ["nonsense", "/etc", {"eviction": "belady"}, {"eviction": "learned:/etc"},
                                   {"evictoin": "lru"}, {}, 3, None, ["lru"], {"eviction": 1}, "", "a\0b", "x" * 5000,
                                   {"eviction": "wa-lru:alpha=inf,alpha="}])
def test_a_policy_that_cannot_serve_changes_nothing(folder, given):
    s = scheduler(folder)
    before = dict(s.__dict__)
    said = commands.handle(s, "swap", {"policy": given})
    assert set(said) == {"error"}
    assert "\n" not in said["error"]
    assert {k: v for k, v in s.__dict__.items() if before.get(k) is not v} == {}


def test_another_checkpoint_than_the_server_read_is_refused(folder):
    s = scheduler(folder)
    said = commands.handle(s, "swap", {"policy": CHECKPOINT, "expect": {"eviction": "0" * 64}})
    assert "another checkpoint in this engine" in said["error"]
    assert s.policies.eviction.name == "lru"


def test_paths_are_made_absolute(monkeypatch):
    monkeypatch.chdir(Path(CHECKPOINT).parent)
    assert read_spec("eviction") == CHECKPOINT
    assert read_spec({"eviction": "learned:eviction"}) == {"eviction": f"learned:{CHECKPOINT}"}
    assert read_spec("saga+") == "saga+"


class Client:
    """vLLM's client, as far as the channel uses it: one function an engine."""

    def __init__(self, *engines: Any) -> None:
        self.core_engines = [bytes([i]) for i in range(len(engines))]
        self.engines = dict(zip(self.core_engines, engines, strict=True))
        self.asked: list[int] = []

    async def _call_utility_async(self, method: str, *args: Any, engine: bytes) -> Any:
        assert method == "saga_control"
        self.asked.append(engine[0])
        return await self.engines[engine](*args)


def test_every_engine_is_asked_and_none_can_raise_or_make_the_others_wait():
    async def well(command: str, payload: dict) -> dict:
        return {"said": command, **payload}

    async def dead(command: str, payload: dict) -> dict:
        raise RuntimeError("engine\ndied")

    async def slow(command: str, payload: dict) -> dict:
        await asyncio.sleep(60)
        return {}

    async def odd(command: str, payload: dict) -> Any:
        return None

    client = Client(well, dead, slow, odd)
    said = asyncio.run(control.everywhere(SimpleNamespace(engine_core=client), "notes", {"x": 1}, 0.05))
    assert said == [{"engine": 0, "said": "notes", "x": 1}, {"engine": 1, "error": "RuntimeError: engine"},
                    {"engine": 2, "error": "no answer within 0.05 s"}, {"engine": 3, "error": "no answer"}]
    client.saga_engines = SimpleNamespace(live=lambda: [0, 3])
    client.asked.clear()
    asyncio.run(control.everywhere(client, "notes", {}, 0.05))
    assert client.asked == [0, 3]
