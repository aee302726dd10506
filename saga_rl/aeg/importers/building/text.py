"""Lengths and block ids from text: with a tokenizer of the user's choice, or at four characters a token."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError

CHARACTERS = 4
"""Characters that a token is taken to stand for where no tokenizer is at hand."""
BLOCK = 16


def characters(part: dict[str, Any]) -> int:
    """Characters that a model wrote of a part of a message: text, thinking, or a tool's arguments."""
    for name in ("text", "thinking"):
        if isinstance(part.get(name), str):
            return len(part[name])
    if part.get("type") in ("tool_use", "tool-call", "function_call"):
        given = part.get("input", part.get("arguments", ""))
        return len(str(part.get("name", ""))) + len(given if isinstance(given, str) else json.dumps(given))
    return 0


def tokens_of_characters(n: int) -> int:
    """Estimated tokens of `n` characters."""
    return -(-n // CHARACTERS)


class Tokens:
    """Text to token ids. name: a `tokenizer.json` or a folder that holds one; None: each piece of four UTF-8 bytes is a
    token, so lengths are estimates while equal text still has equal ids.

    Raises `UserError` for a tokenizer that is not there or cannot be read.
    """

    def __init__(self, name: str | None) -> None:
        self.exact = name is not None
        self.ids: Callable[[str], Sequence[int]] = _pieces if name is None else _load(name)


def _pieces(text: str) -> Sequence[int]:
    data = text.encode("utf-8", "surrogatepass")
    return memoryview(data + b"\0" * (-len(data) % CHARACTERS)).cast("I").tolist()


def _load(name: str) -> Callable[[str], Sequence[int]]:
    path = Path(name)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError("--tokenizer", f"{name} is no tokenizer.json and no folder that holds one",
                        "name the folder of a model that was downloaded")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError("--tokenizer", "needs the package tokenizers", "pip install tokenizers") from None
    try:
        model = Tokenizer.from_file(str(path))
    except Exception as e:  # the package raises bare Exception
        raise UserError(path, f"is not a tokenizer that can be read ({e})", "take another one") from None
    return lambda text: model.encode(text, add_special_tokens=False).ids


class Context:
    """A text that grows, in tokens and ids of its whole blocks. An id stands for its block and all before it."""

    def __init__(self) -> None:
        self.length = 0
        self.blocks = array("q")
        self._open = array("I")
        self._last = b""

    def add(self, ids: Iterable[int]) -> None:
        """Append tokens."""
        self._open.extend(ids)
        whole = len(self._open) // BLOCK
        for k in range(whole):
            piece = self._open[k * BLOCK:(k + 1) * BLOCK].tobytes()
            self._last = blake2b(self._last + piece, digest_size=8).digest()
            self.blocks.append(int.from_bytes(self._last, "little") >> 1)
        self._open = self._open[whole * BLOCK:]
        self.length = len(self.blocks) * BLOCK + len(self._open)

    def copy(self) -> Context:
        """Another one that grows on its own."""
        new = Context()
        new.length, new.blocks, new._open, new._last = self.length, self.blocks[:], self._open[:], self._last
        return new


_NO_WORDS = ("id", "type", "role", "from", "tool_call_id", "call_id", "tool_use_id", "index", "signature", "extra")


def words(value: Any) -> str:
    """All text of a message, its parts and its tools' calls; ids and kinds are not text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(filter(None, map(words, value)))
    if isinstance(value, dict):
        return "\n".join(filter(None, (words(v) for k, v in value.items() if k not in _NO_WORDS)))
    return "" if value is None else json.dumps(value)


class Chat:
    """Turns chat messages into lengths and block ids. No chat template is applied: a role is a line of its own."""

    def __init__(self, tokenizer: str | None) -> None:
        self.tokens = Tokens(tokenizer)
        self.lengths = "recorded" if self.tokens.exact else "estimated"
        """What the quality line says of lengths that come from here."""

    def message(self, message: dict[str, Any] | str) -> Sequence[int]:
        """Token ids of one message."""
        if isinstance(message, str):
            return self.tokens.ids(message)
        role = str(message.get("role") or message.get("from") or "")
        return self.tokens.ids(f"{role}\n{words(message)}\n")

    def context(self, messages: Iterable[dict[str, Any] | str]) -> Context:
        """All of `messages` after each other."""
        context = Context()
        for message in messages:
            context.add(self.message(message))
        return context
