"""Large bodies: read outside the event loop, in pieces, and to the same end as small ones."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.runtime.server.http import middleware as middleware_module
from saga_rl.runtime.server.http import reading
from saga_rl.runtime.server.http.dialects import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Turn, prompt_of, turns_of
from saga_rl.runtime.server.http.middleware import SagaMiddleware
from saga_rl.runtime.server.http.plan import Plan, splice
from saga_rl.runtime.server.http.prompts import LONG, parts_of
from saga_rl.runtime.server.http.settings import Settings
from saga_rl.runtime.server.http.tap import Tap

VALUES = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats(allow_nan=False)
                      | st.text(max_size=8), lambda inner: st.lists(inner, max_size=4)
                      | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=12)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"])},
                                optional={"content": VALUES, "tool_calls": VALUES})
BODIES = st.fixed_dictionaries({"model": st.just("m")}, optional={
    "messages": st.lists(MESSAGE, max_size=5) | VALUES, "input": st.lists(MESSAGE, max_size=3) | VALUES,
    "prompt": st.lists(st.integers(-2**40, 2**40) | st.booleans(), max_size=9) | VALUES, "session_id": VALUES,
    "vllm_xargs": VALUES, "tools": VALUES})


class Served:
    """The middleware over an app that keeps what reached it."""

    def __init__(self, **set_: Any) -> None:
        self.body = b""
        self.middleware = SagaMiddleware(self.app, Settings(**set_))

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.body, more = b"", True
        while more:
            message = await receive()
            self.body, more = self.body + message["body"], message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def post(self, path: str, raw: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        scope = {"type": "http", "method": "POST", "path": path,
                 "headers": [(b"content-length", str(len(raw)).encode()), *(headers or [])]}

        async def receive() -> Any:
            return {"type": "http.request", "body": raw, "more_body": False}

        async def send(message: Any) -> None:
            pass

        await self.middleware(scope, receive, send)


def chat(size: int) -> bytes:
    return json.dumps({"model": "m", "session_id": "s", "messages": [
        {"role": "user", "content": "x" * (size // 4)} for _ in range(4)]}).encode()


@pytest.fixture
def threads(monkeypatch) -> dict[str, list[str]]:
    """Names of the threads in which bodies are decoded, read and written."""
    seen: dict[str, list[str]] = {}
    for name in ("read", "splice", "decoded"):
        def noted(*args: Any, name: str = name, stock: Any = getattr(middleware_module, name)) -> Any:
            seen.setdefault(name, []).append(threading.current_thread().name)
            return stock(*args)

        monkeypatch.setattr(middleware_module, name, noted)
    return seen


@pytest.mark.parametrize("raw", [chat(31 * 2**20), json.dumps({
    "model": "m", "session_id": "s", "prompt": [k % 5000 for k in range(5 * 2**20)]}).encode()], ids=["text", "ids"])
def test_a_body_of_31_mib_is_read_outside_the_loop_and_arrives_with_its_hints(raw, threads):
    s = Served()
    path = "/v1/completions" if b'"prompt"' in raw[:60] else "/v1/chat/completions"
    asyncio.run(s.post(path, raw, [(b"x-saga-final", b"1")]))
    assert set(threads) == {"read", "splice"}
    assert all(name.startswith("saga-rl reader") for names in threads.values() for name in names)
    assert s.body.startswith(raw[:-1]) and json.loads(s.body)["vllm_xargs"]["saga_final"] == 1
    assert s.middleware.counts["bodies read outside the loop"] == s.middleware.counts["requests"] == 1


def test_a_small_body_is_read_where_it_comes_and_a_compressed_one_is_unpacked_outside(threads):
    s = Served()
    asyncio.run(s.post("/v1/chat/completions", chat(4000)))
    assert threads == {} and "session_id" in json.loads(s.body)
    packed = gzip.compress(chat(4000))
    asyncio.run(s.post("/v1/chat/completions", packed, [(b"content-encoding", b"gzip")]))
    assert [name.startswith("saga-rl reader") for name in threads["decoded"]] == [True]


def test_the_loop_goes_on_while_a_body_is_read(monkeypatch):
    """Reading waits for something that only the loop can do."""
    free = threading.Event()
    went_on: list[bool] = []

    def waits(*args: Any) -> Any:
        went_on.append(free.wait(120))
        return reading.read(*args)

    monkeypatch.setattr(middleware_module, "read", waits)

    async def scene() -> None:
        s = Served()
        large = asyncio.ensure_future(s.post("/v1/chat/completions", chat(2**20)))
        while not went_on and not large.done():
            await asyncio.sleep(0.01)
            await Served().post("/v1/chat/completions", chat(2000))  # a small one overtakes it
            free.set()
        await large

    asyncio.run(scene())
    assert went_on == [True]


@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
@settings(max_examples=150, deadline=None)
@given(body=BODIES, cut=st.integers(0, 3))
def test_reading_in_pieces_comes_to_the_same(dialect, body, cut):
    raw = json.dumps(body).encode()
    raw = raw[:len(raw) - cut]  # cut short, it is no JSON
    plain, (found, text) = reading.read_json(raw), reading._large(dialect, raw)
    expected = prompt_of(plain) if isinstance(plain, dict) and dialect == COMPLETIONS else None
    assert text == expected
    if not isinstance(plain, dict):
        assert found == plain
        return
    left_out = {"prompt"} if "prompt" not in found else set()
    assert not left_out or expected is not None or "prompt" not in plain
    assert found == {k: v for k, v in plain.items() if k not in left_out}
    assert turns_of(dialect, found) == turns_of(dialect, plain)


def test_doubled_names_and_strange_bytes_mean_what_they_mean_to_vllm():
    for raw in (b'{"prompt": [1, 2], "prompt": "last"}', b'{"prompt": "first", "prompt": [1, 2]}',
                b'{"prompt": [1,,2]}', b'{"prompt": [1 2]}', b'{"prompt": [1-2]}', b'{"prompt": [01]}',
                b'{"prompt": []}', b'{"prompt": [1, 2.0]}', b'{"prompt": [NaN]}', b'{"prompt": "\xff"}', b"[1]",
                b'"x"', b""):
        plain, (found, text) = reading.read_json(raw), reading._large(COMPLETIONS, raw)
        assert text == (prompt_of(plain) if isinstance(plain, dict) else None), raw
        assert found == plain or (isinstance(plain, dict) and "prompt" not in found and text is not None), raw


def test_a_conversation_of_very_many_turns_is_not_told_by_them():
    body = {"model": "m", "messages": [{"role": "user", "content": "w"}] * (reading.MOST_TURNS + 1)}
    raw = json.dumps(body).encode()
    assert len(raw) > reading.LARGE
    found = reading.read(CHAT, raw)
    assert found.turns is None and found.body["model"] == "m"


def test_long_texts_have_keys_of_their_own():
    texts = ["x" * LONG, "x" * (LONG - 1), "x" * (2 * LONG), "x" * LONG + "y", "\udc80" * LONG]
    turns = [Turn(role, text) for role in ("user", "assistant") for text in texts]
    keys = [tuple(parts_of([t])) for t in turns]
    assert len(set(keys)) == len(turns) and keys == [tuple(parts_of([Turn(*t)])) for t in turns]


@pytest.mark.parametrize("blanks", [0, 5, 100, 100_000])
def test_nothing_that_stands_before_the_last_brace_keeps_hints_out(blanks):
    """Or a client could pass as another tenant."""
    raw = b'{"vllm_xargs": {"saga_tenant": "mine"}' + b" " * blanks + b"}" + b"\n" * blanks
    plan = Plan(raw, [], {"vllm_xargs": {"saga_tenant": "theirs"}}, Tap(CHAT, False))
    splice(plan)
    assert json.loads(plan.body) == {"vllm_xargs": {"saga_tenant": "theirs"}}
