"""A prompt and an answer as they are compared: keys of a prompt's beginnings, what an answer said and called."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from saga_rl.runtime.server.http.dialects import Turn, said

ANOTHER, UNKNOWN, SAME, VERY = 0, 1, 2, 3
"""How surely a prompt goes on from a known one: it repeats another answer; the answer is not known; it repeats the
answer; it is that very prompt."""
PREFIX = 64
"""Bytes that a plain prompt must repeat of an answer."""
Calls = tuple[tuple[str, str, str], ...]
TAG = re.compile(rb"<[^<>\s]{1,40}>")
"""What chat templates put between turns."""
_LONGEST_HEAD = 1 << 16
LONG = 1 << 20
"""Characters of a turn that are not copied in one go."""


def digest(*parts: bytes) -> bytes:
    h = hashlib.blake2b(parts[0], digest_size=16)
    for part in parts[1:]:
        h.update(part)
    return h.digest()


@dataclass(slots=True)
class Answer:
    """What is compared of an answer with later prompts."""

    calls: dict[str, str] = field(default_factory=dict)
    """Names of called tools by id of the call."""
    text: bytes = b""
    """Digest of the text (turns), or its first bytes (plain prompts)."""
    plain: bytes = b""
    """Of an answer to a plain prompt that reasoned: its first bytes without that."""
    whole: tuple[int, bytes] = (0, b"")
    """Of an answer to a plain prompt: its length and the digest of all of it."""
    arguments: dict[str, str] = field(default_factory=dict)
    """Arguments of the calls, as `dialects.arguments` writes them, by id of the call."""
    lines: tuple[str, ...] = ()
    """Long lines of its text and arguments, see `quotes`."""

    @property
    def empty(self) -> bool:
        """Whether it said and called nothing: whoever got it asks again."""
        return not self.calls and not self.text


class Prompt:
    """Keys of one prompt. scope: who may share chains (tenant, session named); parts: `parts_of` the rest, if known."""

    def __init__(self, scope: bytes, turns: Sequence[Turn] | None = None, text: bytes | None = None,
                 parts: Sequence[bytes] | None = None) -> None:
        self.scope, self.turns, self.text, self.tail = scope, turns or (), text, b""
        key = digest(b"turns" if text is None else b"text", scope)  # their lengths count different things
        self.keys = [key]
        self._after: dict[int, tuple[bytes, Calls]] = {}
        for part in parts if parts is not None else parts_of(self.turns, text):
            self.keys.append(key := digest(key, part))
        if text is not None:
            self.length = len(text)
            self._ends = [0, *_boundaries(len(text))]
            self.tail = digest(text[self._ends[-1]:])
            self.head = digest(self.keys[0], _head(text))
        else:
            self.length = len(self.keys) - 1
            self.head = self.keys[len(leading_system(self.turns))]

    def extends(self, length: int, tail: bytes, answer: Answer | None, i: int) -> int:
        """How surely this prompt goes on from a known one of `length` and `tail`, found under key i: `ANOTHER` to
        `VERY`; -1 not at all."""
        if self.text is not None:
            start = self._ends[i]
            if length > self.length or digest(self.text[start:length]) != tail:
                return -1
            if length == self.length:
                return VERY
            if answer is None or not answer.text:
                return UNKNOWN
            more = self.text[length:length + 1024].lstrip()
            known = more.startswith(answer.text) or (answer.plain and more.startswith(answer.plain))
            return SAME if known else ANOTHER
        if self.length == length:
            return VERY
        if answer is None or not self.turns:
            return UNKNOWN
        text, calls = self.said(length)
        if answer.calls:
            made = sorted((name, answer.arguments.get(call, "")) for call, name in answer.calls.items())
            if sorted((name, given) for _, name, given in calls) != made:
                return ANOTHER
        elif not answer.text:
            return UNKNOWN
        return ANOTHER if answer.text and text and text != answer.text else SAME

    def same_ids(self, length: int, answer: Answer | None) -> int:
        """Whether what follows `length` has what tells apart what is otherwise alike: the ids of the answer's calls, or
        (plain prompts) all of its text."""
        if answer is None or self.length <= length:
            return 0
        if self.text is not None:
            more = self.text[length:length + 1024]
            start = length + len(more) - len(more.lstrip())
            return int(answer.whole[0] > 0 and digest(self.text[start:start + answer.whole[0]]) == answer.whole[1])
        if not answer.calls or not self.turns:
            return 0
        return int(any(call in answer.calls for call, _, _ in self.said(length)[1]))

    def said(self, length: int) -> tuple[bytes, Calls]:
        """(digest of the text, calls) of the answer that stands after `length` turns; read once, however many known
        prompts are asked."""
        if length not in self._after:
            text, calls = said(self.turns, length)
            self._after[length] = digest(text.encode("utf-8", "surrogatepass")) if text else b"", calls
        return self._after[length]


def parts_of(turns: Sequence[Turn], text: bytes | None = None) -> list[bytes]:
    """Digests of what a prompt is cut into: its turns, or stretches of its text. Needs nobody's scope."""
    if text is None:
        return [digest(t.canonical()) if len(t.text) < LONG else _in_pieces(t) for t in turns]
    ends = _boundaries(len(text))
    return [digest(text[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=False)]


def _in_pieces(turn: Turn) -> bytes:
    """The same for a long text, without a copy of it in one go: whoever copies holds Python's lock."""
    h = hashlib.blake2b(turn._replace(text="").canonical(), digest_size=16)
    for at in range(0, len(turn.text), LONG):
        h.update(turn.text[at:at + LONG].encode("utf-8", "surrogatepass"))
    return h.digest()


def _boundaries(length: int) -> list[int]:
    """Where a text of so many bytes is cut: each 256 up to 4,096, then each 4,096."""
    return [*range(256, min(length, 4096) + 1, 256), *range(8192, length + 1, 4096)]


def _head(text: bytes) -> bytes:
    """What a plain prompt begins with: its first turn, or its first line."""
    tag = TAG.search(text, 1, _LONGEST_HEAD)
    if tag is not None:
        return text[:tag.start()]
    return text[:_LONGEST_HEAD].partition(b"\n")[0]


def leading_system(turns: Sequence[Turn]) -> Sequence[Turn]:
    n = 0
    while n < len(turns) and turns[n].role == "system":
        n += 1
    return turns[:n]
