"""Sessions by their prefix chain: a prompt belongs to the longest known prompt that it extends.

Every prompt is a list of keys, one a turn (or a stretch of text), each a hash of all before it. A prompt is remembered
under its last key, with the answer it got; the next prompt of that session goes through this key and then repeats the
answer. So two sessions that begin alike are told apart by their answers, and one that shares only a system prompt with
others is never taken for them. Memory is bounded: what was unheard of for longest is forgotten, and begins anew.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from saga_rl.runtime.server.http.dialects import Turn, said

MOST_ENTRIES = 16
"""Prompts remembered under one key: as many sessions that begin alike can be told apart."""
MOST_AGENTS = 1024


def digest(*parts: bytes) -> bytes:
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        h.update(part)
    return h.digest()


@dataclass(slots=True)
class Answer:
    """What is compared of an answer with the next prompt."""

    calls: dict[str, str] = field(default_factory=dict)
    """Names of called tools by id of the call."""
    text: bytes = b""
    """Digest of the text (turns), or its first bytes (plain prompts)."""
    arguments: dict[str, str] = field(default_factory=dict)
    """Arguments of the calls, as `dialects.arguments` writes them, by id of the call."""


@dataclass(slots=True, eq=False)
class Chain:
    session: str
    agent: int
    step: int = 0
    busy: int = 0
    last: Answer | None = None


@dataclass(slots=True, eq=False)
class Entry:
    chain: Chain
    step: int
    length: int
    tail: bytes = b""
    answer: Answer | None = None


class Prompt:
    """Keys of one prompt. scope: who may share chains (tenant, session named)."""

    def __init__(self, scope: bytes, turns: Sequence[Turn] | None = None, text: bytes | None = None,
                 blocks: Sequence[bytes] | None = None) -> None:
        self.turns, self.text, self.tail = turns or (), text, b""
        key = digest(b"turns" if text is None else b"text", scope)  # their lengths count different things
        self.keys = [key]
        if text is not None:
            self.length, ends = len(text), _boundaries(len(text))
            for a, b in zip([0, *ends[:-1]], ends, strict=False):
                self.keys.append(key := digest(key, text[a:b]))
            self._ends = [0, *ends]
            self.tail = digest(text[self._ends[-1]:])
            self.head = self.keys[min(1, len(self.keys) - 1)]
        else:
            pieces = blocks if blocks is not None else [t.canonical() for t in self.turns]
            for piece in pieces:
                self.keys.append(key := digest(key, piece))
            self.length = len(pieces)
            heads = sum(1 for _ in _leading_system(self.turns))
            self.head = self.keys[heads]

    def extends(self, entry: Entry, i: int) -> int:
        """How surely this prompt goes on from `entry`, found under key i: -1 not at all, 0 another answer, 1 unknown
        answer, 2 the same answer, 3 this very prompt."""
        if self.text is not None:
            start = self._ends[i]
            if entry.length > self.length or digest(self.text[start:entry.length]) != entry.tail:
                return -1
            if entry.length == self.length:
                return 3
            if entry.answer is None or not entry.answer.text:
                return 1
            return 2 if self.text[entry.length:].lstrip().startswith(entry.answer.text) else 0
        if self.length == entry.length:
            return 3
        if entry.answer is None or not self.turns:
            return 1
        text, calls = said(self.turns, entry.length)
        answer = entry.answer
        if answer.calls:
            made = sorted((name, answer.arguments.get(call, "")) for call, name in answer.calls.items())
            if sorted((name, given) for _, name, given in calls) != made:
                return 0
        elif not answer.text:
            return 1
        if answer.text and text and digest(text.encode("utf-8", "surrogatepass")) != answer.text:
            return 0
        return 2

    def same_ids(self, entry: Entry) -> int:
        """Whether the calls of the answer to `entry` have its ids, which tell apart what is otherwise alike."""
        if entry.answer is None or not entry.answer.calls or not self.turns or self.length <= entry.length:
            return 0
        return int(any(call in entry.answer.calls for call, _, _ in said(self.turns, entry.length)[1]))


class _Family:
    """The agents of one session: chains by what they begin with."""

    __slots__ = ("agents", "heads", "main")

    def __init__(self) -> None:
        self.agents = 0
        self.main: Chain | None = None
        self.heads: dict[bytes, Chain] = {}


class Chains:
    """The chains that an API server knows. most: prompts remembered."""

    def __init__(self, most: int = 65_536) -> None:
        self.most = most
        self._nodes: OrderedDict[bytes, list[Entry]] = OrderedDict()
        self._families: OrderedDict[str, _Family] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def arrive(self, prompt: Prompt, session: str | None = None) -> Entry:
        """The prompt's place; `entry.chain` says session and agent. session: named by the client."""
        chain = self._find(prompt) or self._begin(prompt, session)
        chain.step += 1
        chain.busy += 1
        entry = Entry(chain, chain.step, prompt.length, prompt.tail)
        key = prompt.keys[-1]
        here = self._nodes.setdefault(key, [])
        here.append(entry)
        del here[:-MOST_ENTRIES]
        self._nodes.move_to_end(key)
        while len(self._nodes) > self.most:
            self._nodes.popitem(last=False)
        return entry

    def named_agent(self, session: str, name: str) -> int:
        """Number of the sub-agent that a client calls `name` within `session`; never 0, the main agent's."""
        family = self._family(session)
        head = digest(b"agent", name.encode("utf-8", "surrogatepass"))
        known = family.heads.get(head)
        if known is None:
            known = Chain(session, 1 + (max(family.agents, 1) - 1) % (MOST_AGENTS - 1))
            family.agents = max(family.agents, 1) + 1
            if len(family.heads) < MOST_AGENTS:
                family.heads[head] = known
        return known.agent

    def answered(self, entry: Entry, answer: Answer | None) -> None:
        """Its request is over; None: nothing came to be known of the answer."""
        entry.chain.busy -= 1
        entry.answer = entry.chain.last = answer

    def _find(self, prompt: Prompt) -> Chain | None:
        for i in range(len(prompt.keys) - 1, -1, -1):
            here = self._nodes.get(prompt.keys[i])
            if not here:
                continue
            best, rank = None, (-1, -1, -1, -1)
            for entry in here:
                how = prompt.extends(entry, i)
                if how < 0:
                    continue
                mine = (entry.length, how, prompt.same_ids(entry), int(entry.chain.step == entry.step))
                if mine >= rank:
                    best, rank = entry, mine
            if best is None:
                continue
            self._nodes.move_to_end(prompt.keys[i])
            return self._go_on(best, rank[1], prompt)
        return None

    def _go_on(self, entry: Entry, how: int, prompt: Prompt) -> Chain | None:
        chain = entry.chain
        if how == 3 and entry.step == 1:
            return None  # a session that begins like another, or a retry of its first request: nothing tells
        if chain.step == entry.step and not chain.busy:
            return chain
        if entry.step == 1 and how != 2 and chain.step != entry.step:
            return None  # only the beginning is shared
        if not chain.busy:
            return chain  # history was edited, or a request sent again
        return self._new(self._family(chain.session), chain.session, prompt.head)

    def _begin(self, prompt: Prompt, session: str | None) -> Chain:
        if session is None:
            session = "chain-" + secrets.token_hex(12)
        family = self._family(session)
        known = family.heads.get(prompt.head)
        if known is not None and not known.busy and (
                known is family.main or (known.last is not None and not known.last.calls)):
            return known  # the main agent after compaction, or a sub-agent whose forerunner is done
        return self._new(family, session, prompt.head)

    def _family(self, session: str) -> _Family:
        family = self._families.setdefault(session, _Family())
        self._families.move_to_end(session)
        while len(self._families) > max(1, self.most // 4):
            self._families.popitem(last=False)
        return family

    def _new(self, family: _Family, session: str, head: bytes) -> Chain:
        chain = Chain(session, family.agents % MOST_AGENTS)
        family.agents += 1
        family.main = family.main or chain
        if len(family.heads) < MOST_AGENTS or head in family.heads:
            family.heads[head] = chain if family.heads.get(head) is not family.main else family.heads[head]
        return chain


def _boundaries(length: int) -> list[int]:
    """Where a text of so many bytes is cut: each 256 up to 4,096, then each 4,096."""
    return [*range(256, min(length, 4096) + 1, 256), *range(8192, length + 1, 4096)]


def _leading_system(turns: Sequence[Turn]) -> Sequence[Turn]:
    n = 0
    while n < len(turns) and turns[n].role == "system":
        n += 1
    return turns[:n]
