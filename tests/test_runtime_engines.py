"""Engines that die: who gets their requests, what the books say, and what two real engines do when one is killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (extra serve or serve-cpu)")

from engines_kit import added, client, outputs, request, restored

from saga_rl.runtime.routing import engines
from saga_rl.runtime.routing.engines import Engines, EngineState, RequestState
from saga_rl.runtime.routing.router import Router
from saga_rl.runtime.routing.vllm_client import MINE, check_hooks, unfit


@pytest.fixture(autouse=True)
def classes_as_they_were():
    from vllm.v1.engine.core_client import BackgroundResources, DPLBAsyncMPClient

    with restored(DPLBAsyncMPClient, BackgroundResources):
        yield


def never() -> None:
    raise AssertionError("vLLM's own way was taken")


async def came(c, what) -> None:
    await type(c).process_engine_outputs(c, what)
    if what.outputs:
        c.outputs_queue.put_nowait(what)


def test_the_hooks_are_all_there():
    check_hooks()


def test_what_had_not_begun_is_sent_again_and_the_rest_fails_with_vllms_error():
    async def scene():
        c = client()
        mine: Engines = c.__dict__[MINE]
        for k, name in enumerate(("queued", "begun", "left", "read late", "other")):
            await c.add_request_async(request(name, f"s{k}", rank=int(name == "other")))
        await came(c, outputs(0, {"begun": 2}))
        await c.abort_requests_async(["left"])
        asked = asyncio.ensure_future(c._call_utility_async("f", engine=c.core_engines[0]))
        await asyncio.sleep(0)
        sent = len(c.input_socket.sent)
        mine.engine_lost(0, -9, never)
        await c.add_request_async(request("new", "s0"))
        await c.add_request_async(request("pinned", "p", rank=0))
        await came(c, outputs(0, {"read late": 1}))  # had arrived, and is read only now
        c.outputs_queue = asyncio.Queue()
        await asyncio.sleep(engines.DRAIN_S + 0.1)
        assert added(c, sent) == [(1, "new"), (1, "pinned"), (1, "queued")]
        failed = c.outputs_queue.get_nowait()
        assert {o.request_id: str(o.finish_reason) for o in failed.outputs} == {
            "begun": "error", "read late": "error"}
        live = {"other", "new", "pinned", "queued"}
        assert c.reqs_in_flight == dict.fromkeys(live, c.core_engines[1])
        assert +c.engine_inflight == {c.core_engines[1]: 4}
        router: Router = mine.placement.router
        assert {n: f.engine for n, f in router.flights.items()} == dict.fromkeys(live, 1)
        assert [e.in_flight for e in router.engines] == [0, 4]
        late = outputs(0, {"queued": 1}, {"queued"})
        await came(c, late)  # nothing of the dead engine counts any more
        assert not late.outputs
        assert "queued" in c.reqs_in_flight
        await came(c, outputs(1, {"queued": 1}, {"queued"}))
        assert "queued" not in c.reqs_in_flight
        assert "queued" not in router.flights
        from vllm.v1.engine.exceptions import EngineDeadError

        for ask in (asked, c._call_utility_async("f", engine=c.core_engines[0])):
            with pytest.raises(EngineDeadError):
                await ask
        before = len(c.input_socket.sent)
        everyone = asyncio.ensure_future(c.call_utility_async("f"))
        await asyncio.sleep(0.01)
        assert [engine for engine, _, _ in c.input_socket.sent[before:]] == [c.core_engines[1]]
        everyone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await everyone
        assert mine.counts["engines lost"] == 1
        assert mine.counts["requests sent again"] == 1
        assert mine.counts["requests failed with an engine"] == 2
        assert mine.counts["ranks of lost engines overridden"] == 2
        assert all(s.state is RequestState.SENT for s in mine.requests.values())

    asyncio.run(scene())


def test_a_client_that_goes_while_its_request_is_sent_again_is_not_served():
    async def scene():
        c = client(3)
        mine: Engines = c.__dict__[MINE]
        await c.add_request_async(request("a", "s", rank=0))
        mine.states[0] = EngineState.LOST
        mine.forget(c, "a")
        await c.abort_requests_async(["a"])
        await mine.send_again(c, "a")
        assert added(c) == [(0, "a")]
        assert not c.reqs_in_flight
        assert not mine.requests

    asyncio.run(scene())


def test_vllms_own_choice_does_not_fall_on_a_lost_engine(monkeypatch):
    async def scene():
        c = client(3)
        mine: Engines = c.__dict__[MINE]
        mine.engine_lost(1, -9, never)

        def broken(*args):
            raise ZeroDivisionError

        monkeypatch.setattr(Router, "choose", broken)
        for k in range(6):
            await c.add_request_async(request(f"r{k}"))
        assert {engine for engine, _ in added(c)} == {0, 2}
        assert +c.engine_inflight == {c.core_engines[0]: 3, c.core_engines[2]: 3}
        assert [e.in_flight for e in mine.placement.router.engines] == [3, 0, 3]

    asyncio.run(scene())


def test_anything_unexpected_leaves_it_to_vllm(monkeypatch):
    async def scene():
        c = client()
        mine, stock = c.__dict__[MINE], []
        monkeypatch.setattr(Router, "engine_lost", lambda *a: 1 / 0)
        mine.engine_lost(0, -9, lambda: stock.append("lost"))
        monkeypatch.undo()
        monkeypatch.setattr(Engines, "resend_or_fail", lambda *a: 1 / 0)
        mine.engine_lost(0, -9, lambda: stock.append("settle"))
        await asyncio.sleep(engines.DRAIN_S + 0.1)
        assert stock == ["lost", "settle"]

    asyncio.run(scene())


def test_processes_are_watched_one_by_one_and_the_last_is_vllms():
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=time.sleep, args=(600,), daemon=True) for _ in range(2)]
    for p in processes:
        p.start()

    async def scene():
        c = client()
        mine, stock = c.__dict__[MINE], []
        watcher = asyncio.ensure_future(asyncio.to_thread(mine.watch, processes, lambda: False,
                                                          lambda: stock.append(set(mine.lost))))
        processes[1].kill()
        while 1 not in mine.lost:
            await asyncio.sleep(0.05)
        assert stock == []
        processes[0].kill()
        await watcher
        assert stock == [{1}]
        del c

    try:
        asyncio.run(asyncio.wait_for(scene(), 60))
    finally:
        for p in processes:
            p.kill()
            p.join()


def test_the_last_words_of_an_engine_end_the_server_only_if_it_is_the_last():
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.engine.core_client import BackgroundResources
    from vllm.v1.engine.exceptions import EngineDeadError
    from vllm.v1.serial_utils import MsgpackDecoder

    async def scene():
        c = client()
        mine: Engines = c.__dict__[MINE]
        resources = BackgroundResources(ctx=None)
        setattr(resources, MINE, mine)

        def words():
            return [SimpleNamespace(buffer=EngineCoreProc.ENGINE_CORE_DEAD)]

        frames = words()
        resources.validate_alive(frames)
        read = MsgpackDecoder(EngineCoreOutputs).decode(frames)
        assert not read.outputs
        assert read.scheduler_stats is None
        assert mine.noticed > 0
        assert not resources.engine_dead
        mine.engine_lost(0, 1, never)
        resources.validate_alive(words())  # read after its process had been seen to end
        mine.lost_s -= 60
        with pytest.raises(EngineDeadError):
            resources.validate_alive(words())
        assert resources.engine_dead

    asyncio.run(scene())


def test_what_cannot_be_taken_out_is_left_to_vllm():
    from vllm.v1.engine.utils import CoreEngineProcManager

    async def scene():
        c = client()
        manager = object.__new__(CoreEngineProcManager)
        manager.processes = [None, None]
        manager._finalizer = SimpleNamespace(detach=lambda: None)
        c.resources.engine_manager = manager
        assert unfit(c) is None
        c.vllm_config.model_config.is_moe = True
        assert "mixture-of-experts" in unfit(c)
        c.vllm_config.model_config.is_moe = False
        manager.processes = [None]
        assert "not all engines" in unfit(c)
        c.client_count = 2
        assert "several API servers" in unfit(c)
        c.client_count, c.resources.engine_manager = 1, None
        assert "not processes" in unfit(c)

    asyncio.run(scene())
