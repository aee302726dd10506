"""Short ways through the middleware give what the long ones gave: a body's last keys, turns as bytes, quoted lines."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga_rl.runtime.server.http import plan as plans
from saga_rl.runtime.server.http.dialects import Turn, turns_of
from saga_rl.runtime.server.http.prompts import Prompt
from saga_rl.runtime.server.http.quotes import SHORTEST, Quotes

blank = st.text(alphabet=" \t\r\n", max_size=3)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
                      lambda x: st.lists(x, max_size=2) | st.dictionaries(st.text(max_size=3), x, max_size=2))


@given(body=st.dictionaries(st.text(max_size=4), values, min_size=1, max_size=3), before=blank, after=blank, end=blank)
def test_what_is_added_to_a_body_is_its_last_keys(body, before, after, end):
    text = json.dumps(body)
    raw = (before + text[:-1] + after + "}" + end).encode()
    plan = SimpleNamespace(body=raw, headers=[(b"content-length", str(len(raw)).encode()), (b"x", b"y")],
                           extra={"session_id": "s"})
    plans.splice(plan)
    assert json.loads(plan.body) == {**body, "session_id": "s"}
    assert plan.headers == [(b"content-length", str(len(plan.body)).encode()), (b"x", b"y")]


@pytest.mark.parametrize("raw", [b"", b"}", b"{}", b" { \n} ", b"[]", b"[1]", b"{", b"null"])
def test_what_is_no_object_or_an_empty_one_is_left_alone(raw):
    plan = SimpleNamespace(body=raw, headers=[], extra={"session_id": "s"})
    plans.splice(plan)
    assert plan.body == raw


@given(role=st.text(max_size=6), text=st.text(max_size=40))
def test_a_turn_of_text_alone_is_the_same_bytes(role, text):
    parts = [role, text]
    assert Turn(role, text).canonical() == "\0".join(
        ["0", *(f"{len(p)}:{p}" for p in parts)]).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("calls", [None, [], [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]])
@pytest.mark.parametrize("role", ["user", "assistant", "tool", "function", "system", "developer", 3])
def test_a_message_without_calls_reads_as_one_with_none(role, calls):
    message = {"role": role, "content": [{"type": "text", "text": " said "}], "tool_call_id": "a", "name": "f"}
    (turn,) = turns_of("chat", {"messages": [message | {"tool_calls": calls}]}) or ()
    assert turn.text == "said"
    assert turn.role == ("system" if role == "developer" else role if isinstance(role, str) else "")
    assert turn.calls == ((("a", "f", "{}"),) if calls else ())
    assert turn.results == ((("a", "f"),) if role in ("tool", "function") else ())


def test_beginnings_of_lines_are_kept_as_long_as_the_lines():
    chains = [SimpleNamespace(session=f"s{k}") for k in range(8)]
    quotes: Quotes = Quotes(5)
    prompt = Prompt(b"t", turns=[Turn("user", "a question")])
    begins = ["the same beginning of every line" if k % 2 else f"number {k} has its own begin" for k in range(8)]
    lines = [f"{text} {k:04d}" + "." * SHORTEST for k, text in enumerate(begins)]
    for chain, line in zip(chains, lines, strict=True):
        quotes.said(chain, prompt, [line])
        quotes.said(chain, prompt, [line])
    assert len(quotes) == 5
    assert sum(quotes._begins.values()) == 5 and set(quotes._begins) == {line[:SHORTEST] for line in lines[3:]}
    for k, line in enumerate(lines):
        found = quotes.find(Prompt(b"t", turns=[Turn("user", f"look at this:\n{line}\nwhat now?")]))
        assert found is (chains[k] if k >= 3 else None)
    quotes.said(chains[0], prompt, [lines[7]])  # two sessions' answers said it
    assert quotes.find(Prompt(b"t", turns=[Turn("user", lines[7])])) is None
