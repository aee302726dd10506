"""The engine's memory of every chain: owner of the rows (`policies.state.chains`), tables and pool state that features
read.

It calls `arrive`, `schedule`, `preempt`, `finish`, `abort` and `expire` at the moments at which the simulator does, so
the same history gives the same rows. Memory is bounded: rows of chains that ended or expired are reused once their
blocks are gone, and names beyond a limit share one code.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.policies.parameters import EXPIRY_S
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state.tables import PATIENCE, Tables, announces, make_tables
from saga_rl.runtime.sessions.completion import Completion
from saga_rl.runtime.sessions.heard import Heard
from saga_rl.runtime.sessions.hints import Hints, cut_name

NOBODY = 0
"""Row of the chain that owns blocks of unknown origin: it never began, so age orders keep it longest."""
MAX_NAMES, MAX_TOOLS, MAX_TYPES = 512, 128, 32
"""Tenants, tools and agent types with a code of their own. What is learned of an agent type is a table of tool by tool,
so there are fewer of both: 4 MB at most."""
KEEP_S = 3600.0
"""A chain without blocks is remembered for so long, unless rows run out before."""
W = 0
"""The tracker describes one worker."""


@dataclass(slots=True)
class Served:
    """One request as the tracker and the recorder see it; times on the tracker's clock, NaN until they happen."""

    chain: int
    hints: Hints
    queued_s: float
    prompt_tokens: int
    tenant: int = 0
    """Its code."""
    number: int = 0
    """Counts arrivals: breaks ties of the queue's order."""
    scheduled_s: float = math.nan
    first_token_s: float = math.nan
    cached_tokens: int = -1
    since_s: float = math.nan
    """Since when it waits; while it runs, since when it did."""
    charged: int = 0
    """Generated tokens that its tenant was charged for."""
    preemptions: int = 0
    yields: int = 0
    """Of those, because its tenant had to yield."""


@dataclass(slots=True)
class _Session:
    number: int
    first_s: float
    deadline_s: float
    chains: list[int] = field(default_factory=list)
    """Rows."""
    over: dict[int, int] = field(default_factory=dict)
    """By agent: the last request that was said to be its last, by its arrival number."""


@dataclass
class _Names:
    """Strings to dense codes; beyond `most` of them every new name is `other`. With a quota, who has made more names
    than there are left makes no more: whoever comes later finds room."""

    most: int = MAX_NAMES
    codes: dict[str, int] = field(default_factory=dict)
    made: Counter[int] = field(default_factory=Counter)
    """Names by who brought them first."""

    def code(self, name: str | None, by: int = 0, quota: bool = False) -> int:
        if name is None:
            return -1
        if name not in self.codes:
            if len(self.codes) >= self.most:
                return self.codes["other"]
            if quota and self.made[by] >= self.most - len(self.codes):
                return self.codes.setdefault("other", len(self.codes))
            self.made[by] += 1
            if len(self.codes) == self.most - 1:
                name = "other"
            self.codes[name] = len(self.codes)
        return self.codes[name]


Key = tuple[str, int, int]
"""(session id, agent, lane): requests that one agent sends at the same time each take a lane of their own."""


class Tracker:
    """Rows of every chain that one engine (or one router) has seen. Time is whatever the caller passes as `now`, s."""

    def __init__(self, expiry_s: float = EXPIRY_S, max_chains: int = 200_000) -> None:
        self.expiry_s, self.max_chains = expiry_s, max_chains
        self.chains: NDArray[np.float64] = ch.make_chains(256)
        self.tables: Tables = make_tables(1, 16, 8)
        self.tools, self.tenants, self.types = _Names(MAX_TOOLS), _Names(), _Names(MAX_TYPES)
        self.quotas = False
        """Tenants do not trust each other: each may bring only so many names of tools and agent types."""
        self.version = 0
        """Changes with every event: scores made before are stale."""
        self.completion = Completion()
        self.heard = Heard()
        self._key: list[Key | None] = [None] * 256
        self._row: dict[Key, int] = {}
        self._free = list(range(255, NOBODY, -1))
        self._sessions: dict[str, _Session] = {}
        self._numbered = self._arrivals = 0
        self.chains[NOBODY, ch.SESSION] = self.chains[NOBODY, ch.TENANT] = -1

    # ------------------------------------------------------------------ events
    def arrive(self, hints: Hints, now: float, prompt_tokens: int) -> Served:
        """A request is queued."""
        c = self.chain_for(hints, now)
        ch.arrive(self.chains, self.tables, W, c, now, prompt_tokens)
        self.heard.event(c)
        if self.chains[c, ch.STEPS] > 0 and hints.tool is not None:
            self._named_late(c, self._tool(hints.tool, c))
        self.version += 1
        self._arrivals += 1
        return Served(c, hints, now, prompt_tokens, int(self.chains[c, ch.TENANT]), self._arrivals, since_s=now)

    def schedule(self, served: Served, now: float) -> None:
        """Its request got its first blocks (again, after a preemption)."""
        if math.isnan(served.scheduled_s):
            served.scheduled_s = now
        ch.schedule(self.chains, served.chain, now)
        self.version += 1

    def preempt(self, served: Served, now: float) -> None:
        """Its request lost its blocks and waits again."""
        served.preemptions += 1
        served.since_s = now
        ch.preempt(self.chains, served.chain, now)
        self.version += 1

    def finish(self, served: Served, now: float, output_tokens: int) -> list[int]:
        """Its answer is complete. Returns the rows that ended with it: where it was the last, all lanes of its agent.
        (A retry, or n > 1, takes lanes beside the first; who says the end means the agent.)"""
        c, h = served.chain, served.hints
        if h.final and (key := self._key[c]) is not None:
            self._sessions[key[0]].over[key[1]] = max(served.number, self._said_over(c))
        final = h.final or served.number < self._said_over(c)
        if self.chains[c, ch.RUNNING] == 0:
            self.chains[c, ch.STARTED] = now  # its last tokens came after a preemption: nothing more was attained
        ch.finish(self.chains, self.tables, W, c, now, served.prompt_tokens, output_tokens, self._tool(h.next_tool, c),
                  final)
        ended = []
        if final:
            self._completed(c, False)
            ended = [c, *(lane for lane in self._lanes(c) if self._over(lane))]
        elif h.unnamed or h.session is None:
            ch.expire(self.chains, self.tables, W, c)  # most such prompts are no agent's
        self.heard.event(c, self.chains[c, ch.ENDED] == 0)
        self.version += 1
        return ended

    def apply_note(self, note: Mapping[str, Any]) -> bool:
        """What came to be known of an answer after it: {"session", "agent", "next_tool", "final"}. It is for the chain
        of that agent that was heard of last, and late, so ignored, if that one is at its next request already. `agent`
        -1: every chain of the session, for ends. Whether anything came of it; a note that makes no sense is ignored."""
        session, agent, tool = note.get("session"), note.get("agent", 0), note.get("next_tool")
        final = note.get("final") is True
        if not isinstance(session, str) or not isinstance(agent, int) or not (tool is None or isinstance(tool, str)):
            return False
        mine = self._chains_of(cut_name(session), agent)
        if agent >= 0:
            mine = sorted(mine, key=lambda c: -max(self.chains[c, ch.LAST], self.chains[c, ch.QUEUED]))
            if not mine or self.busy(mine[0]) or self.chains[mine[0], ch.STEPS] == 0:
                return False
            if tool:
                self._called(mine[0], self._tool(cut_name(tool), mine[0]))
                ch.announced_call(self.chains, self.tables, W, mine[0])
                self.heard.event(mine[0], self.chains[mine[0], ch.ENDED] == 0)
        done = bool(tool) and agent >= 0
        for c in mine if final else ():
            done |= self._over(c)
        self.version += done
        return done

    def abort(self, served: Served, now: float, computed_tokens: int = 0) -> None:
        """Its request went away. What was computed of it stays of use: whoever asks again sends the same prompt."""
        ch.abort(self.chains, served.chain, now)
        self.heard.event(served.chain)
        row = self.chains[served.chain]
        row[ch.CONTEXT] = max(row[ch.CONTEXT], computed_tokens)
        if served.number < self._said_over(served.chain):
            self._over(served.chain)
        elif (served.hints.unnamed or served.hints.session is None
              or any(self.chains[lane, ch.QUEUED] > served.queued_s for lane in self._lanes(served.chain))):
            self._left(served.chain)  # nobody's, or asked again meanwhile in another lane: nobody waits for it
        self.version += 1

    def expire(self, now: float, holding: Iterable[int]) -> int:
        """Presume ended those of the chains `holding` (rows that hold idle blocks) that were unheard of for
        `chains.patience`; returns how many. Chains without blocks follow when they are forgotten."""
        x, held = self.chains, _rows_of(holding)
        silent = held[(now - x[held, ch.LAST] > self.expiry_s) & (x[held, ch.ENDED] == 0)]
        silent = silent[now - x[silent, ch.LAST] > self._patience(silent)]
        late = sum(map(self._expire, silent.tolist()))
        self.version += late
        return late

    def forget(self, now: float, holding: Iterable[int], most: int = 1 << 62) -> list[int]:
        """Reuse rows of idle chains that hold no blocks (`holding`: rows that do) and were unheard of for `KEEP_S` and
        for `expiry_s`; with more than `max_chains` rows in use, for `expiry_s` only. `most` rows a call, which it
        returns."""
        x = self.chains
        patience = self.expiry_s if len(self._row) > self.max_chains else max(KEEP_S, self.expiry_s)
        held: set[int] = set(_rows_of(holding).tolist())
        old: list[int] = []
        for c in self.heard.oldest():
            row = x[c]
            if self.busy(c) or c in held:
                continue
            if now - max(row[ch.LAST], row[ch.QUEUED]) <= patience or len(old) >= 2 * most:
                break
            old.append(c)
        rows = np.array(sorted(old), np.int64)
        gone: list[int] = []
        for c in (*rows[x[rows, ch.FIRST] != rows].tolist(), *rows[x[rows, ch.FIRST] == rows].tolist()):
            if len(gone) >= most:
                break
            if self._last_or_later(c):
                self._expire(c)
                self._drop(c)
                gone.append(c)
        return gone

    def warm_up(self) -> None:
        """Call every compiled function once, on rows that are thrown away: a first call compiles or loads."""
        other = Tracker()
        served = other.arrive(Hints(final=True), 0.0, 1)
        other.schedule(served, 0.0)
        other.preempt(served, 0.0)
        other.schedule(served, 0.0)
        other.finish(served, 0.0, 1)
        served = other.arrive(Hints(session="s"), 0.0, 1)
        other.finish(served, 0.0, 1)
        other.apply_note({"session": "s", "next_tool": "t"})
        other.apply_note({"session": "s", "final": True})
        served = other.arrive(Hints(), 0.0, 1)
        other.abort(served, 0.0)
        ch.expire(other.chains, other.tables, W, served.chain)

    # ------------------------------------------------------------------ reading
    def __len__(self) -> int:
        return len(self._row)

    def chain_of(self, session: str, agent: int = 0, lane: int = 0) -> int:
        """Row of a chain, -1 if it is not known."""
        return self._row.get((session, agent, lane), -1)

    def name(self, c: int) -> str:
        """Session, agent and lane of a chain as one string."""
        return "/".join(map(str, self._key[c] or ()))

    def busy(self, c: int) -> bool:
        """Whether a request of chain c waits or runs."""
        return bool(self.chains[c, ch.WAITING] == 1 or self.chains[c, ch.RUNNING] == 1)

    def silent(self, c: int, now: float) -> bool:
        """Whether idle chain c was unheard of for `expiry_s`."""
        row = self.chains[c]
        return not self.busy(c) and bool(now - max(row[ch.LAST], row[ch.QUEUED]) > self.expiry_s)

    def live(self, now: float) -> NDArray[np.int64]:
        """Rows of chains that are not known or presumed to have ended, for AFS."""
        self.heard.leave_silent(self.chains, now, self.expiry_s)
        return np.sort(self.heard.living())

    # ------------------------------------------------------------------ ends
    def _patience(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """`chains.patience` of many rows, s."""
        told = announces.py_func(self.tables, W, self.chains[rows, ch.TYPE].astype(np.int64))
        return np.where(told, PATIENCE, 1.0) * self.expiry_s

    def _expire(self, c: int) -> int:
        """Presume that chain c ended. 1 if it did not count as ended before."""
        before = self.chains[c, ch.ENDED]
        ch.expire(self.chains, self.tables, W, c)
        if self.chains[c, ch.ENDED] > 0:
            self.heard.ended(c)
        if self.chains[c, ch.ENDED] == before:
            return 0
        self._completed(c, True)
        return 1

    def _lanes(self, c: int) -> list[int]:
        """Rows of the other lanes of chain c's agent."""
        key = self._key[c]
        return [] if key is None else [lane for lane in self._chains_of(key[0], key[1]) if lane != c]

    def _said_over(self, c: int) -> int:
        """The arrival number of the request that was said to be the last of chain c's agent, 0 = none was."""
        key = self._key[c]
        return 0 if key is None else self._sessions[key[0]].over.get(key[1], 0)

    def _over(self, c: int) -> bool:
        """Its client says that chain c has ended. False if it knew, or if a request of the chain is under way."""
        row = self.chains[c]
        if self.busy(c) or row[ch.ENDED] == 1:
            return False
        if row[ch.STEPS] == 0:
            self._left(c)
            return True
        self.heard.ended(c)
        if row[ch.ENDED] == 0:
            self._completed(c, False)
        ch.announced_end(self.chains, self.tables, W, c)
        return True

    def _left(self, c: int) -> None:
        """The requests of idle chain c went away, and nobody is known to wait for it. Without a finished one it was no
        step of the agent, so nothing is learned of its end."""
        if self.chains[c, ch.STEPS] > 0:
            self._expire(c)
            return
        self.heard.ended(c)
        self.chains[c, ch.ENDED] = 1
        ch.leave(self.chains, c)

    def _completed(self, c: int, presumed: bool) -> None:
        key, row = self._key[c], self.chains[c]
        if key is not None and key[1:] == (0, 0):
            self.completion.ended(max(float(row[ch.LAST] - row[ch.SESSION_S]), 0.0), presumed)

    def _chains_of(self, session: str, agent: int) -> list[int]:
        """Rows of the session's chains: of one agent, or with -1 of all."""
        s = self._sessions.get(session)
        rows = s.chains if s is not None else []
        return [c for c in rows if agent < 0 or ((key := self._key[c]) is not None and key[1] == agent)]

    # ------------------------------------------------------------------ rows
    def chain_for(self, hints: Hints, now: float) -> int:
        """Row of the chain that a request with these hints belongs to, made if it is new."""
        session = hints.session
        if session is None:
            self._numbered += 1
            session = f"\0{self._numbered}"  # no client can send this name
        idle = -1
        for lane in range(1 << 20):
            c = self._row.get((session, hints.agent, lane))
            if c is None:
                return idle if idle >= 0 else self._new((session, hints.agent, lane), hints, now)
            if self.chains[c, ch.WAITING] == 0 and self.chains[c, ch.RUNNING] == 0:
                if self.chains[c, ch.ENDED] == 0:
                    return c
                idle = c if idle < 0 else idle  # taken if all have ended: a retry took its place
        raise RuntimeError("a million requests of one agent at once")

    def _new(self, key: Key, hints: Hints, now: float) -> int:
        if not self._free:
            self._grow()
        c = self._free.pop()
        s = self._sessions.get(key[0])
        if s is None:
            self._numbered += 1
            s = self._sessions[key[0]] = _Session(self._numbered, now, now + hints.deadline_s)
        s.chains.append(c)
        self.chains[c] = ch.make_chains(1)[0]
        tenant = self.tenants.code(hints.tenant)
        agent_type = self.types.code(hints.agent_type, tenant, self.quotas)
        if agent_type >= self.tables.types.shape[1]:
            self.tables = _grown(self.tables, types=2 * agent_type)
        ch.describe(self.chains, c, s.chains[0], s.number, s.first_s, tenant, agent_type, s.deadline_s)
        self._key[c], self._row[key] = key, c
        return c

    def _last_or_later(self, c: int) -> bool:
        """Whether chain c may be forgotten: a session's first stays as long as any other, since rows refer to it."""
        key = self._key[c]
        chains = self._sessions[key[0]].chains if key is not None else [c]
        return chains[0] != c or len(chains) == 1

    def _called(self, c: int, tool: int) -> None:
        """What the chain's last answer called is known only now."""
        row, t = self.chains[c], self.tables
        if row[ch.ENDED] > 0:  # its end was counted under the tool believed then; its return will be under this one
            calls = t.calls[W, int(row[ch.TYPE])]
            for at, n in ((int(row[ch.TOOL]) + 1, -1), (tool + 1, 1)):
                t.ends[W, at] += n
                calls[at, -2:] += n
        row[ch.TOOL] = tool

    def _named_late(self, c: int, tool: int) -> None:
        """What the chain's last answer called is known only from the request that follows. Its return has been counted
        under what was known while it was idle, as its end would have been: rates and latencies are always those of
        chains of which as much was known. (Counted under its name, the returns of chains that nobody could tell apart
        would leave their row, and their ends stay in it: whoever is idle would look as if it had ended.) Only which
        tool follows which is corrected."""
        row = self.chains[c]
        if row[ch.STEPS] > 1:
            calls = self.tables.calls[W, int(row[ch.TYPE]), int(row[ch.BEFORE]) + 1]
            calls[int(row[ch.TOOL]) + 1] -= 1
            calls[tool + 1] += 1
        row[ch.TOOL] = tool

    def _drop(self, c: int) -> None:
        key = self._key[c]
        assert key is not None
        self._key[c] = None
        del self._row[key]
        s = self._sessions[key[0]]
        ch.leave(self.chains, c)
        self.heard.forgotten(c)
        s.chains.remove(c)
        if not s.chains:
            del self._sessions[key[0]]
        self.chains[c] = ch.make_chains(1)[0]
        self._free.append(c)

    def _grow(self) -> None:
        n, more = len(self.chains), more_rows(len(self.chains))
        self.chains = np.concatenate([self.chains, ch.make_chains(more)])
        self._key += [None] * more
        self._free = list(range(n + more - 1, n - 1, -1))

    def _tool(self, name: str | None, c: int) -> int:
        code = self.tools.code(name, int(self.chains[c, ch.TENANT]), self.quotas)
        if code >= self.tables.hist.shape[1] - 2:
            self.tables = _grown(self.tables, tools=2 * code)
        return code


def more_rows(n: int) -> int:
    """By how many rows a table of n grows: twice as many would leave up to half of them empty."""
    return max(n // 4, 64)


def _rows_of(holding: Iterable[int]) -> NDArray[np.int64]:
    return holding if isinstance(holding, np.ndarray) else np.fromiter(holding, np.int64)


def _grown(t: Tables, tools: int = 0, types: int = 0) -> Tables:
    """The same tables with room for at least `tools` tools and `types` agent types; the pooled row stays last."""
    n = t.hist.shape[1] - 2
    bigger = make_tables(1, max(tools, n), max(types, t.types.shape[1]))
    for name in ("hist", "above", "seconds_above", "ring", "returns", "ends", "obs", "p95"):
        old, new = getattr(t, name), getattr(bigger, name)
        new[:, : n + 1], new[:, -1] = old[:, : n + 1], old[:, -1]
    a = t.types.shape[1]
    bigger.types[:, :a] = t.types
    bigger.calls[:, :a, : n + 1, : n + 1] = t.calls[..., :-2]
    bigger.calls[:, :a, : n + 1, -2:] = t.calls[..., -2:]
    return bigger
