"""Conversations as the bodies and answers of vLLM's four generation endpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses",
         "messages": "/v1/messages"}


@dataclass(frozen=True)
class Call:
    id: str
    name: str
    arguments: str
    """JSON."""


@dataclass(frozen=True)
class Message:
    """role: system, user, assistant or tool (its text is the result of the call `of`)."""

    role: str
    text: str
    calls: tuple[Call, ...] = ()
    of: str = ""


@dataclass
class Said:
    """An answer. thought: reasoning, which the client leaves out of the history."""

    text: str
    calls: tuple[Call, ...] = field(default=())
    thought: str = ""

    def message(self) -> Message:
        return Message("assistant", self.text, self.calls)


def body(api: str, history: list[Message]) -> bytes:
    made = {"chat": _chat, "completions": _completions, "responses": _responses, "messages": _messages}[api](history)
    return json.dumps({"model": "m", **made}).encode()


def pieces(api: str, said: Said, name: str, stream: bool) -> list[bytes]:
    """What the server sends, as server-sent events or in one."""
    text = (f"<think>{said.thought}</think>\n" if said.thought else "") + said.text
    if api == "completions":
        text = _rendered(Message("assistant", text, said.calls)).partition("\n")[2]
        events: list[Any] = [{"choices": [{"index": 0, "text": part}]} for part in _cut(text)]
        whole: Any = {"choices": [{"index": 0, "text": text}]}
    elif api == "chat":
        calls = [{"index": k, "id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                 for k, c in enumerate(said.calls)]
        events = [{"choices": [{"index": 0, "delta": {"content": part}}]} for part in _cut(text)]
        for k, c in enumerate(said.calls):
            named = {"index": k, "id": c.id, "type": "function", "function": {"name": c.name, "arguments": ""}}
            events.append({"choices": [{"index": 0, "delta": {"tool_calls": [named]}}]})
            events += [{"choices": [{"index": 0, "delta": {"tool_calls": [
                {"index": k, "function": {"arguments": part}}]}}]} for part in _cut(c.arguments)]
        whole = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text, "tool_calls": calls}}]}
    elif api == "responses":
        items = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": said.text}]},
                 *(_call_item(c) for c in said.calls)]
        whole = {"id": name, "output": items}
        events = [{"type": "response.created", "response": {"id": name, "output": []}},
                  *({"type": "response.output_text.delta", "delta": part} for part in _cut(said.text)),
                  *({"type": "response.output_item.done", "item": item} for item in items[1:]),
                  {"type": "response.completed", "response": whole}]
    else:
        whole = {"content": [{"type": "text", "text": text}, *(_use(c) for c in said.calls)]}
        events = [{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
                  *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": part}}
                    for part in _cut(text))]
        for k, c in enumerate(said.calls, 1):
            events.append({"type": "content_block_start", "index": k, "content_block": {**_use(c), "input": {}}})
            events += [{"type": "content_block_delta", "index": k,
                        "delta": {"type": "input_json_delta", "partial_json": part}} for part in _cut(c.arguments)]
    return [b"data: " + json.dumps(e).encode() + b"\n\n" for e in events] if stream else [json.dumps(whole).encode()]


def _cut(text: str) -> list[str]:
    """In three."""
    n = max(len(text) // 3, 1)
    return [text[:n], text[n:2 * n], text[2 * n:]]


def _chat(history: list[Message]) -> dict[str, Any]:
    out: list[dict[str, Any]] = []
    for m in history:
        out.append({"role": m.role, "content": m.text, **({"tool_call_id": m.of} if m.role == "tool" else {})})
        if m.calls:
            out[-1]["tool_calls"] = [{"id": c.id, "type": "function", "function": {
                "name": c.name, "arguments": c.arguments}} for c in m.calls]
    return {"messages": out}


def _rendered(m: Message) -> str:
    calls = "".join(f"<tool_call>{c.name} {c.arguments}</tool_call>" for c in m.calls)
    return f"<|im_start|>{m.role}\n{m.text}{calls}"


def _completions(history: list[Message]) -> dict[str, Any]:
    return {"prompt": "".join(f"{_rendered(m)}<|im_end|>\n" for m in history) + "<|im_start|>assistant\n"}


def _call_item(c: Call) -> dict[str, Any]:
    return {"type": "function_call", "call_id": c.id, "name": c.name, "arguments": c.arguments}


def _responses(history: list[Message]) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    for m in history:
        if m.role == "tool":
            items.append({"type": "function_call_output", "call_id": m.of, "output": m.text})
        elif m.role != "system":
            kind = "output_text" if m.role == "assistant" else "input_text"
            items += [{"type": "message", "role": m.role, "content": [{"type": kind, "text": m.text}]},
                      *map(_call_item, m.calls)]
    return {"instructions": next((m.text for m in history if m.role == "system"), None), "input": items}


def _use(c: Call) -> dict[str, Any]:
    return {"type": "tool_use", "id": c.id, "name": c.name, "input": json.loads(c.arguments)}


def _messages(history: list[Message]) -> dict[str, Any]:
    out: list[dict[str, Any]] = []
    for m in history:
        if m.role == "tool":
            block = {"type": "tool_result", "tool_use_id": m.of, "content": m.text}
            if out and out[-1]["role"] == "user" and isinstance(out[-1]["content"], list):
                out[-1]["content"].append(block)
            else:
                out.append({"role": "user", "content": [block]})
        elif m.role == "assistant":
            out.append({"role": "assistant", "content": [{"type": "text", "text": m.text}, *map(_use, m.calls)]})
        elif m.role == "user":
            out.append({"role": "user", "content": m.text})
    return {"system": [{"type": "text", "text": m.text} for m in history if m.role == "system"], "messages": out}
