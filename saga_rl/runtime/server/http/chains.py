"""Sessions by their prefix chain: a prompt belongs to the longest known prompt that it extends.

Every prompt is a list of keys, one a turn (or a stretch of text), each a hash of all before it. A prompt is remembered
under its last key, with the answer it got; the next prompt of that session goes through this key and then repeats the
answer. So two sessions that begin alike are told apart by their answers, and one that shares only a system prompt with
others is never taken for them. A prompt that extends none may quote an answer (`quotes`). Memory is bounded: what was
unheard of for longest is forgotten, and begins anew.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict

from saga_rl.runtime.server.http.family import ENOUGH, Chain, Entry, Family
from saga_rl.runtime.server.http.prompts import ANOTHER, SAME, VERY, Answer, Prompt
from saga_rl.runtime.server.http.quotes import Quotes

MOST_ENTRIES = 256
"""Prompts remembered under one key: as many sessions that begin alike can be told apart."""
MOST_DOUBTED = 4096
Place = tuple[Chain, int, int, bool]
"""(chain, number of the conversation, step before this request, whether it goes on from its own answer)."""


class Chains:
    """The chains that an API server knows. most: prompts remembered."""

    def __init__(self, most: int = 65_536) -> None:
        self.most = most
        self.quotes: Quotes[Chain] = Quotes(2 * most)
        self.doubted: OrderedDict[str, None] = OrderedDict()
        """Names that are no longer believed: unrelated conversations came under them."""
        self._nodes: OrderedDict[bytes, list[Entry]] = OrderedDict()
        self._families: OrderedDict[str, Family] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    # ------------------------------------------------------------------ requests
    def arrive(self, prompt: Prompt, session: str | None = None, retry: bool = False, tools: bool = True) -> Entry:
        """The prompt's place; `entry.chain` says session and agent. session: named by the client. retry: the client
        says that it asks again. tools: the request offers some."""
        name = None if session in self.doubted else session
        found, begun = self._find(prompt, name, retry), False
        if found is None:
            found, begun = self._beginning(prompt, name, tools)
        chain, talk, step, goes_on = found
        if name is None and chain.session == session:  # begun under a name that is no longer believed
            chain = self._new_session(prompt.head)
            begun = True
        if name is not None and goes_on:
            family = self._family(name)
            family.went_on(talk, prompt.head)
            self._doubt(name, family)
        if not chain.step:
            chain.tools = tools
        chain.step = max(chain.step, step + 1)
        chain.busy += 1
        entry = Entry(chain, step + 1, prompt.length, prompt.tail, talk, prompt=prompt, begun=begun)
        key = prompt.keys[-1]
        here = self._nodes.setdefault(key, [])
        here.append(entry)
        del here[:-MOST_ENTRIES]
        self._nodes.move_to_end(key)
        while len(self._nodes) > self.most:
            self._nodes.popitem(last=False)
        return entry

    def answered(self, entry: Entry, answer: Answer | None) -> None:
        """Its request is over; None: it was not answered to its end."""
        entry.chain.busy -= 1
        entry.waiting = False
        entry.answer = answer
        if answer is not None:
            entry.chain.last = answer
            family = self._families.get(entry.chain.session)
            if family is not None:
                family.answered(entry.chain)
            if answer.lines and entry.prompt is not None:
                self.quotes.said(entry.chain, entry.prompt, answer.lines)
        entry.prompt = None

    def named_agent(self, session: str, name: str, may_be_main: bool = False) -> int:
        """Number of the agent that a client calls `name` within `session`."""
        return self._family(session).named(session, name, may_be_main)

    def agent_called(self, session: str, name: str) -> int:
        """Number of a known agent, 0 if it is not known."""
        family = self._families.get(session)
        return 0 if family is None else family.number(name)

    def over(self, session: str) -> None:
        """The session was said to be over: its name begins anew."""
        self._families.pop(session, None)

    # ------------------------------------------------------------------ prompts that are known
    def _find(self, prompt: Prompt, session: str | None, retry: bool) -> Place | None:
        asked = None
        for i in range(len(prompt.keys) - 1, -1, -1):
            best, how = self._best(prompt, i)
            if best is None:
                continue
            if how == VERY and asked is None:
                self._nodes.move_to_end(prompt.keys[i])
                asked = self._again(self._nodes[prompt.keys[i]], best, session, retry)
                if asked is None or best.step == 1 or best.waiting or retry:
                    return asked
                continue
            if asked is not None:  # another conversation that was alike so far, and now comes to the same prompt?
                twin = how == SAME and best.chain.step == best.step and not best.chain.busy
                return (best.chain, best.talk, best.chain.step, True) if twin else asked
            self._nodes.move_to_end(prompt.keys[i])
            if how == ANOTHER and self.quotes.find(prompt) is not None:
                return None
            chain = self._go_on(best, how, prompt)
            return None if chain is None else (chain, best.talk, chain.step, how == SAME)
        return asked

    def _best(self, prompt: Prompt, i: int) -> tuple[Entry | None, int]:
        """(the known prompt under key i that this one goes on from, how surely)."""
        best, rank = None, (-1, -1, -1, -1)
        for entry in self._nodes.get(prompt.keys[i], ()):
            how = prompt.extends(entry.length, entry.tail, entry.answer, i)
            if how < 0:
                continue
            mine = (entry.length, how, prompt.same_ids(entry.length, entry.answer),
                    int(entry.chain.step == entry.step))
            if mine >= rank:
                best, rank = entry, mine
        return best, rank[1]

    def _again(self, here: list[Entry], best: Entry, session: str | None, retry: bool) -> Place | None:
        """A prompt that is known to the last turn: asked again, or a session that begins like another."""
        dead = [e for e in here if e.length == best.length and not e.waiting and e.answer is None]
        if dead:  # nobody can go on from it but who asks again
            best = dead[-1]
            here.remove(best)
        elif best.step == 1 and session is None and not (retry or (best.answer is not None and best.answer.empty)):
            return None
        chain = best.chain
        return chain, best.talk, best.step - 1 if chain.step == best.step else chain.step, False

    def _go_on(self, entry: Entry, how: int, prompt: Prompt) -> Chain | None:
        chain = entry.chain
        if chain.step == entry.step and not chain.busy:
            return chain
        if entry.step == 1 and how != SAME and chain.step != entry.step:
            return None  # only the beginning is shared
        if not chain.busy:
            return chain  # history was edited, or a request sent again
        return self._family(chain.session).new(chain.session, prompt.head)

    # ------------------------------------------------------------------ prompts that begin
    def _beginning(self, prompt: Prompt, session: str | None, tools: bool) -> tuple[Place, bool]:
        """(its place, whether it begins a session that nobody named)."""
        source = self.quotes.find(prompt)
        if source is not None and source.session not in self._families:
            source = None
        if source is not None and session is None:
            session = source.session
        if session is None:
            return (self._new_session(prompt.head), 0, 0, False), True
        family = self._family(session)
        main_one = source is None and family.aside(tools)
        talk = family.began(prompt.head, source is not None, main_one)
        self._doubt(session, family)
        if main_one:
            return (family.instead(session, prompt.head), talk, 0, False), False
        if source is not None and source.head == prompt.head and not source.busy:
            return (source, talk, source.step, False), False
        known = family.heads.get(prompt.head)
        if known is not None and not known.busy and (
                known is family.main or (known.last is not None and not known.last.calls)):
            chain = known  # the main agent after compaction, or a sub-agent whose forerunner is done
        else:
            chain = family.new(session, prompt.head)
        if source is not None and source is not chain:
            chain.caller = source.agent
        return (chain, talk, chain.step, False), False

    def _new_session(self, head: bytes) -> Chain:
        session = "chain-" + secrets.token_hex(12)
        return self._family(session).new(session, head)

    def _family(self, session: str) -> Family:
        family = self._families.setdefault(session, Family())
        self._families.move_to_end(session)
        while len(self._families) > max(1, self.most // 4):
            self._families.popitem(last=False)
        return family

    def _doubt(self, session: str, family: Family) -> None:
        if family.doubt >= ENOUGH and not session.startswith("chain-"):
            self.doubted[session] = None
            while len(self.doubted) > MOST_DOUBTED:
                self.doubted.popitem(last=False)
