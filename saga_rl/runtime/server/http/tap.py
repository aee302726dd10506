"""What an answer calls, read beside its way to the client: whole JSON bodies and server-sent events, cut anywhere."""

from __future__ import annotations

from typing import Any

import msgspec

from saga_rl.runtime.server.http.dialects import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    arguments,
    without_reasoning,
)
from saga_rl.runtime.server.http.prompts import PREFIX, Answer, digest
from saga_rl.runtime.server.http.quotes import long_lines, quoted_in, strings_of, untagged
from saga_rl.runtime.sessions.hints import cut_name

MOST_BYTES = 4 * 2**20
"""Of a whole answer, or of one event; longer ones are let go by unread."""
MOST_CALLS = 64
_decode = msgspec.json.Decoder().decode
_MARKS = {CHAT: (b'"tool_calls"',), MESSAGES: (b'"tool_use"', b'"input_json_delta"'), COMPLETIONS: (),
          RESPONSES: (b'"function_call"', b'"custom_tool_call"', b"response.created", b"response.completed")}
_TEXT_MARKS = {CHAT: (b'"content"',), MESSAGES: (b'"text_delta"',), COMPLETIONS: (b'"text"',),
               RESPONSES: (b"response.output_text.delta",)}


class Tap:
    """Reads one answer. want_text: also its text, to compare with the next prompt (chains)."""

    def __init__(self, dialect: str, want_text: bool) -> None:
        self.dialect, self.want_text = dialect, want_text
        self.status, self.stream, self.unread = 0, False, 0
        self.whole = False
        """Its end was sent."""
        self.calls: dict[str, str] = {}
        self._arguments: dict[str, list[str]] = {}
        self._of_index: dict[Any, str] = {}
        """Call by its place in a stream, whose later pieces have no id."""
        self.response_id: str | None = None
        self._text: list[str] = []
        self._size = 0
        self._rest = bytearray()
        self._off = False
        self._marks = _MARKS[dialect] + (_TEXT_MARKS[dialect] if want_text else ())

    def start(self, message: Any) -> None:
        self.status = message["status"]
        kind = next((v for k, v in message.get("headers", ()) if k.lower() == b"content-type"), b"").lower()
        self.stream = kind.startswith(b"text/event-stream")
        self._off = self.status != 200 or not (self.stream or kind.startswith(b"application/json"))

    def body(self, part: bytes, last: bool) -> None:
        """One piece as it was sent. Cheap where nothing of interest is in it."""
        self.whole |= last
        if self._off:
            return
        self._rest += part
        if self.stream:
            self._events(last)
        elif last:
            self._whole(self._value(bytes(self._rest)))
            self._rest.clear()
        if len(self._rest) > MOST_BYTES:
            self._rest.clear()
            self._off = True
            self.unread += 1

    def answer(self) -> Answer | None:
        """None: it was no answer (an error), or its client left before its end: what it got of it nobody knows."""
        if self.status != 200 or not self.whole:
            return None
        text = "".join(self._text).strip()
        if self.dialect == COMPLETIONS:
            return _plain_answer(text)
        plain = without_reasoning(text)
        given = {call: arguments("".join(parts) or "{}") for call, parts in self._arguments.items()}
        said = (*long_lines(plain), *long_lines("\n".join(map(strings_of, given.values()))))
        text_digest = digest(plain.encode("utf-8", "surrogatepass")) if plain and self.want_text else b""
        return Answer(self.calls, text_digest, arguments={call: given.get(call, "{}") for call in self.calls},
                      lines=said)

    @property
    def tool(self) -> str | None:
        """The first tool that it called."""
        return next(iter(self.calls.values()), None)

    def _events(self, last: bool) -> None:
        end = self._rest.rfind(b"\n")
        if last:
            end = len(self._rest)
        if end < 0:
            return
        ready = bytes(self._rest[:end])
        del self._rest[:end + 1]
        if not any(mark in ready for mark in self._marks):
            return
        for line in ready.splitlines():
            if line.startswith(b"data:") and any(mark in line for mark in self._marks):
                value = self._value(line[5:])
                if isinstance(value, dict):
                    self._event(value)

    def _value(self, raw: bytes) -> Any:
        try:
            return _decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.unread += 1
            return None

    # ------------------------------------------------------------------ whole answers
    def _whole(self, value: Any) -> None:
        if not isinstance(value, dict):
            return
        self._called_id(value.get("id"))
        if self.dialect == CHAT:
            self._chat(_first(value.get("choices")).get("message"))
        elif self.dialect == COMPLETIONS:
            self._say(_first(value.get("choices")).get("text"))
        elif self.dialect == MESSAGES:
            for block in _dicts(value.get("content")):
                self._block(block)
                self._say(block.get("text"))
        else:
            self._output(value)

    # ------------------------------------------------------------------ events
    def _event(self, value: dict[str, Any]) -> None:
        kind = value.get("type")
        if self.dialect == CHAT:
            for choice in _dicts(value.get("choices")):
                if choice.get("index", 0) == 0:
                    self._chat(choice.get("delta"))
        elif self.dialect == COMPLETIONS:
            for choice in _dicts(value.get("choices")):
                if choice.get("index", 0) == 0:
                    self._say(choice.get("text"))
        elif self.dialect == MESSAGES:
            self._block(_dict(value.get("content_block")), value.get("index"))
            if kind == "content_block_delta":
                delta = _dict(value.get("delta"))
                self._say(delta.get("text"))
                self._argue(self._of_index.get(value.get("index"), ""), delta.get("partial_json"))
        elif kind in ("response.created", "response.completed"):
            self._called_id(_dict(value.get("response")).get("id"))
            for item in _dicts(_dict(value.get("response")).get("output")):
                self._item(item)
        elif kind in ("response.output_item.added", "response.output_item.done"):
            self._item(_dict(value.get("item")))
        elif kind == "response.output_text.delta":
            self._say(value.get("delta"))

    # ------------------------------------------------------------------ parts
    def _chat(self, message: Any) -> None:
        message = _dict(message)
        for call in _dicts(message.get("tool_calls")):
            made, place = _dict(call.get("function")), call.get("index")
            key = self._call(call.get("id"), made.get("name"))
            if key and isinstance(place, int):
                self._of_index[place] = key
            self._argue(key or self._of_index.get(place, "") if isinstance(place, int) else key, made.get("arguments"))
        self._say(message.get("content"))

    def _block(self, block: dict[str, Any], place: Any = None) -> None:
        if block.get("type") == "tool_use":
            key = self._call(block.get("id"), block.get("name"))
            if isinstance(place, int):
                self._of_index[place] = key
            if block.get("input"):
                self._argue(key, arguments(block["input"]))

    def _output(self, response: dict[str, Any]) -> None:
        for item in _dicts(response.get("output")):
            self._item(item)
            for part in _dicts(item.get("content")) if item.get("type") == "message" else ():
                self._say(part.get("text"))

    def _item(self, item: dict[str, Any]) -> None:
        if item.get("type") in ("function_call", "custom_tool_call"):
            key = self._call(item.get("call_id"), item.get("name"))
            given = item.get("arguments") or item.get("input")
            if key and given and self.want_text:
                self._arguments[key] = [given] if isinstance(given, str) else [arguments(given)]

    def _call(self, call: Any, name: Any) -> str:
        """The call's key, empty if it was none."""
        if not isinstance(name, str) or not name or len(self.calls) >= MOST_CALLS:
            return ""
        key = (call if isinstance(call, str) and call else f"#{len(self.calls)}")[:200]
        self.calls.setdefault(key, cut_name(name))
        return key

    def _argue(self, key: str, piece: Any) -> None:
        if key and self.want_text and isinstance(piece, str) and self._size < MOST_BYTES:
            self._size += len(piece)
            self._arguments.setdefault(key, []).append(piece)

    def _called_id(self, value: Any) -> None:
        if isinstance(value, str) and value:
            self.response_id = value[:200]

    def _say(self, text: Any) -> None:
        if self.want_text and isinstance(text, str) and self._size < MOST_BYTES:
            self._size += len(text)
            self._text.append(text)


def _plain_answer(text: str) -> Answer:
    """The answer to a plain prompt, whose calls, if any, stand in its text."""
    raw = text.encode("utf-8", "surrogatepass")
    plain = without_reasoning(text)
    first = plain.encode("utf-8", "surrogatepass")[:PREFIX]
    return Answer(text=raw[:PREFIX], plain=first if first != raw[:PREFIX] else b"", whole=(len(raw), digest(raw)),
                  lines=(*long_lines(untagged(plain)), *long_lines(quoted_in(plain))))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _first(value: Any) -> dict[str, Any]:
    return next(iter(_dicts(value)), {})
