"""Work stealing: who may take what from whom, what an engine gives up, and that no request is lost on the way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (extra serve or serve-cpu)")

from engines_kit import added, client, outputs, request, restored
from runtime_kit import Clock, drain, make_request, make_scheduler, step

from saga_rl.policies.registry import make
from saga_rl.runtime.engine.commands import give_up
from saga_rl.runtime.engine.invariants import broken
from saga_rl.runtime.engine.scheduler import SagaSyncScheduler
from saga_rl.runtime.routing import stealing
from saga_rl.runtime.routing.router import Router
from saga_rl.runtime.routing.stealing import cost_s, link_tokens_per_s, plan
from saga_rl.runtime.routing.vllm_client import MINE
from saga_rl.runtime.sessions.hints import Hints


def queue(n: int = 4, tokens: int = 1000, engines: int = 2) -> Router:
    """`n` requests of one second of prefill each wait at engine 0; the others have nothing."""
    r = Router(make("placement", "saga:steal=1"), engines, 8, 100_000, tokens_per_s=1000.0)
    for k in range(n):
        r.book(f"r{k}", Hints(session=f"s{k}"), tokens, 0, 0.1 * k)
    return r


def test_an_idle_engine_takes_the_oldest_session_that_has_waited_for_what_the_move_costs():
    r = queue()
    assert plan(r, 0.9) is None  # nobody has waited for a second yet
    assert plan(r, 1.0) == (1, 0, ["r0"])
    assert plan(r, 1.15) == (1, 0, ["r0", "r1"])
    r.output("r0", 1, False, 1.15)
    assert plan(r, 1.25) == (1, 0, ["r1", "r2"])


def test_a_session_whose_kv_is_there_moves_once_waiting_costs_more_than_computing_it_again_or_loading_it():
    r = queue(1)
    r.output("r0", 1, True, 1.0)
    r.book("x", Hints(session="x"), 6000, 0, 1.0)
    r.book("back", Hints(session="s0"), 5000, 0, 1.0)
    assert r.flights["back"].uncached == 3999  # 1,001 of them are there, and nothing at the thief
    assert plan(r, 5.9) is None
    assert plan(r, 6.1) == (1, 0, ["back"])  # 5 s
    assert plan(r, 7.1) == (1, 0, ["back", "x"])  # 6 s; the older session first
    assert plan(r, 5.0, link_rate=10_000.0) is None
    assert plan(r, 5.2, link_rate=10_000.0) == (1, 0, ["back"])  # 3.999 s and 0.1 s to load the rest


@pytest.mark.parametrize("what", ["busy", "just idle", "ratio", "most", "back", "lost", "answered"])
def test_each_guard_by_itself_prevents_a_steal(what):
    r = queue()
    now = 10.0
    assert plan(r, now) == (1, 0, ["r0", "r1", "r2", "r3"])
    if what == "busy":
        r.book("y", Hints(session="y"), 1, 1, 5.0)
    elif what == "just idle":
        r.book("y", Hints(session="y"), 1, 1, 5.0)
        r.output("y", 1, True, now - 0.05)
        assert plan(r, now + 0.06) is not None
    elif what == "ratio":
        for k in range(3):
            r.output(f"r{k}", 1, True, 5.0)
        assert plan(r, now) is not None  # a load of 1 / 8 + 1 s
        r.fixed_rate = 2000.0  # of 1 / 8 + 0.5 s: not above twice the floor of 0.5
    elif what == "most":
        for f in r.flights.values():
            f.been = set(range(2, 2 + stealing.MOST))
    elif what == "back":
        for f in r.flights.values():
            f.been = {1}
    elif what == "lost":
        r.engine_lost(1)
    else:
        for k in range(4):
            r.output(f"r{k}", 1, False, 5.0)
    assert plan(r, now) is None


def test_the_rate_of_a_link_is_the_operators_to_say():
    def config(extra):
        return SimpleNamespace(kv_transfer_config=SimpleNamespace(kv_connector_extra_config=extra))

    assert link_tokens_per_s(SimpleNamespace(kv_transfer_config=None)) == 0
    assert link_tokens_per_s(config({})) == 0
    assert link_tokens_per_s(config({"saga_link_tokens_per_s": 2e4})) == 2e4
    for bad in ("fast", -1.0, float("nan"), True):
        assert link_tokens_per_s(config({"saga_link_tokens_per_s": bad})) == 0
    r = queue(1)
    r.output("r0", 1, True, 1.0)
    r.book("back", Hints(session="s0"), 2001, 0, 2.0)
    flight = r.flights["back"]
    assert cost_s(r, flight, 0.0) == pytest.approx(2.001)
    assert cost_s(r, flight, 10_010.0) == pytest.approx(1.0 + 0.1)
    assert cost_s(r, flight, 1.0) == pytest.approx(2.001)  # a link slower than computing is not used


def test_an_engine_gives_up_only_what_it_has_not_begun(tmp_path):
    clock = Clock()
    s = make_scheduler(SagaSyncScheduler, tmp_path, blocks=64, seqs=2, clock=clock,
                       saga={"policy": "saga+", "record": str(tmp_path / "t.parquet")})
    told = []
    s.recorder.dropped = told.append
    for k in range(4):
        s.add_request(make_request(f"r{k}", [k * 100 + t for t in range(40)], session=f"s{k}"))
    free = s.kv_cache_manager.block_pool.get_num_free_blocks()
    assert give_up(s, {"requests": ["unknown", "r2"]}) == {"given": "r2"}
    assert s.kv_cache_manager.block_pool.get_num_free_blocks() == free
    step(s)
    assert give_up(s, {"requests": ["r0", "r1", "r2"]}) == {"given": None}  # begun, begun, gone
    assert give_up(s, {"requests": ["r0", "r3"]}) == {"given": "r3"}
    assert give_up(s, {}) == {"given": None}
    assert broken(s) == []
    assert sorted(drain(s, clock)) == ["r0", "r1"]
    assert told == []
    assert s.metrics.counts["given up to another engine"] == 2
    assert s.tracker.chain_of("s2") >= 0  # it is known here, as idle
    s.add_request(make_request("r4", list(range(40)), session="s2"))
    assert drain(s, clock) == ["r4"]
    assert broken(s) == []
    assert s.kv_cache_manager.block_pool.get_num_free_blocks() == free
    s.shutdown()


@pytest.fixture
def steals():
    """(client, engines): r0 and r1 wait at engine 0; asking it answers what `answer` is, at once or when told."""
    from vllm.v1.engine.core_client import BackgroundResources, DPLBAsyncMPClient

    with restored(DPLBAsyncMPClient, BackgroundResources):
        yield


async def two_waiting():
    c = client(3)
    mine = c.__dict__[MINE]
    for k in range(2):
        await c.add_request_async(request(f"r{k}", f"s{k}", rank=0))
    return c, mine


def answers(c, answer, meanwhile=None):
    async def call(method, command, payload, *, engine):
        assert (method, command, payload) == ("saga_control", "steal", {"requests": ["r0", "r1"]})
        assert engine == c.core_engines[0]
        if meanwhile is not None:
            await meanwhile()
        return answer

    c._call_utility_async = call


async def see(c, what):
    await type(c).process_engine_outputs(c, what)


def test_a_stolen_request_goes_on_at_the_thief_and_the_victims_goodbye_is_not_taken_for_its_end(steals):
    async def scene(early: bool):
        c, mine = await two_waiting()

        async def goodbye():
            await see(c, outputs(0, finished={"r0"}))

        answers(c, {"given": "r0"}, goodbye if early else None)
        assert await stealing.steal(c, mine, 1, 0, ["r0", "r1"]) == "r0"
        if not early:
            await goodbye()
        assert added(c) == [(0, "r0"), (0, "r1"), (1, "r0")]
        assert c.reqs_in_flight == {"r0": c.core_engines[1], "r1": c.core_engines[0]}
        router = mine.placement.router
        assert {n: f.engine for n, f in router.flights.items()} == {"r0": 1, "r1": 0}
        await see(c, outputs(1, {"r0": 3}, {"r0"}))
        await see(c, outputs(0, {"r1": 3}, {"r1"}))
        assert not c.reqs_in_flight
        assert not +c.engine_inflight
        assert not router.flights
        assert not mine.requests
        assert mine.counts["steals"] == 1

    for early in (False, True):
        with restored(*classes()):
            asyncio.run(scene(early))


def classes():
    from vllm.v1.engine.core_client import BackgroundResources, DPLBAsyncMPClient

    return DPLBAsyncMPClient, BackgroundResources


@pytest.mark.parametrize("what", ["nothing", "client goes", "client goes late", "victim dies", "thief dies"])
def test_whatever_happens_while_an_engine_is_asked_no_request_is_lost_or_served_twice(steals, what):
    async def scene():
        c, mine = await two_waiting()

        async def meanwhile():
            if what == "client goes":
                await c.abort_requests_async(["r0"])
                await see(c, outputs(0, finished={"r0"}))
            elif what == "client goes late":  # the victim had given it up, and says so, before the client went
                await see(c, outputs(0, finished={"r0"}))
                await c.abort_requests_async(["r0"])
            elif what == "victim dies":
                mine.engine_lost(0, -9, lambda: None)
                await mine.resend_or_fail(0)
            elif what == "thief dies":
                mine.engine_lost(1, -9, lambda: None)
                await mine.resend_or_fail(1)

        answers(c, {"given": None if what == "nothing" else "r0"}, meanwhile)
        assert await stealing.steal(c, mine, 1, 0, ["r0", "r1"]) is None
        again = [name for _, name in added(c, 2)]
        sent = dict(reversed([(name, w) for w, name in reversed(added(c))]))  # where each went last
        router = mine.placement.router
        live = {"r1"} if what.startswith("client") else {"r0", "r1"}
        assert sorted(again) == {"victim dies": ["r0", "r1"], "thief dies": ["r0"]}.get(what, [])
        assert {n: c.core_engines.index(e) for n, e in c.reqs_in_flight.items()} == {n: sent[n] for n in live}
        assert {n: f.engine for n, f in router.flights.items()} == {n: sent[n] for n in live}
        assert sum(c.engine_inflight.values()) == sum(e.in_flight for e in router.engines) == len(live)
        assert {name for name in mine.requests if mine.unanswered(name) is not None} == live
        for name in live:
            await see(c, outputs(sent[name], {name: 1}, {name}))
        assert not c.reqs_in_flight and not router.flights and not mine.requests and not +c.engine_inflight

    asyncio.run(scene())
