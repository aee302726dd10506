"""A prompt that is sent again, and one whose client left: who it belongs to, and what stays of the first."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from test_http_middleware import ASK, CHAT, after, chat_answer

from saga_rl.policies.state import chains as ch
from saga_rl.runtime.server.http.middleware import SagaMiddleware
from saga_rl.runtime.server.http.settings import Settings
from saga_rl.runtime.sessions.hints import Hints
from saga_rl.runtime.sessions.tracker import Tracker

GO_ON = after(ASK, {"role": "assistant", "content": "one"}, {"role": "user", "content": "and then"})


class Waiting:
    """A server that answers when the test says so. Each request: what reached the server, and a way to end it."""

    def __init__(self) -> None:
        self.middleware = SagaMiddleware(self.app, Settings())
        self.seen: list[dict[str, Any]] = []
        self.told: list[asyncio.Event] = []

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(json.loads((await receive())["body"]))
        self.told.append(asyncio.Event())
        await self.told[-1].wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        body = json.dumps(chat_answer("one")).encode()
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def ask(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> Request:
        raw, n = json.dumps(body).encode(), len(self.seen)
        given = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]

        async def receive() -> Any:
            return {"type": "http.request", "body": raw, "more_body": False}

        async def send(message: Any) -> None:
            return None

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": given}
        task = asyncio.ensure_future(self.middleware(scope, receive, send))
        while len(self.seen) == n:
            await asyncio.sleep(0)
        return Request(task, self.told[n], self.seen[n])


class Request:
    def __init__(self, task: asyncio.Future[None], told: asyncio.Event, seen: dict[str, Any]) -> None:
        self._task, self._told = task, told
        self.who = seen["session_id"], seen.get("vllm_xargs", {}).get("saga_agent", 0)

    async def answered(self) -> None:
        self._told.set()
        await self._task

    async def left(self) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task


def run(scene: Any) -> None:
    asyncio.run(scene(Waiting()))


@pytest.mark.parametrize("named", [{}, {"X-Session-ID": "s"}])
def test_a_prompt_that_is_sent_again_after_its_client_left_is_the_same_agents(named: dict[str, str]) -> None:
    async def scene(server: Waiting) -> None:
        first = await server.ask(ASK, named)
        await first.left()
        again = await server.ask(ASK, named)
        assert again.who == first.who
        await again.answered()
        assert (await server.ask(GO_ON, named)).who == first.who

    run(scene)


def test_one_that_left_is_taken_over_once() -> None:
    """Two more runs of the same task: one goes on as the one that left, the other is its own."""
    async def scene(server: Waiting) -> None:
        first = await server.ask(ASK)
        await first.left()
        second, third = await server.ask(ASK), await server.ask(ASK)
        assert second.who == first.who != third.who

    run(scene)


def test_a_retry_while_the_first_still_waits() -> None:
    """A name, the SDK's own count of retries, or a session that is under way says so. Without any of them it may be
    another run of the same task, and is one."""
    async def scene(server: Waiting) -> None:
        first = await server.ask(ASK)
        assert (await server.ask(ASK)).who != first.who
        assert (await server.ask(ASK, {"X-Stainless-Retry-Count": "1"})).who[1] == 0
        named = [await server.ask(ASK, {"X-Session-ID": "s"}) for _ in range(3)]
        assert {r.who for r in named} == {("s", 0)}

    run(scene)


def test_a_retry_in_the_middle_of_a_session() -> None:
    async def scene(server: Waiting) -> None:
        first = await server.ask(ASK)
        await first.answered()
        waits = await server.ask(GO_ON)
        again = await server.ask(GO_ON)
        assert waits.who == again.who == first.who
        await waits.left()
        await again.answered()
        more = after(GO_ON, {"role": "assistant", "content": "one"}, {"role": "user", "content": "more"})
        assert (await server.ask(more)).who == first.who

    run(scene)


def test_an_answer_that_was_cut_off_is_not_compared() -> None:
    """Whoever stops an answer keeps the part that came, or nothing: either goes on as the session."""
    async def scene(server: Waiting) -> None:
        first = await server.ask(ASK)
        await first.answered()
        second = await server.ask(GO_ON)
        await second.left()
        stopped = after(GO_ON, {"role": "assistant", "content": "o"}, {"role": "user", "content": "no, rather this"})
        assert (await server.ask(stopped)).who == first.who

    run(scene)


# ---------------------------------------------------------------------- what stays of the first, in the engine
def ended(t: Tracker, *rows: int) -> list[float]:
    return [float(t.chains[c, ch.ENDED]) for c in rows]


@pytest.mark.parametrize("hints", [Hints(session="chain-1", unnamed=True), Hints()])
def test_what_nobody_named_is_not_reserved_when_its_client_leaves(hints: Hints) -> None:
    t = Tracker()
    first = t.arrive(hints, 0.0, 100)
    t.schedule(first, 0.1)
    t.abort(first, 0.2, 64)
    assert ended(t, first.chain) != [0.0] and t.live(0.3).tolist() == []
    if hints.session is not None:
        again = t.arrive(hints, 0.4, 100)
        assert again.chain == first.chain and t.live(0.5).tolist() == [first.chain]


def test_what_somebody_named_stays_for_the_retry() -> None:
    t = Tracker()
    first = t.arrive(Hints(session="s"), 0.0, 100)
    t.abort(first, 0.2, 64)
    assert t.live(0.3).tolist() == [first.chain] and t.chains[first.chain, ch.CONTEXT] == 64


def test_of_two_that_were_asked_the_one_that_left_is_not_reserved() -> None:
    """The retry came before the first was gone: it took another lane, where the agent goes on."""
    t = Tracker()
    first = t.arrive(Hints(session="s"), 0.0, 100)
    again = t.arrive(Hints(session="s"), 1.0, 100)
    t.abort(first, 1.1)
    t.schedule(again, 1.2)
    t.finish(again, 2.0, 5)
    assert ended(t, first.chain, again.chain) == [1.0, 0.0] and t.live(2.1).tolist() == [again.chain]
    assert t.arrive(Hints(session="s"), 3.0, 200).chain == again.chain
