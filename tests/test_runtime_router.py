"""Placement between engines: what the router believes, where sessions go, and what happens when our part fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.policies import features as ft
from saga_rl.policies.registry import make
from saga_rl.runtime.config import SagaConfig
from saga_rl.runtime.hints import Hints
from saga_rl.runtime.router import Router


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
    assert row[0, ft.P_IN_FLIGHT] == 1
    assert row[0, ft.P_QUEUED] == pytest.approx(0.4)
    assert row[0, ft.P_PINNED] == pytest.approx(0.04)
    r.output("a", 1, False, 1.5)
    assert r.rows(Hints(session="t"), 200, 2.0)[0, ft.P_QUEUED] == 0
    r.output("a", 99, True, 2.5)
    row = r.rows(Hints(session="s"), 1000, 3.5).copy()
    assert row[:, ft.P_IN_FLIGHT].tolist() == [0, 0]
    assert row[:, ft.P_HOME].tolist() == [1, 0]
    assert row[0, ft.P_HIT] == pytest.approx(0.5)
    assert row[:, ft.P_SESSIONS].tolist() == [1 / 8, 0]
    assert row[0, ft.P_IDLE] == pytest.approx(np.log1p(1.0))


ACT = st.tuples(st.integers(0, 5), st.integers(1, 3000), st.sampled_from(("first", "finish", "abort", "none")),
                st.booleans(), st.floats(0.0, 40.0))


@settings(max_examples=80, deadline=None)
@given(st.lists(ACT, max_size=60))
def test_counts_return_to_zero_and_no_session_is_counted_twice(acts):
    r = router(expiry_s=30.0)
    now, open_ = 0.0, []
    for n, (session, tokens, fate, final, gap) in enumerate(acts):
        now += gap
        send(r, f"r{n}", f"s{session}", tokens, now, final=final)
        open_.append(f"r{n}")
        if fate == "first":
            r.output(open_[0], 1, False, now)
        elif fate == "finish":
            r.output(open_.pop(0), 3, True, now)
        elif fate == "abort":
            r.gone(open_.pop(0), now)
        assert sum(e.in_flight for e in r.engines) == len(open_) == len(r.flights)
        assert sum(e.homed for e in r.engines) == len(r._counted) <= len(r.tracker)
        assert all(e.queued_tokens >= 0 and e.flight_tokens >= 0 for e in r.engines)
    for name in open_:
        r.gone(name, now)
    assert all((e.in_flight, e.flight_tokens, e.queued_tokens) == (0, 0, 0) for e in r.engines)
    r._sweep(now + 1e5)
    assert all(e.homed == 0 for e in r.engines)
    assert not r._home and len(r.tracker) == 0


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
        self.lb_engines = [[0, 0, 0.0], [0, 0, 0.0]]
        self.client_count, self.eng_start_index = 1, 0
        self.vllm_config = SimpleNamespace(cache_config=SimpleNamespace(num_gpu_blocks=100, block_size=16),
                                           scheduler_config=SimpleNamespace(max_num_seqs=8))


def request(name: str, session: str | None = None, rank: int | None = None):
    return SimpleNamespace(request_id=name, session_id=session, data_parallel_rank=rank, pooling_params=None,
                           sampling_params=SimpleNamespace(extra_args=None), prompt_token_ids=[1] * 50)


@pytest.fixture
def client_class(monkeypatch):
    """vLLM's class with our methods, put back afterwards."""
    pytest.importorskip("vllm")
    from vllm.v1.engine.core_client import DPLBAsyncMPClient as Client

    for name in ("get_core_engine_for_request", "process_engine_outputs"):
        monkeypatch.setattr(Client, name, Client.__dict__[name])
    return Client


def test_vllms_client_asks_us_and_keeps_its_own_books(client_class):
    from saga_rl.runtime.placement import install

    placement = install(make("placement", "sticky"), SagaConfig(policy="lru"))
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
    from saga_rl.runtime.placement import install

    placement = install(make("placement", "sticky"), SagaConfig(policy="lru"))

    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(Router, "choose", broken)
    client = FakeClient()
    r = request("r", "s")
    assert client_class.get_core_engine_for_request(client, r) in client.core_engines
    assert r.data_parallel_rank is None
    assert placement.metrics.counts["fallback/placement/choice ZeroDivisionError"] == 1
    assert list(placement.router.flights) == ["r"]
