"""Three API servers before two engines: sessions keep their engine whichever server they come through, an idle engine
takes requests of all, a server that is killed takes no other along, and an engine that hangs is out for all.

Every request has a connection of its own, so the kernel draws its server.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import live_kit
import pytest
from live_kit import Crowd, Server, until

SLOTS = 3
CONFIG = {"saga": {"policy": {"eviction": "youngest", "placement": "saga:theta=100,steal=1", "ordering": "session-fcfs",
                              "admission": "reserve-older"}, "check": "log", "prefill_tokens_per_s": 10_000.0,
                   "hung_s": 30.0}}
FRONT = 3
pytestmark = [pytest.mark.emulated, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("servers")
    s = Server(folder, "-dp", "2", "--api-server-count", str(FRONT), "--metrics", str(folder / "numbers"),
               "--additional-config", json.dumps(CONFIG), seqs=SLOTS, blocks=16_384, step_s=0.02)
    s.http.close()
    s.http = httpx.Client(base_url=s.url, timeout=600, limits=httpx.Limits(max_keepalive_connections=0))
    try:
        s.wait()
        yield s
    finally:
        s.stop()


together = partial(live_kit.together, kept_alive=0)


def every(server: Server, what: str, count: int) -> list[dict[str, Any]]:
    """What all routers count, once `what` is `count` in all."""
    def found() -> list[dict[str, Any]] | None:
        files = [server.log.with_name("numbers") / f"router-{k}.json" for k in range(FRONT)]
        said = [json.loads(f.read_text()) if f.is_file() else {} for f in files]
        return said if sum(s.get(what, 0) for s in said) == count else None

    return until(found, f"{what} is {count} in all")


def test_1_a_session_stays_whichever_server_it_comes_through(server):
    """Its first engine is the one that the client named; no server could know that by itself."""
    sessions, turns = [f"t{k}" for k in range(12)], 4

    async def scene(crowd: Crowd):
        for k, name in enumerate(sessions):
            assert await crowd.ask(name, 1, rank=k % 2) == (1, "")
        for _ in range(turns):
            for name in sessions:  # one at a time: nothing queues, so nothing is stolen
                assert await crowd.ask(name, 1) == (1, "")

    together(server, scene)
    engines = server.until_idle()
    assert [engines[w]["requests"] for w in (0, 1)] == [6 * (1 + turns)] * 2
    assert sum(engines[w]["chains"] for w in (0, 1)) == len(sessions)  # one that had been on both would count twice
    said = every(server, "placements", len(sessions) * turns)
    assert sum(s["placements"] > 0 for s in said) > 1, said
    assert sum(s["migrations"] for s in said) == 0
    assert "share no table" not in server.log.read_text()


def test_2_an_idle_engine_takes_requests_of_all_servers(server):
    async def scene(crowd: Crowd):
        for k in range(15):
            assert await crowd.ask(f"s{k}", 1, rank=0) == (1, "")
        await crowd.hold(*(f"s{k}" for k in range(SLOTS)))
        assert {k: e["requests/running"] for k, e in server.engines().items()} == {0: SLOTS, 1: 0}
        return await asyncio.gather(*(crowd.ask(f"s{k}", 5) for k in range(SLOTS, 15)))

    assert together(server, scene) == [(5, "")] * 12
    engines = server.until_idle()
    said = every(server, "steals", 12)
    assert engines[0]["given up to another engine"] == 12, said
    assert all("invariants broken" not in e for e in engines.values())


def test_3_a_server_is_killed_under_load(server):
    """Clients of it see their connections close, and send again what had not begun, as SDKs do. The others serve on,
    and what it had sent is taken out of the engines."""
    async def ask(crowd: Crowd, name: str) -> tuple[tuple[int, str], bool]:
        try:
            return await crowd.ask(name, 5), False
        except httpx.TransportError:
            return await crowd.ask(name, 5), True

    async def scene(crowd: Crowd):
        front = [p for p in server.processes() if "APIServer_" in " ".join(p.cmdline())]
        assert len(front) == FRONT
        endless = await crowd.hold(*(f"e{k}" for k in range(2 * SLOTS)))  # every place of both engines is taken
        waiting = [asyncio.ensure_future(ask(crowd, f"w{k}")) for k in range(6)]
        await crowd.until(lambda: sum(e["requests/waiting"] for e in server.engines().values()) == 6, "six wait")
        max(front, key=lambda p: len(p.net_connections("tcp"))).kill()  # one that somebody is connected to
        await crowd.until(lambda: any(t.done() for t in endless + waiting), "somebody's connection closes")
        await crowd.until(lambda: sum(e.get("requests of a server that ended", 0) for e in server.engines().values()),
                          "what it had sent is taken out of the engines")
        await crowd.close()  # the endless ones end, and those that wait have their turn
        return await asyncio.gather(*waiting)

    answered = together(server, scene)
    assert [what for what, _ in answered] == [(5, "")] * 6
    engines = server.until_idle()
    assert all("invariants broken" not in e and e["kv/running"] == 0 for e in engines.values())
    assert server.health() == 200 and "ended (status -9); 2 of 3 serve on" in server.log.read_text()


def test_4_an_engine_hangs_under_load(server):
    """Its process is ended once it has said nothing for `hung_s`."""
    begun_names, queued_names = [f"b{k}" for k in range(SLOTS)], [f"q{k}" for k in range(6)]

    async def scene(crowd: Crowd):
        for name in queued_names:
            assert await crowd.ask(name, 1, rank=0) == (1, "")
        (other,) = await crowd.hold("other", rank=1)  # an engine that is busy steals nothing
        begun = await crowd.hold(*begun_names, rank=0)
        queued = [crowd.ask(name, 5) for name in queued_names]
        await crowd.until(lambda: server.engines()[0]["requests/waiting"] == len(queued), "they wait for engine 0")
        os.kill(server.engine(0), signal.SIGSTOP)
        failed, answered = await asyncio.gather(*begun), await asyncio.gather(*queued)
        assert not other.done()
        return failed, answered, await asyncio.gather(*(crowd.ask(name, 5) for name in begun_names))

    failed, answered, later = together(server, scene)
    assert all(n == 0 and "Internal server error" in error for n, error in failed), failed
    assert answered == [(5, "")] * len(queued_names)
    assert later == [(5, "")] * SLOTS
    assert server.health() == 200
    assert list(server.until_idle()) == [1]
    for what, count in (("requests failed with an engine", SLOTS), ("requests sent again", len(queued_names))):
        every(server, what, count)  # each server writes its counters once a second
    said = every(server, "engines lost", 2)
    assert sorted(s["engines live"] for s in said) == [1, 1, 2], said  # the dead server's last word is old
    assert "saga-rl: engine 0 ended (status -9); the servers take it out" in server.log.read_text()


def test_5_the_last_engines_death_ends_all_as_ever(server):
    os.kill(server.engine(1), signal.SIGKILL)
    until(lambda: server.process.poll() is not None, "the servers end")
    assert "the last engine ended" in server.log.read_text()
