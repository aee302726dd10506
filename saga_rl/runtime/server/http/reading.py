"""What is worked out of a body without any state of the server's, so that it can be done outside the event loop.

A large body is read in pieces: what decodes JSON holds Python's lock for as long as it takes, and all else of the
server waits for it, whatever thread it runs in.
"""

from __future__ import annotations

import array
import json
from typing import Any, NamedTuple

import msgspec

from saga_rl.runtime.server.http.dialects import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Turn, prompt_of, turns_of
from saga_rl.runtime.server.http.prompts import parts_of

LARGE = 256 * 1024
"""Bytes above which a body is read outside the event loop."""
MOST_TURNS = 16_384
"""A conversation with more is not told by its turns."""
MOST_PIECE = 1 << 20
_decode = msgspec.json.Decoder().decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_numbers = msgspec.json.Decoder(list[int]).decode
_LISTS = {CHAT: "messages", MESSAGES: "messages", RESPONSES: "input"}
_PLAIN_NUMBERS = b"0123456789, \t\r\n-"


class Reading(NamedTuple):
    """A body as it was read."""

    body: Any
    """Of a large one, a prompt of token ids is left out: it is `text`. None: no JSON."""
    turns: list[Turn] | None = None
    text: bytes | None = None
    """The plain prompt; its bytes, or its token ids as 32-bit numbers."""
    parts: list[bytes] | None = None
    """Digests of the prompt's parts, in the order of its keys."""


def read(dialect: str, raw: bytes) -> Reading:
    """raw: in UTF-8. Needs nothing but its arguments."""
    if len(raw) <= LARGE:
        body, text = read_json(raw), None
        if isinstance(body, dict) and dialect == COMPLETIONS:
            text = prompt_of(body)
    else:
        body, text = _large(dialect, raw)
    if not isinstance(body, dict):
        return Reading(body)
    turns = turns_of(dialect, body)
    return Reading(body, turns, text, parts_of(turns or (), text) if turns or text else None)


def read_json(raw: bytes) -> Any:
    """JSON as vLLM's server reads it: a strict fast reader first, then Python's own, which takes more. None: no JSON.
    """
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            return None


def _large(dialect: str, raw: bytes) -> tuple[Any, bytes | None]:
    try:
        fields = _fields(raw)
        body: dict[str, Any] = {}
        text: bytes | None = None
        for name, value in fields.items():
            if name == _LISTS.get(dialect) and bytes(memoryview(value)[:1]) == b"[":
                body[name] = _each(value)
            elif name == "prompt" and dialect == COMPLETIONS and (ids := _token_ids(value)) is not None:
                text = ids
            else:
                body[name] = _decode(value)
        return body, prompt_of(body) if text is None and dialect == COMPLETIONS else text
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        whole = read_json(raw)
        return whole, prompt_of(whole) if isinstance(whole, dict) and dialect == COMPLETIONS else None


def _each(value: msgspec.Raw) -> list[Any]:
    """The items of a list, one by one; none of a list that is too long."""
    items = _items(value)
    return [_decode(item) for item in items] if len(items) <= MOST_TURNS else []


def _token_ids(value: msgspec.Raw) -> bytes | None:
    """A flat list of whole numbers, as `prompt_of` writes it; None if it is anything else."""
    inside = bytes(value).strip()
    if inside[:1] != b"[" or len(inside) < 3:
        return None
    inside, out, start = inside[1:-1], array.array("i"), 0
    while start < len(inside):
        end = inside.find(b",", start + MOST_PIECE)
        piece = inside[start:len(inside) if end < 0 else end]
        if piece.strip(_PLAIN_NUMBERS) or piece.translate(None, _PLAIN_NUMBERS):
            return None
        try:
            out.extend(_numbers(b"[" + piece + b"]"))
        except OverflowError:
            return None
        start = len(inside) if end < 0 else end + 1
    return out.tobytes()
