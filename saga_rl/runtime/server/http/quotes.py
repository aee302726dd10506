"""Which conversation a new one quotes. What extends no known prompt may still repeat what an answer said: after
compaction it holds the summary, with a sliding window the last answers; a sub-agent's prompt stood in its caller's
call; and agents that talk to each other hear each other's answers.

Lines of 32 characters or more are compared, by Python's keyed hash. A line that several sessions' answers said, or
that stood in the prompt that was answered, says nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from saga_rl.runtime.server.http.prompts import Prompt

SHORTEST = 32
"""Characters of a line that counts."""
MOST_LINES = 6
"""Remembered of the text of an answer, and of the arguments of its calls: the longest."""
MOST_LOOKED_AT = 1024
"""Lines of a prompt, latest first."""
MOST_OWN = 1 << 16
"""Characters at the beginning of a prompt in which an answer's line must not stand: others may begin with them too."""
_TAG = re.compile(r"<[^<>\s]{1,40}>")
_STRING = re.compile(r'"(?:[^"\\]|\\.){32,}"')
C = TypeVar("C", bound=Any)


def long_lines(text: str, most: int = MOST_LINES) -> list[str]:
    """The longest lines of an answer that count."""
    lines = {s for line in text.splitlines() if len(s := line.strip()) >= SHORTEST}
    return sorted(lines, key=lambda s: (-len(s), s))[:most]


def strings_of(arguments: str) -> str:
    """All texts within a call's arguments, a line each."""
    if len(arguments) < SHORTEST:
        return ""
    try:
        return "\n".join(_strings(json.loads(arguments), 4))
    except (ValueError, RecursionError):
        return ""


def untagged(text: str) -> str:
    """Text with a new line for each tag: templates of chats, and of calls."""
    return _TAG.sub("\n", text)


def quoted_in(text: str) -> str:
    """The longer JSON strings within a text, a line each."""
    out = []
    for found in _STRING.findall(text):
        try:
            out.append(json.loads(found))
        except ValueError:
            continue
    return "\n".join(out)


def _strings(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner, depth - 1)


def lines_of(prompt: Prompt) -> Iterator[str]:
    """Lines of a prompt that count, the latest first."""
    texts: Iterable[str]
    if prompt.text is not None:
        texts = (untagged(prompt.text.decode("utf-8", "replace")),)
    else:
        texts = (t for turn in reversed(prompt.turns)
                 for t in (turn.text, *(strings_of(given) for _, _, given in turn.calls)))
    left = MOST_LOOKED_AT
    for text in texts:
        for line in reversed(text.splitlines()):
            if len(line) >= SHORTEST and len(line := line.strip()) >= SHORTEST:
                yield line
                left -= 1
                if not left:
                    return


def stands_in(line: str, prompt: Prompt) -> bool:
    """Whether the line stands near the beginning of the prompt."""
    if prompt.text is not None:
        return line.encode("utf-8", "surrogatepass") in prompt.text[:MOST_OWN]
    left = MOST_OWN
    for turn in prompt.turns:
        if line in turn.text[:left] or any(line in strings_of(given) for _, _, given in turn.calls):
            return True
        left -= len(turn.text)
        if left <= 0:
            return False
    return False


class Quotes(Generic[C]):
    """Lines that answers said, and whose they are. most: lines remembered; chains have a `session`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._known: OrderedDict[int, tuple[C | None, str]] = OrderedDict()
        """By a line's hash: whose it is (None: several sessions'), and how it begins."""
        self._begins: Counter[str] = Counter()
        """Beginnings of these lines: a prompt has hundreds, of which hardly one has to be hashed for this."""

    def __len__(self) -> int:
        return len(self._known)

    def said(self, chain: C, prompt: Prompt, lines: Iterable[str]) -> None:
        """The answer to `prompt` said `lines`."""
        for line in lines:
            if stands_in(line, prompt):
                continue
            key = hash((prompt.scope, line))
            begins = line[:SHORTEST]
            if key not in self._known:
                self._begins[begins] += 1
            before, _ = self._known.get(key, (chain, begins))
            self._known[key] = chain if before is not None and before.session == chain.session else None, begins
            self._known.move_to_end(key)
        while len(self._known) > self.most:
            _, (_, begins) = self._known.popitem(last=False)
            self._begins[begins] -= 1
            if not self._begins[begins]:
                del self._begins[begins]

    def find(self, prompt: Prompt) -> C | None:
        """The chain whose answer this prompt quotes, None if it quotes nobody's."""
        if not self._known:
            return None
        begins = self._begins
        for line in lines_of(prompt):
            if line[:SHORTEST] in begins and (
                    found := self._known.get(hash((prompt.scope, line)), (None, ""))[0]) is not None:
                return found
        return None
