"""The bodies of vLLM's generation endpoints as one form: a list of turns, or the bytes of a plain prompt.

Canonical, so that a client that writes its messages anew (key order, white space, text as a string or as parts, nulls,
reasoning left out) is recognised.
"""

from __future__ import annotations

import array
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "chat", "completions", "responses", "messages"
PATHS = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETIONS, "/v1/responses": RESPONSES,
         "/v1/messages": MESSAGES}

DROPPED = "x-anthropic-billing-header"
"""What a system text begins with that vLLM does not put into the prompt."""
_BEGIN, _END = "<think>", "</think>"
_NOTICES = "system-reminder", "subagent_notification"
"""Tags around what Claude Code and Codex say in the user's place."""


class Turn(NamedTuple):
    role: str
    text: str
    calls: tuple[tuple[str, str, str], ...] = ()
    """Tool calls: (id, name, arguments)."""
    results: tuple[tuple[str, str], ...] = ()
    """Tool results: (id of the call, the tool's name if the result says it)."""

    def canonical(self) -> bytes:
        if not self.calls and not self.results:  # as most turns are; the same bytes as below
            return f"0\0{len(self.role)}:{self.role}\0{len(self.text)}:{self.text}".encode("utf-8", "surrogatepass")
        parts = [self.role, self.text, *(x for call in self.calls for x in call), *(x for r in self.results for x in r)]
        return "\0".join([str(len(self.calls)), *(f"{len(p)}:{p}" for p in parts)]).encode("utf-8", "surrogatepass")


def turns_of(dialect: str, body: dict[str, Any]) -> list[Turn] | None:
    """None: this body holds no turns that can be read."""
    if dialect == CHAT:
        return list(_chat(_dicts(body.get("messages")))) or None
    if dialect == MESSAGES:
        system = body.get("system")
        text = _text(_as_hashed(system, whole=True))
        head = [Turn("system", text)] if text else []
        return head + list(_anthropic(_dicts(body.get("messages")))) or None
    if dialect == RESPONSES:
        head = [Turn("system", _text(body["instructions"]))] if body.get("instructions") else []
        given = body.get("input")
        if isinstance(given, str):
            return [*head, Turn("user", given.strip())]
        return head + list(_items(_dicts(given))) or None
    return None


def prompt_of(body: dict[str, Any]) -> bytes | None:
    """The one prompt of a completions body; None for batches and what cannot be read."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt.encode("utf-8", "surrogatepass")
    if isinstance(prompt, list) and prompt and all(type(t) is int for t in prompt):
        try:
            return array.array("i", prompt).tobytes()
        except OverflowError:
            return None
    return None


def tool_before(turns: Sequence[Turn], earlier: dict[str, str]) -> str | None:
    """The tool whose result ends the prompt: the first of the results at its end, what the agent itself says after them
    aside. earlier: names by id of calls that the prompt does not show (`previous_response_id`)."""
    last = len(turns)
    while last and (turns[last - 1].role == "system" or _notice(turns[last - 1])):
        last -= 1
    first = last
    while first and turns[first - 1].results:
        first -= 1
    if first == last:
        return None
    wanted, said = turns[first].results[0]
    if said:
        return said
    for turn in reversed(turns[:first]):
        for call, name, _ in turn.calls:
            if call == wanted:
                return name or None
    return earlier.get(wanted)


def _notice(turn: Turn) -> bool:
    """A user's turn that no user wrote."""
    return turn.role == "user" and not turn.results and any(
        turn.text.startswith(f"<{tag}>") and turn.text.endswith(f"</{tag}>") for tag in _NOTICES)


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    return (m for m in value if isinstance(m, dict)) if isinstance(value, list) else iter(())


def _str(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _text(content: Any) -> str:
    """The text of a content, parts joined; parts that are no text count as their JSON."""
    if isinstance(content, str):
        return content.strip()
    if not isinstance(content, list):
        return ""
    out = []
    for part in content:
        if isinstance(part, str):
            out.append(part)
        elif isinstance(part, dict):
            kind = part.get("type")
            if isinstance(part.get("text"), str):
                out.append(part["text"])
            elif kind not in ("thinking", "redacted_thinking", "reasoning", "tool_use", "tool_result"):
                out.append(json.dumps({k: v for k, v in part.items() if v is not None and k != "cache_control"},
                                      sort_keys=True, default=str))
    return "".join(out).strip()


def _as_hashed(system: Any, whole: bool) -> Any:
    """A system prompt without what vLLM drops before it hashes: Claude Code's billing line, another on each request.
    whole: its block goes with it (vLLM's Anthropic endpoint); else the rest of the text stays."""
    if isinstance(system, str):
        return system.partition("\n")[2] if system.startswith(DROPPED) else system
    if not isinstance(system, list):
        return system
    out = []
    for part in system:
        text = part if isinstance(part, str) else _str(part.get("text")) if isinstance(part, dict) else ""
        if not text.startswith(DROPPED):
            out.append(part)
        elif not whole and (rest := text.partition("\n")[2]):
            out.append({"type": "text", "text": rest})
    return out


def said(turns: Sequence[Turn], first: int) -> tuple[str, tuple[tuple[str, str, str], ...]]:
    """(text, calls) of the answer that begins at turn `first`: all turns to the next user's or tool's. Reasoning in
    the text, which clients leave out at will, does not count."""
    last = first
    while last < len(turns) and turns[last].role == "assistant":
        last += 1
    answer = turns[first:last]
    return without_reasoning("".join(t.text for t in answer)), tuple(c for t in answer for c in t.calls)


def without_reasoning(text: str) -> str:
    """Return the text without `<think>` parts, also without one whose beginning stands in the prompt. Takes time in
    proportion to the text, whatever a client wrote."""
    *closed, rest = text.split(_END)
    out = []
    for k, part in enumerate(closed):
        before, begun, _ = part.partition(_BEGIN)
        if begun:
            out.append(before)
        elif k:
            out.append(part + _END)
    return "".join([*out, rest]).strip()


def arguments(value: Any) -> str:
    """Arguments without white space and order, as far as they are JSON."""
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
        return json.dumps(parsed, sort_keys=True)
    except (ValueError, TypeError, RecursionError):
        return "".join(_str(value).split())


def _role(value: Any) -> str:
    return "system" if value in ("system", "developer") else _str(value)


def _chat(messages: Iterator[dict[str, Any]]) -> Iterator[Turn]:
    for m in messages:
        role, calls = _role(m.get("role")), []
        if m.get("tool_calls") is None and role in ("user", "assistant"):  # as most are
            yield Turn(role, _text(m.get("content")))
            continue
        results: tuple[tuple[str, str], ...] = ()
        for call in _dicts(m.get("tool_calls")):
            f = call.get("function")
            f = f if isinstance(f, dict) else {}
            calls.append((_str(call.get("id")), _str(f.get("name")), arguments(f.get("arguments"))))
        if role in ("tool", "function"):
            results = ((_str(m.get("tool_call_id")), _str(m.get("name"))),)
        content = _as_hashed(m.get("content"), whole=False) if role == "system" else m.get("content")
        yield Turn(role, _text(content), tuple(calls), results)


def _anthropic(messages: Iterator[dict[str, Any]]) -> Iterator[Turn]:
    for m in messages:
        if m.get("role") == "system":
            if text := _text(_as_hashed(m.get("content"), whole=True)):
                yield Turn("system", text)
            continue
        calls, results, texts = [], [], [_text(m.get("content"))]
        for block in _dicts(m.get("content")):
            if block.get("type") == "tool_use":
                calls.append((_str(block.get("id")), _str(block.get("name")), arguments(block.get("input"))))
            elif block.get("type") == "tool_result":
                results.append((_str(block.get("tool_use_id")), ""))
                texts.append(_text(block.get("content")))
        yield Turn(_role(m.get("role")), "\0".join(texts), tuple(calls), tuple(results))


def _items(items: Iterator[dict[str, Any]]) -> Iterator[Turn]:
    for m in items:
        kind = m.get("type", "message")
        if kind == "message":
            yield Turn(_role(m.get("role")), _text(m.get("content")))
        elif kind in ("function_call", "custom_tool_call"):
            call = (_str(m.get("call_id")), _str(m.get("name")), arguments(m.get("arguments", m.get("input"))))
            yield Turn("assistant", "", (call,))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            output = m.get("output")
            yield Turn("tool", _text(output), (), ((_str(m.get("call_id")), ""),))
        elif kind != "reasoning":
            yield Turn(_str(kind), json.dumps(m, sort_keys=True, default=str))
