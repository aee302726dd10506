"""Placement between engines: what the router believes, where sessions go, and what happens when our part fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from engines_kit import restored
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.policies import features as ft
from saga_rl.policies.registry import make
from saga_rl.runtime.config.settings import SagaConfig
from saga_rl.runtime.routing.router import LOST, Router, _draw
from saga_rl.runtime.routing.router_shared import SharedRouter
from saga_rl.runtime.sessions.hints import Hints


def router(policy: str = "saga", **kwargs) -> Router:
    return Router(make("placement", policy), 2, 8, 10_000, tokens_per_s=1000.0, **kwargs)


def send(r: Router, name: str, session: str | None, tokens: int, now: float, **hints) -> int:
    h = Hints(session=session, **hints)
    w = r.choose(h, tokens, now)
    r.book(name, h, tokens, w, now)
    return w


def test_a_session_stays_until_its_engine_is_loaded_and_stays_for_good_when_sticky():
    for policy, moved in (("saga", True), ("sticky", False)):
        r = router(policy)
        home = send(r, "a", "s", 100, 0.0)
        r.output("a", 1, True, 1.0)
        assert send(r, "b", "s", 100, 2.0) == home
        r.output("b", 1, True, 3.0)
        for k in range(4):  # 4 x 500 tokens wait there: two seconds of prefill
            r.book(f"x{k}", Hints(session=f"x{k}"), 500, home, 3.0)
        assert (send(r, "c", "s", 100, 4.0) != home) == moved
        assert r.migrations == int(moved)


def test_new_sessions_go_where_fewer_wait_and_ties_where_fewer_live():
    r = router("least-load")
    assert [send(r, f"r{k}", f"s{k}", 100, 0.0) for k in range(4)] == [0, 1, 0, 1]
    for k in range(4):
        r.output(f"r{k}", 5, True, 1.0)
    r.output("unknown", 5, True, 1.0)
    assert send(r, "r4", "s4", 100, 2.0) == 0
    r.output("r4", 1, True, 3.0)
    assert send(r, "r5", "s5", 100, 4.0) == 1  # nothing is loaded, two live there against three


def test_rows_say_what_was_sent_and_what_came_back():
    r = router()
    assert send(r, "a", "s", 400, 0.0) == 0
    row = r.rows(Hints(session="t"), 200, 1.0)
    assert row[0, ft.PL.in_flight] == 1
    assert row[0, ft.PL.queued_s] == pytest.approx(0.4)
    assert row[0, ft.PL.pinned] == pytest.approx(0.04)
    r.output("a", 1, False, 1.5)
    assert r.rows(Hints(session="t"), 200, 2.0)[0, ft.PL.queued_s] == 0
    r.output("a", 99, True, 2.5)
    row = r.rows(Hints(session="s"), 1000, 3.5).copy()
    assert row[:, ft.PL.in_flight].tolist() == [0, 0]
    assert row[:, ft.PL.home].tolist() == [1, 0]
    assert row[0, ft.PL.hit] == pytest.approx(0.5)
    assert row[:, ft.PL.sessions].tolist() == [1 / 8, 0]
    assert row[0, ft.PL.idle_log] == pytest.approx(np.log1p(1.0))


def test_a_lost_engine_is_never_chosen_and_its_sessions_live_elsewhere_from_then_on():
    r = Router(make("placement", "sticky"), 3, 8, 10_000, tokens_per_s=1000.0)
    homes = {s: send(r, s, s, 100, 0.0) for s in "abc"}
    assert sorted(homes.values()) == [0, 1, 2]
    for s in "bc":
        r.output(s, 1, True, 1.0)
    assert r.engine_lost(homes["a"]) == ["a"]
    assert r.rows(Hints(session="a"), 100, 2.0)[:, ft.PL.home].sum() == 0
    r.gone("a", 2.0)
    moved = send(r, "a2", "a", 100, 2.0)
    assert moved != homes["a"]
    r.output("a2", 1, True, 3.0)
    assert {send(r, f"n{k}", None, 10, 4.0) for k in range(9)} == {homes["b"], homes["c"]}
    r.engine_back(homes["a"])
    assert send(r, "n", None, 10, 5.0) == homes["a"]
    assert send(r, "a3", "a", 100, 5.0) == moved
    assert sum(e.homed for e in r.engines) == len(r._counted) == 13


def test_orders_are_drawn_as_if_lost_engines_had_never_been():
    """Two choices among the live; and a chain's order of the others stays as it was."""
    n = 6
    for key in range(50):
        before, after = np.zeros((n, len(ft.PLACEMENT))), np.zeros((n, len(ft.PLACEMENT)))
        state = np.zeros((n, 6))
        _draw(key, 3, state, before)
        state[[1, 4], LOST] = 1
        _draw(key, 3, state, after)
        for column in (ft.PL.draw, ft.PL.ring):
            order = [w for w in np.argsort(before[:, column]) if w not in (1, 4)]
            assert sorted(before[:, column]) == sorted(after[:, column]) == list(range(n))
            assert np.argsort(after[:, column])[:4].tolist() == order
    r = Router(make("placement", "power-of-two"), 4, 8, 10_000)
    for w in (0, 1):
        r.engine_lost(w)
    assert {send(r, f"r{k}", None, 10, 0.0) for k in range(40)} == {2, 3}


def test_a_stolen_request_counts_where_it_went():
    r = router("sticky")
    for k in range(3):
        r.book(f"r{k}", Hints(session=f"s{k}"), 100 * (k + 1), 0, 0.0)
    r.moved("r1", 1, 1.0)
    assert [(e.in_flight, e.flight_tokens, e.queued_tokens, e.homed) for e in r.engines] == [(2, 400, 400, 2),
                                                                                             (1, 200, 200, 1)]
    assert (r.steals, r.migrations, r.flights["r1"].been) == (1, 1, {0})
    r.output("r1", 3, True, 2.0)
    assert send(r, "again", "s1", 50, 3.0) == 1
    r.output("r0", 1, False, 2.0)
    with pytest.raises(ValueError, match="begun to answer"):
        r.moved("r0", 1, 2.0)


SESSIONS = 6
ACT = st.tuples(st.integers(0, SESSIONS - 1), st.integers(1, 3000), st.booleans(), st.floats(0.0, 40.0),
                st.lists(st.tuples(st.sampled_from(("first", "finish", "abort", "move", "lose", "back", "again")),
                                   st.integers(0, 99)), max_size=4))


@settings(max_examples=120, deadline=None)
@given(st.lists(ACT, max_size=40), st.booleans())
def test_counts_are_those_of_the_open_requests_whatever_happens_in_whatever_order(acts, shared):
    """Clients that go, answers of lost engines, finishes told twice, steals: nothing leaks or is counted twice."""
    policy, kw = make("placement", "saga:theta=1"), {"expiry_s": 30.0, "tokens_per_s": 1000.0}
    r = SharedRouter(policy, 3, 8, 10_000, servers=2, counts=lambda: [[1, 2, 0.5]] * 3, **kw) if shared else Router(
        policy, 3, 8, 10_000, **kw)
    now, open_, done, lost = 0.0, {}, [], set()
    for n, (session, tokens, final, gap, then) in enumerate(acts):
        now += gap
        w = send(r, f"r{n}", None if session == 0 else f"s{session}", tokens, now, final=final)
        assert w not in lost or len(lost) == 3
        open_[f"r{n}"] = (w, tokens)
        for what, k in then:
            names = sorted(open_)
            name = names[k % len(names)] if names else "never sent"
            if what == "first":
                r.output(name, 1, False, now)
            elif what == "finish":
                r.output(name, k % 3, True, now)
                done += [name] if open_.pop(name, None) else []
            elif what == "abort":
                r.gone(name, now)
                done += [name] if open_.pop(name, None) else []
            elif what == "move" and name in open_ and not r.flights[name].answered:
                r.moved(name, k % 3, now)
                open_[name] = (k % 3, open_[name][1])
            elif what == "lose":
                lost.add(k % 3)
                there = r.engine_lost(k % 3)
                assert sorted(there) == sorted(x for x, (w, _) in open_.items() if w == k % 3)
                for x in there[::2]:  # aborted; the others are sent again
                    r.gone(x, now)
                    done.append(x)
                    del open_[x]
                for x in there[1::2]:
                    w = send(r, x, f"s{k % SESSIONS}", 7, now)
                    open_[x] = (w, 7)
            elif what == "back":
                lost.discard(k % 3)
                r.engine_back(k % 3)
            elif what == "again" and done:  # a late output, a second finish, a second abort
                r.output(done[k % len(done)], 1, k % 2 == 0, now)
                r.gone(done[k % len(done)], now)
        assert sorted(r.flights) == sorted(open_)
        for w, e in enumerate(r.engines):
            mine = {x: t for x, (v, t) in open_.items() if v == w}
            assert e.in_flight == len(mine)
            assert e.flight_tokens == sum(mine.values())
            assert e.queued_tokens == sum(r.flights[x].uncached for x in mine if not r.flights[x].answered)
            assert e.lost == (w in lost)
        assert sum(e.homed for e in r.engines) == len(r._counted) <= len(r.tracker)
    for name in open_:
        r.gone(name, now)
    assert all((e.in_flight, e.flight_tokens, e.queued_tokens) == (0, 0, 0) for e in r.engines)
    r._sweep(now + 1e5)
    assert all(e.homed == 0 for e in r.engines)
    assert not r._home and not r.flights and len(r.tracker) == 0


def test_servers_that_share_nothing_send_a_session_to_the_same_engine():
    counts = [[0, 0, 0.0] for _ in range(4)]
    a, b = (SharedRouter(make("placement", "saga:theta=100"), 4, 8, 10_000, servers=2, counts=lambda: counts,
                         tokens_per_s=1000.0) for _ in range(2))
    homes = {f"s{k}": send(a, f"a{k}", f"s{k}", 50, 0.0) for k in range(40)}
    assert {s: send(b, f"b{s}", s, 50, 0.0) for s in homes} == homes
    assert set(homes.values()) == {0, 1, 2, 3}
    assert send(a, "lane", "s1", 50, 0.0) == homes["s1"]  # a second request of the agent at the same time
    for r in (a, b):
        r.engine_lost(2)
    after = {s: (send(a, f"c{s}", s, 50, 1.0), send(b, f"d{s}", s, 50, 1.0)) for s in homes}
    assert all(x == y != 2 and (x == homes[s] or homes[s] == 2) for s, (x, y) in after.items())


def test_a_shared_router_believes_the_engines_about_load_and_places_nameless_requests_by_it():
    counts = [[0, 0, 0.0], [3, 8, 0.9]]
    r = SharedRouter(make("placement", "saga:theta=0.5"), 2, 8, 10_000, servers=3, counts=lambda: counts,
                     tokens_per_s=1000.0)
    row = r.rows(Hints(session="s"), 50, 0.0)
    assert row[:, ft.PL.in_flight].tolist() == [0, 11]
    assert row[:, ft.PL.pinned].tolist() == [0, pytest.approx(0.9)]
    assert {send(r, f"r{k}", f"s{k}", 1, 0.0) for k in range(4)} == {0}  # also those at home on the loaded one
    assert r.rows(Hints(), 50, 0.0)[:, ft.PL.home].sum() == 0
    assert r.rows(Hints(), 50, 0.0)[0, ft.PL.in_flight] == 12  # four of its own, believed of each of three servers


def test_the_measured_rate_follows_what_engines_do():
    r = Router(make("placement", "saga"), 1, 8, 10_000)
    now = 0.0
    for k in range(400):
        send(r, f"r{k}", None, 500, now)
        now += 0.25
        r.output(f"r{k}", 1, True, now)
        now += 5.0
    assert r.tokens_per_s == pytest.approx(2000, rel=0.7)
    assert r.tokens_per_s < 8000


class FakeClient:
    """Stands in for vLLM's client: what the two replaced methods touch, and nothing more."""

    def __init__(self) -> None:
        self.core_engines = [b"0", b"1"]
        self.reqs_in_flight: dict[str, bytes] = {}
        self.engine_inflight: Counter = Counter()
        self.streaming_reqs: set[str] = set()
        self.lb_engines = [[0, 0, 0.0], [0, 0, 0.0]]
        self.client_count, self.eng_start_index = 1, 0
        self.vllm_config = SimpleNamespace(cache_config=SimpleNamespace(num_gpu_blocks=100, block_size=16),
                                           scheduler_config=SimpleNamespace(max_num_seqs=8))


def request(name: str, session: str | None = None, rank: int | None = None):
    return SimpleNamespace(request_id=name, session_id=session, data_parallel_rank=rank, pooling_params=None,
                           resumable=False, sampling_params=SimpleNamespace(extra_args=None), prompt_token_ids=[1] * 50)


@pytest.fixture
def client_class():
    """vLLM's class with our methods, put back afterwards."""
    pytest.importorskip("vllm")
    from vllm.v1.engine.core_client import BackgroundResources
    from vllm.v1.engine.core_client import DPLBAsyncMPClient as Client

    with restored(Client, BackgroundResources):
        yield Client


def test_vllms_client_asks_us_and_keeps_its_own_books(client_class):
    from engines_kit import install_placement

    placement = install_placement(make("placement", "sticky"), SagaConfig(policy="lru"))
    client, pick = FakeClient(), client_class.get_core_engine_for_request
    engines = [pick(client, request(f"r{k}", f"s{k % 2}")) for k in range(6)]
    assert engines == [b"0", b"1"] * 3
    assert client.engine_inflight == {b"0": 3, b"1": 3}
    pinned = request("pinned", "s0", rank=1)
    assert pick(client, pinned) == b"1"
    assert pinned.data_parallel_rank == 1
    done = SimpleNamespace(outputs=[SimpleNamespace(request_id="r0", new_token_ids=[1], finish_reason=1)],
                           finished_requests={"r0", "r1"})
    asyncio.run(client_class.process_engine_outputs(client, done))
    assert sorted(client.reqs_in_flight) == ["pinned", "r2", "r3", "r4", "r5"]
    assert sorted(placement.router.flights) == sorted(client.reqs_in_flight)
    assert placement.metrics.counts["placements"] == 6


def test_when_our_choice_fails_vllm_decides_and_it_is_counted(client_class, monkeypatch):
    from engines_kit import install_placement

    placement = install_placement(make("placement", "sticky"), SagaConfig(policy="lru"))

    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(Router, "choose", broken)
    client = FakeClient()
    r = request("r", "s")
    assert client_class.get_core_engine_for_request(client, r) in client.core_engines
    assert r.data_parallel_rank is None
    assert placement.metrics.counts["fallback/placement/choice ZeroDivisionError"] == 1
    assert list(placement.router.flights) == ["r"]
