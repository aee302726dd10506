"""Placement over replicas of Ray Serve: sessions stay, replicas come and go, routers agree, and what a request says of
itself. No Ray here; tests/test_emulate_ray.py has one."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from saga_rl.policies.registry import make
from saga_rl.runtime.ray.replicas import FIRST_SLOTS, Replicas
from saga_rl.runtime.ray.requests import read_request, write_hints
from saga_rl.runtime.sessions.hints import Hints


def replicas(n: int, policy: str = "least-sessions", **kwargs: Any) -> Replicas:
    r = Replicas(make("placement", policy), max_seqs=8, kv_tokens=10_000, tokens_per_s=1000.0, **kwargs)
    r.update([f"replica-{k}" for k in range(n)])
    return r


def ask(r: Replicas, name: str, session: str | None, tokens: int = 100, reported: Any = lambda _: None) -> str:
    chosen = r.send(name, Hints(session=session), tokens, reported)
    r.routed(name, chosen)
    return chosen


def test_new_sessions_spread_and_known_ones_stay():
    r = replicas(2)
    homes = {s: ask(r, f"{s}1", s) for s in "abcd"}
    for s in homes:
        r.completed(f"{s}1")
    assert set(Counter(homes.values()).values()) == {2}
    assert {s: ask(r, f"{s}2", s) for s in "dcba"} == homes
    assert r.state()["migrations"] == 0 and r.state()["placements"] == 8


def test_sessions_of_a_replica_that_goes_move_once_and_others_stay():
    r = replicas(3)
    homes = {f"s{k}": ask(r, f"{k}", f"s{k}") for k in range(9)}
    r.update(["replica-0", "replica-2"])
    assert not any(f.engine == 1 for f in r.router.flights.values())
    r.completed("1")  # Ray says so of requests that a dead replica had, too
    then = {s: ask(r, f"again {s}", s) for s in homes}
    assert all(then[s] == home for s, home in homes.items() if home != "replica-1")
    assert "replica-1" not in then.values()
    r.update(["replica-0", "replica-2", "replica-9"])
    assert {s: ask(r, f"third {s}", s) for s in homes} == then
    assert ask(r, "new", "new") == "replica-9"
    assert r.counts["replicas gone"] == 1 and r.counts["replicas come"] == 4


def test_there_is_room_for_more_replicas_than_at_first_and_none_is_none():
    r = replicas(FIRST_SLOTS)
    homes = {f"s{k}": ask(r, f"{k}", f"s{k}") for k in range(2 * FIRST_SLOTS)}
    r.update([f"replica-{k}" for k in range(5 * FIRST_SLOTS)])
    assert {s: ask(r, f"again {s}", s) for s in homes} == homes
    new = {ask(r, f"new {k}", f"new {k}") for k in range(4 * FIRST_SLOTS)}
    assert new == {f"replica-{k}" for k in range(FIRST_SLOTS, 5 * FIRST_SLOTS)}
    r.update([])
    with pytest.raises(KeyError):
        r.send("x", Hints(session="x"), 1, lambda _: None)


def test_what_other_routers_sent_counts():
    r = replicas(2, "least-load")
    assert {ask(r, f"{k}", f"s{k}", reported=lambda name: 7 if name == "replica-0" else None)
            for k in range(3)} == {"replica-1"}


def test_where_ray_sent_it_is_where_the_session_lives():
    r = replicas(2)
    chosen = r.send("a", Hints(session="s"), 100, lambda _: None)
    other = next(f"replica-{k}" for k in range(2) if f"replica-{k}" != chosen)
    r.routed("a", other)
    r.completed("a")
    assert ask(r, "b", "s") == other and r.counts["sent elsewhere"] == 1


def test_a_request_that_is_tried_again_is_booked_once():
    r = replicas(2)
    for _ in range(3):
        r.send("a", Hints(session="s"), 100, lambda _: None)
    assert sum(e.in_flight for e in r.router.engines) == 1
    r.completed("a")
    assert sum(e.in_flight for e in r.router.engines) == 0 and not r.router.flights


def test_several_routers_agree_on_homes_whatever_order_they_heard_of_replicas_in():
    a, b = (Replicas(make("placement", "sticky"), max_seqs=8, kv_tokens=10_000, routers=2) for _ in range(2))
    names = [f"replica-{k}" for k in range(5)]
    a.update(names)
    b.update(names[3:])
    b.update(names[::-1])
    for k in range(20):  # a knows each session from its first request, b hears of it first at its second
        ask(a, f"{k}", f"s{k}")
        a.completed(f"{k}")
        again = ask(a, f"{k} again", f"s{k}")
        ask(b, f"{k}", f"s{k}")
        b.completed(f"{k}")
        assert ask(b, f"{k} again", f"s{k}") == again


def body(**fields: Any) -> Any:
    return SimpleNamespace(**{"max_tokens": None, "session_id": None, "vllm_xargs": None, "prompt": None} | fields)


def test_who_asks_is_found_in_body_and_headers_and_told_to_the_engine():
    b = body(prompt="x" * 400, vllm_xargs={"saga_tenant": "t"})
    headers = SimpleNamespace(headers={"X-Session-ID": "task-1", "x-saga-final": "1"})
    _, hints, prompt = read_request([b, headers])
    assert (hints.session, hints.tenant, hints.final, prompt) == ("task-1", "t", True, 100)
    write_hints(b, hints)
    assert b.session_id == "task-1" and b.vllm_xargs == {"saga_tenant": "t", "saga_final": 1}
    b = body(prompt=[1, 2, 3], session_id="own")
    _, hints, prompt = read_request([b, headers])
    assert (hints.session, prompt) == ("own", 3)
    write_hints(b, hints)
    assert b.session_id == "own"


@pytest.mark.parametrize("prompt, tokens", [
    ("", 1), ("abcdefgh", 2), ([5] * 9, 9), (["abcd" * 3, "abcd"], 4), ([[1, 2], [3]], 3)])
def test_prompts_are_counted_as_far_as_they_can_be(prompt, tokens):
    assert read_request([body(prompt=prompt)])[2] == tokens


def test_messages_count_with_their_parts_and_calls():
    messages = [{"role": "user", "content": "abcd" * 10}, {"role": "user", "content": [{"text": "abcd" * 5}]}]
    assert read_request([body(messages=messages)])[2] == 15


def test_what_generates_nothing_is_none_of_ours():
    assert read_request([]) is None and read_request([object()]) is None
    assert read_request([SimpleNamespace(prompt="to be tokenized")]) is None


@pytest.fixture
def ray_router() -> Any:
    """Ray's side of it, without a Ray: no replica can be asked for anything."""
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra ray-serve)", exc_type=ImportError)
    from saga_rl.runtime.ray import SagaRequestRouter

    class Unstarted(SagaRequestRouter):
        def __init__(self) -> None:
            self._replica_queue_len_cache = SimpleNamespace(get=lambda _: None)

        def _prepare(self, **kwargs: Any) -> None:
            self.given = kwargs

    r = Unstarted()
    r.initialize_state(saga={"policy": "likely"})
    return r


def pending(name: str, **fields: Any) -> Any:
    return SimpleNamespace(args=[body(**fields)], metadata=SimpleNamespace(internal_request_id=name),
                           routing_context=SimpleNamespace(should_backoff=False))


def candidates(n: int) -> list[Any]:
    return [SimpleNamespace(replica_id=SimpleNamespace(unique_id=f"replica-{k}")) for k in range(n)]


def test_the_policys_replica_is_first_and_the_others_are_left_should_it_refuse(ray_router):
    ray_router._ours, there = replicas(3), candidates(3)
    first, second = (asyncio.run(ray_router.choose_replicas(there, pending(name, prompt="x", session_id="s")))
                     for name in "ab")
    assert first[0] == second[0] and len(first[0]) == 1 and len(first[1]) == 2 and first[0][0] not in first[1]
    ray_router.on_request_completed(first[0][0].replica_id, "a")
    assert list(ray_router._ours.router.flights) == ["b"]


def test_what_fails_is_counted_and_rays_own_choice_serves(ray_router, monkeypatch):
    from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter

    async def choice(self: Any, candidate_replicas: list[Any], pending_request: Any = None) -> str:
        return "Ray's"

    monkeypatch.setattr(PowerOfTwoChoicesRequestRouter, "choose_replicas", choice)

    def ask() -> Any:
        return asyncio.run(ray_router.choose_replicas(candidates(2), pending("a", prompt="x")))

    assert ask() == "Ray's"
    ray_router._ours = SimpleNamespace(update=lambda _: 1 / 0)
    assert ask() == "Ray's"
    ray_router.on_request_completed(None, "a")
    assert ray_router._failures == {"fallback/placement/not ready": 1, "fallback/placement/choice ZeroDivisionError": 1,
                                    "fallback/placement/completed AttributeError": 1}


def test_wrong_settings_leave_rays_own_choice_and_say_why(ray_router, caplog):
    type(ray_router).__mro__[1]._prepare(ray_router, saga={"policy": "liekly"})
    assert ray_router._ours is None and ray_router._failures == {"fallback/placement/configuration": 1}
    assert "request_router_kwargs" in caplog.text and "likely" in caplog.text
