"""Two real engines behind `saga-rl serve`: a queued request is stolen, an engine is killed, and then the other.

The devices are emulated and answers have no end until their clients leave, so nothing is over before it should be.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator

import pytest
from live_kit import Crowd, Server, together, until

SLOTS = 3
CONFIG = {"saga": {"policy": {"eviction": "youngest", "placement": "saga:theta=100,steal=1", "ordering": "session-fcfs",
                              "admission": "reserve-older"}, "check": "log", "prefill_tokens_per_s": 10_000.0}}
pytestmark = [pytest.mark.emulated, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    s = Server(tmp_path_factory.mktemp("two"), "-dp", "2", "--additional-config", json.dumps(CONFIG), seqs=SLOTS,
               blocks=16_384, step_s=0.02)  # room for all that have no end: admission reserves it
    try:
        s.wait()
        yield s
    finally:
        s.stop()


def router(server: Server) -> dict:
    return server.status()["router"]


def waiting(server: Server, rank: int) -> int:
    return server.engines()[rank]["requests/waiting"]


def test_1_an_idle_engine_takes_queued_requests_and_their_streams_go_on(server):
    async def scene(crowd: Crowd):
        for k in range(9):  # they live on engine 0 from now on
            assert await crowd.ask(f"s{k}", 1, rank=0) == (1, "")
        await crowd.hold(*(f"s{k}" for k in range(SLOTS)))  # nothing else ever runs there
        assert {k: e["requests/running"] for k, e in server.engines().items()} == {0: SLOTS, 1: 0}
        return await asyncio.gather(*(crowd.ask(f"s{k}", 5) for k in range(SLOTS, 9)))

    assert together(server, scene) == [(5, "")] * 6
    engines, routed = server.until_idle(), router(server)
    assert routed["steals"] == 6, routed
    assert engines[0]["given up to another engine"] == engines[1]["requests"] == 6
    assert all("invariants broken" not in e for e in engines.values())
    assert [k for k in routed if k.startswith("fallback") and "budget" not in k] == []


def test_2_an_engine_is_killed_under_load(server):
    """Answers that had begun fail; those that had not are sent again, also those that had asked for the engine."""
    pinned, free = ["p0", "p1"], ["f0", "f1"]

    async def scene(crowd: Crowd):
        for name in free:
            assert await crowd.ask(name, 1, rank=0) == (1, "")
        (other,) = await crowd.hold("other", rank=1)  # an engine that is busy steals nothing
        begun = await crowd.hold(*(f"b{k}" for k in range(SLOTS)), rank=0)
        queued = [crowd.ask(name, 5, rank=0) for name in pinned] + [crowd.ask(name, 5) for name in free]
        await crowd.until(lambda: waiting(server, 0) == len(queued), "four wait for engine 0")
        os.kill(server.engine(0), signal.SIGKILL)
        failed, answered = await asyncio.gather(*begun), await asyncio.gather(*queued)
        assert not other.done()
        return failed, answered, await asyncio.gather(*(crowd.ask(f"b{k}", 5) for k in range(SLOTS)))

    failed, answered, later = together(server, scene)
    assert all(n == 0 and "Internal server error" in error for n, error in failed), failed
    assert answered == [(5, "")] * 4
    assert later == [(5, "")] * SLOTS
    assert server.health() == 200
    engines, routed = server.until_idle(), router(server)
    assert list(engines) == [1] and "invariants broken" not in engines[1]
    assert engines[1]["kv/running"] == 0  # every block that was taken is free again
    counted = ("engines lost", "engines live", "requests failed with an engine", "requests sent again")
    assert [routed[k] for k in counted] == [1, 1, SLOTS, 4]
    assert "engine 0 ended (status -9); 1 of 2 serve on" in server.log.read_text()


def test_3_the_last_engines_death_ends_the_server_as_ever(server):
    os.kill(server.engine(1), signal.SIGKILL)
    until(lambda: server.health() in (0, 503), "nobody is told any more that all is well")
    until(lambda: "the last engine ended" in server.log.read_text(), "the log says why")
