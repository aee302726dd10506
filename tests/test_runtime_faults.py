"""Engines that hang, API servers that die, disks that fill up: what is noticed, what is done, what is left alone."""

from __future__ import annotations

import asyncio
import errno
import json
import multiprocessing
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (extra serve or serve-cpu)")

from engines_kit import client, outputs, request, restored
from runtime_kit import Clock, drain, make_request, make_scheduler, step

from saga_rl.runtime.config.ours import METHOD
from saga_rl.runtime.engine import commands
from saga_rl.runtime.engine import metrics as metrics_module
from saga_rl.runtime.engine.metrics import Metrics
from saga_rl.runtime.engine.scheduler import SagaSyncScheduler
from saga_rl.runtime.routing import engines, parent
from saga_rl.runtime.routing.engines import Engines
from saga_rl.runtime.routing.shared_table import STATUS, SharedTable
from saga_rl.runtime.routing.silence import Silence
from saga_rl.runtime.routing.vllm_client import MINE
from saga_rl.runtime.server.poller import Poller


@pytest.fixture(autouse=True)
def classes_as_they_were():
    from vllm.v1.engine.core_client import BackgroundResources, DPLBAsyncMPClient

    with restored(DPLBAsyncMPClient, BackgroundResources):
        yield


# ---------------------------------------------------------------- engines that hang
def test_silence_counts_only_while_something_is_owed_and_is_told_once():
    s = Silence(3)
    assert s.hung({0, 1}, 10.0, 6.0) == []
    s.heard(1)
    assert s.hung({0, 1, 2}, 10.0, 6.0) == [0]
    assert s.hung({0, 1, 2}, 10.0, 3.0) == []  # 0 was told; 1 was heard, 2 owes since then
    assert s.hung({1}, 10.0, 1.0) == [1]
    assert s.hung({0, 1, 2}, 10.0, 9.0) == []  # 0 and 2 owed nothing in between
    s.orders[0] = 1  # an operator's order may take as long as it likes
    assert s.hung({0, 2}, 10.0, 50.0) == [2]
    s.orders[0] = 0
    assert s.hung({0}, 10.0, 9.0) == []


def test_an_engine_that_owes_answers_and_says_nothing_is_ended_but_never_the_last():
    async def scene():
        c = client()
        mine: Engines = c.__dict__[MINE]
        ended: list[int] = []
        mine.hung_s, mine.end_engine = 10.0, ended.append
        for k in range(2):
            await c.add_request_async(request(f"r{k}", f"s{k}", rank=k))
        mine.look_for_hung(6.0)
        await type(c).process_engine_outputs(c, outputs(1, {"r1": 1}))
        mine.look_for_hung(6.0)
        assert ended == [0] and mine.counts["engines found hung"] == 1
        mine.engine_lost(0, -9, lambda: None)
        await asyncio.sleep(engines.DRAIN_S + 0.1)
        assert c.reqs_in_flight == dict.fromkeys(("r0", "r1"), c.core_engines[1])
        for _ in range(9):
            mine.look_for_hung(6.0)
        assert ended == [0]
        mine.hung_s = None
        mine.look_for_hung(1e9)

    asyncio.run(scene())


def test_an_order_of_vllms_own_may_take_as_long_as_it_likes():
    async def scene():
        c = client()
        mine: Engines = c.__dict__[MINE]
        ended: list[int] = []
        mine.hung_s, mine.end_engine = 10.0, ended.append
        await c.add_request_async(request("r", "s", rank=0))
        order = asyncio.ensure_future(c._call_utility_async("wake_up", engine=c.core_engines[0]))
        await asyncio.sleep(0)
        mine.look_for_hung(99.0)
        assert ended == []
        order.cancel()
        await asyncio.gather(order, return_exceptions=True)
        question = asyncio.ensure_future(c._call_utility_async(METHOD, "snapshot", {}, engine=c.core_engines[0]))
        await asyncio.sleep(0)
        mine.look_for_hung(99.0)
        assert ended == [0]
        question.cancel()
        await asyncio.gather(question, return_exceptions=True)

    asyncio.run(scene())


def test_a_round_that_was_held_up_here_does_not_count_as_silence_there(monkeypatch):
    looked: list[float] = []
    core = SimpleNamespace(saga_engines=SimpleNamespace(look_for_hung=looked.append))
    poller = Poller(SimpleNamespace(engine_core=core), every_s=2.0)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    poller._look_for_hung(997.5)
    poller._look_for_hung(0.0)  # this process stood still
    poller.quiet()
    poller._look_for_hung(0.0)
    assert looked == [2.5, 5.0]


def test_the_parent_ends_what_a_server_found_hung_but_never_the_last():
    killed: list[int] = []
    table, _ = SharedTable.make(2, 3)
    alive = {w: SimpleNamespace(kill=lambda w=w: killed.append(w)) for w in range(3)}
    parent._end_hung(alive, table)
    table.hung[1] = 1
    parent._end_hung(alive, table)
    assert killed == [1]
    table.hung[:] = 1
    parent._end_hung(alive, table)
    assert killed == [1]


# ---------------------------------------------------------------- API servers that die
def test_a_server_that_dies_is_no_failure_for_vllm_until_the_last():
    from vllm.v1.utils import wait_for_completion_or_failure

    table, _ = SharedTable.make(3, 2)
    table.watched[0] = 1
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=time.sleep, args=(3600,), name=f"server {k}") for k in range(3)]
    for p in processes:
        p.start()
    outcome: list[str] = []

    def wait() -> None:
        try:
            wait_for_completion_or_failure(SimpleNamespace(processes=parent.spared(processes, table)))
        except RuntimeError as e:
            outcome.append(str(e))

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        for k in (2, 0):
            processes[k].kill()
            while not table.gone[k]:
                assert thread.is_alive(), outcome
                time.sleep(0.05)
        assert table.gone.tolist() == [STATUS - signal.SIGKILL, 0, STATUS - signal.SIGKILL]
        assert thread.is_alive()
        processes[1].kill()
        thread.join(300)
        assert "server 1" in outcome[0] and table.gone[1] == 0
    finally:
        for p in processes:
            p.kill()
            p.join()


def test_what_a_dead_server_had_sent_counts_no_more_and_is_taken_out_of_the_engines():
    async def scene():
        c = client()
        mine: Engines = c.__dict__[MINE]
        told: list[int] = []
        mine.on_server_lost = told.append
        table, _ = SharedTable.make(3, 2)
        table.loads[:] = 5.0
        table.idle_s[:] = np.nan
        table.gone[2] = STATUS - 9
        before = len(c.input_socket.sent)
        mine.server_lost(2, table)
        while len(c.input_socket.sent) < before + 2:
            await asyncio.sleep(0)
        assert table.loads.any(axis=(1, 2)).tolist() == [True, True, False]
        assert np.isneginf(table.idle_s[2]).all() and np.isnan(table.idle_s[:2]).all()
        assert [engine for engine, _, _ in c.input_socket.sent[before:]] == c.core_engines
        assert told == [2] and mine.counts["servers lost"] == 1
        for task in list(mine.tasks):
            task.cancel()

    asyncio.run(scene())


def test_an_engine_lets_go_of_what_a_dead_server_had_sent(tmp_path):
    s = make_scheduler(SagaSyncScheduler, tmp_path, blocks=33, seqs=2, clock=Clock(), saga={"policy": "lru"})
    for k in range(6):
        r = make_request(f"r{k}", list(range(50 * k, 50 * k + 100)), session=f"s{k}")
        r.client_index = k % 2
        s.add_request(r)
    step(s)
    assert commands.handle(s, "client gone", {"client": 1}) == {"requests": 3}
    assert {r.client_index for r in s.requests.values()} == {0}
    assert commands.handle(s, "client gone", {"client": 1}) == {"requests": 0}
    drain(s)
    assert not s.requests and s.snapshot()["kv/running"] == 0


# ---------------------------------------------------------------- a disk that fills up
def test_counters_are_written_again_when_there_is_room_again(tmp_path, monkeypatch, caplog):
    counters = Metrics("engine-0", 30.0, str(tmp_path))
    counters.counts["seen"] = 1

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(metrics_module, "write_json", full)
        counters._write()
        counters._write()
    assert sum("cannot write counters" in r.message for r in caplog.records) == 1
    assert list(tmp_path.iterdir()) == []
    counters._write()
    assert json.loads((tmp_path / "engine-0.json").read_text())["seen"] == 1
