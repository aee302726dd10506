"""The conversations of one session: which agent each is, and whether they belong to one session at all.

A name that a gateway gives to everybody is found out by what comes under it. Counted is a conversation that quotes
nothing of what was said and began when the main agent waited for no tool, if it goes on or has the main agent's system
prompt; and each change back to an older conversation. One session gives none of this, or a little: a compaction that
quotes nothing, a title made at the side.
"""

from __future__ import annotations

from dataclasses import dataclass

from saga_rl.runtime.server.http.prompts import Answer, Prompt, digest

MOST_AGENTS = 1024
ENOUGH = 3.0
"""Counted so much, a name is no longer believed: three whole conversations too many."""
ONE_SHOT = 0.25
"""What a conversation counts that has not gone on yet."""
MOST_SUBS = 32
"""Conversations that begin within one tool call of the main agent; more are somebody else's."""


@dataclass(slots=True, eq=False)
class Chain:
    """An agent: its requests one after another."""

    session: str
    agent: int
    head: bytes = b""
    """Its system prompt, as a key."""
    step: int = 0
    busy: int = 0
    last: Answer | None = None
    caller: int | None = None
    """The agent that called it, as far as is known."""
    tools: bool = True
    """Its first request offers tools."""


@dataclass(slots=True, eq=False)
class Entry:
    """A prompt that is remembered."""

    chain: Chain
    step: int
    length: int
    tail: bytes = b""
    talk: int = 0
    """Number of its conversation in the family."""
    answer: Answer | None = None
    waiting: bool = True
    prompt: Prompt | None = None
    """Only until it is answered."""
    begun: bool = False
    """It begins a session that nobody named."""


class Family:
    """The agents of one session: chains by what they begin with."""

    __slots__ = ("_rivals", "_subs", "_talks", "_young", "agents", "doubt", "heads", "main")

    def __init__(self) -> None:
        self.agents = 0
        self.main: Chain | None = None
        self.heads: dict[bytes, Chain] = {}
        self.doubt = 0.0
        self._talks = self._young = self._subs = 0
        self._rivals: dict[int, float] = {}
        """Conversations that nobody called -> what they will count when they go on."""

    # ------------------------------------------------------------------ agents
    def new(self, session: str, head: bytes) -> Chain:
        """The next agent."""
        chain = Chain(session, self.agents % MOST_AGENTS, head)
        self.agents += 1
        self.main = self.main or chain
        if len(self.heads) < MOST_AGENTS or head in self.heads:
            self.heads[head] = chain if self.heads.get(head) is not self.main else self.heads[head]
        return chain

    def instead(self, session: str, head: bytes) -> Chain:
        """The main agent, which comes after what had its place: that gets the next number."""
        if self.main is not None:
            self.main.agent = self.agents % MOST_AGENTS
            self.agents += 1
        self.main = Chain(session, 0, head)
        if len(self.heads) < MOST_AGENTS or head in self.heads:
            self.heads[head] = self.main
        return self.main

    def aside(self, tools: bool) -> bool:
        """Whether a conversation that begins, with tools or without, shows that the main agent so far was none: a title
        or the like, asked for once and without tools before the main agent begins."""
        return tools and self.main is not None and not self.main.tools and self.main.step <= 1

    def named(self, session: str, name: str, may_be_main: bool) -> int:
        """Number of the agent that a client calls `name`; 0, the main agent's, only where it may be and is free."""
        head = _named(name)
        known = self.heads.get(head)
        if known is None:
            if not (may_be_main and not self.agents):
                self.agents = max(self.agents, 1)
            known = Chain(session, self.agents if not self.agents else 1 + (self.agents - 1) % (MOST_AGENTS - 1), head)
            self.agents += 1
            if len(self.heads) < MOST_AGENTS:
                self.heads[head] = known
        return known.agent

    def number(self, name: str) -> int:
        """Number of the agent called `name`, 0 if it is not known: then the main agent is meant."""
        known = self.heads.get(_named(name))
        return 0 if known is None else known.agent

    # ------------------------------------------------------------------ conversations
    def began(self, head: bytes, quoted: bool, main_one: bool = False) -> int:
        """A conversation begins; main_one: the main agent's. Returns its number."""
        self._talks += 1
        main, talk = self.main, self._talks
        if main is None or main_one:
            self._rivals[talk] = 0.0
            self._young = talk
        elif not quoted and not self._called(main):
            same = head == main.head
            self._rivals[talk] = 1 - ONE_SHOT if same else 1.0
            if same:
                self.doubt += ONE_SHOT
                self._young = talk
            if len(self._rivals) > MOST_AGENTS:
                del self._rivals[next(iter(self._rivals))]
        return talk

    def went_on(self, talk: int, head: bytes) -> None:
        """Conversation `talk` goes on from its own answer."""
        if talk not in self._rivals:
            return
        self.doubt += self._rivals[talk]
        self._rivals[talk] = 0.0
        if self.main is not None and head == self.main.head and talk != self._young:
            self.doubt += 1
            self._young = talk

    def answered(self, chain: Chain) -> None:
        """`chain` was answered."""
        if chain is self.main:
            self._subs = 0

    def _called(self, main: Chain) -> bool:
        """Whether the main agent waits for a tool, which may have sent this."""
        if main.busy or main.last is None or not main.last.calls:
            return False
        self._subs += 1
        return self._subs <= MOST_SUBS


def _named(name: str) -> bytes:
    return digest(b"agent", name.encode("utf-8", "surrogatepass"))
