"""Flat rows, one LLM call each, to sessions: the common part of most importers.

- Gaps: `gap_s`, else next request - end, else 0 (counted; a negative one, of calls that overlap, is 0 too). The
  tools' own seconds are tool time, the rest think time.
- Sub-agents: a tool's `spawned` names the agent that it started; a row's `caller` names the agent that started its own
  agent, at that agent's latest call before it; an agent that neither names is attached to the main agent's latest call
  before it (counted). Joins as in `graph`.
- Prefix without block ids: an agent's first call begins with the text that all first calls of its (tenant, agent type,
  model) share, as far as it was found in cache (where nothing was, as far as the least of the others); a later call
  continues its agent's context; one shorter than the previous prompt was compacted, and shares the first text only.
- Prefix with block ids (equal ids mean equal content up to that block's end, in the whole file): the common whole
  blocks with the agent's previous call; the ids after it are kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from saga_rl.aeg.build import SessionSpec, StepSpec
from saga_rl.aeg.importers.building.graph import (
    Call,
    Placed,
    Run,
    assemble,
    estimated_service_s,
    longest_common_prefix,
)
from saga_rl.aeg.importers.format import Reading

SLACK_S = 0.5


@dataclass(slots=True)
class Tool:
    """One tool call; `seconds` and `begin_s` (epoch) where known. awaited: agents, started before, whose end it was."""

    name: str
    seconds: float | None = None
    begin_s: float | None = None
    spawned: str | None = None
    awaited: Sequence[str] = ()


@dataclass(slots=True)
class Row:
    """One LLM call. Times are epoch seconds, None where unknown."""

    session: str
    agent: str
    step: int
    """Orders an agent's calls where times do not."""
    prompt: int
    output: int
    cached: int = -1
    tools: Sequence[Tool] = ()
    sent_s: float | None = None
    first_token_s: float | None = None
    end_s: float | None = None
    gap_s: float | None = None
    group: str = ""
    tenant: str = "default"
    agent_type: str = ""
    model: str = ""
    deadline_s: float | None = None
    hash_ids: Sequence[int] = ()
    context_ids: Sequence[int] = ()
    """Ids of prompt and output together, where the output's content is known."""
    caller: str = ""
    """Agent that started this row's agent, where it is recorded without a tool call."""
    lengths: str = "recorded"
    """`recorded`, `estimated` or `missing`, of the two the worse."""


@dataclass(slots=True)
class _Text:
    """The text that the first calls of one (tenant, agent type, model) begin with."""

    name: str
    least: int = 0


def sessions_of(reading: Reading, rows: Iterable[Row], *, split_overlaps: bool = False) -> Iterator[SessionSpec]:
    """Sessions of `rows`, at most the reading's limit, in the order in which `rows` first name them; all rows are held.

    split_overlaps: a request that was sent before its agent's last one had ended is another agent's (formats that do
    not record agents); else it is taken to follow it.
    """
    by_session: dict[str, list[Row]] = {}
    for row in rows:
        members = by_session.get(row.session)
        if members is None:
            if reading.limit is not None and len(by_session) >= reading.limit:
                continue
            members = by_session[row.session] = []
        members.append(row)
    yield from Assembler(reading, split_overlaps).sessions(by_session)


class Assembler:
    """Builds sessions from rows; counts in `reading` what had to be assumed."""

    def __init__(self, reading: Reading, split_overlaps: bool = False) -> None:
        self.reading, self.split = reading, split_overlaps
        self.counts = reading.assumed
        self.texts: dict[tuple[str, str, str], _Text] = {}

    def sessions(self, by_session: dict[str, list[Row]]) -> Iterator[SessionSpec]:
        """Sessions one by one; each one's rows are let go of. Arrivals count from the earliest call of all."""
        self._find_texts(by_session)
        zero = min((r.sent_s for rows in by_session.values() for r in rows if r.sent_s is not None), default=0.0)
        for name in list(by_session):
            yield self._session(name, by_session.pop(name), zero)

    def _find_texts(self, by_session: dict[str, list[Row]]) -> None:
        found: dict[tuple[str, str, str], int] = {}
        for members in by_session.values():
            first: dict[str, Row] = {}
            for r in members:
                if r.agent not in first or r.step < first[r.agent].step:
                    first[r.agent] = r
            for r in first.values():
                key, cached = (r.tenant, r.agent_type, r.model), min(r.cached, r.prompt)
                least = found.setdefault(key, 0)
                if cached > 0:
                    found[key] = min(least or cached, cached)
        for key, least in found.items():
            self.texts[key] = _Text("/".join(filter(None, key)), least)

    def _session(self, session_id: str, rows: list[Row], zero: float) -> SessionSpec:
        timed = all(r.sent_s is not None for r in rows)
        self.reading.timed &= timed
        agents: dict[str, list[Row]] = defaultdict(list)
        for r in rows:
            agents[r.agent].append(r)
        for mine in agents.values():
            mine.sort(key=lambda r: r.step)
            if timed:
                mine.sort(key=lambda r: r.sent_s or 0.0)
        main = "main" if "main" in agents else min(agents, key=lambda a: agents[a][0].sent_s or 0.0)
        self.counts["sessions_without_main_agent"] += main != "main"
        if self.split and timed:
            agents = self._lanes(agents)
        names = [main, *(a for a in agents if a != main)]
        origin = min(r.sent_s or 0.0 for r in rows) if timed else 0.0
        runs = [Run(self._calls(agents[a], origin if timed else None)) for a in names]
        self._attach(runs, [agents[a] for a in names])
        by_call = {id(c): r for a, run in zip(names, runs, strict=True)
                   for c, r in zip(run.calls, agents[a], strict=True)}
        arrival = origin - zero if timed else 0.0
        placed = assemble(runs, SLACK_S)
        steps = [self._step(p, placed, by_call, arrival) for p in placed]
        head = agents[main][0]
        deadline = head.deadline_s - zero if head.deadline_s is not None and timed else float("nan")
        return SessionSpec(session_id, arrival, steps, head.group or session_id, head.tenant,
                           head.agent_type or "agent", deadline)

    def _lanes(self, agents: dict[str, list[Row]]) -> dict[str, list[Row]]:
        """Agents whose calls do not overlap: a call goes to its agent's first lane that is free when it is sent."""
        out: dict[str, list[Row]] = {}
        for agent, rows in agents.items():
            free: list[float] = []
            for r in rows:
                sent = r.sent_s or 0.0
                k = next((k for k, end in enumerate(free) if end <= sent + SLACK_S), len(free))
                if k == len(free):
                    free.append(0.0)
                    self.counts["agents_made_of_overlapping_calls"] += k > 0
                free[k] = sent + estimated_service_s(r.output) if r.end_s is None else r.end_s
                name = agent if k == 0 else f"{agent}~{k}"
                if k and not r.caller:
                    r.caller = agent
                r.agent = name
                out.setdefault(name, []).append(r)
        return out

    def _calls(self, rows: list[Row], origin: float | None) -> list[Call]:
        """Calls of one agent; without recorded times they follow each other by estimated service and gap."""
        calls: list[Call] = []
        clock = 0.0
        for k, r in enumerate(rows):
            start = clock if origin is None or r.sent_s is None else r.sent_s - origin
            known = r.end_s is not None and origin is not None
            end = max(start, r.end_s - origin) if known else start + estimated_service_s(r.output)  # type: ignore[operator]
            call = Call(start, end, r.prompt, r.output, min(r.cached, r.prompt), end_known=known,
                        start_known=origin is not None, hash_ids=r.hash_ids)
            if known and r.first_token_s is not None:
                call.first_token_s = min(max(r.first_token_s - origin, start), end)  # type: ignore[operator]
            self.reading.quality.call(lengths=r.lengths, time=origin is not None, end=known)
            gap = self._gap(r, rows[k + 1] if k + 1 < len(rows) else None, origin, end, known)
            self._split_gap(call, r, gap)
            calls.append(call)
            clock = end + gap
        return calls

    def _gap(self, row: Row, then: Row | None, origin: float | None, end: float, end_known: bool) -> float:
        """Seconds to the agent's next call; counted as recorded, estimated or missing where there is one."""
        gap, kind = row.gap_s, "recorded"
        tools = [t.seconds for t in row.tools]
        if gap is None and then is not None and then.sent_s is not None and origin is not None:
            gap, kind = then.sent_s - origin - end, "recorded" if end_known else "estimated"
            if end_known:
                gap = max(0.0, gap)
        elif gap is None and then is not None and tools and None not in tools:
            gap = max(t for t in tools if t is not None)
        elif gap is None and then is not None:
            self.counts["gaps_unknown_taken_as_0"] += 1
            kind = "missing"
        negative = gap is not None and gap < 0
        if negative and kind == "estimated":
            self.counts["gaps_shorter_than_an_estimated_call_taken_as_0"] += 1
            kind = "missing"
        elif negative:
            self.counts["gaps_negative_taken_as_0"] += 1
        if then is not None:
            self.reading.quality.add("tools", kind)
        return max(gap or 0.0, 0.0)

    def _split_gap(self, call: Call, row: Row, gap: float) -> None:
        if not row.tools:
            call.think_s = gap
            return
        ends = [t.seconds + max(0.0, t.begin_s - row.end_s if t.begin_s is not None and row.end_s is not None else 0.0)
                for t in row.tools if t.seconds is not None]
        busy = max(ends) if len(ends) == len(row.tools) else gap
        slowest = max(row.tools, key=lambda t: t.seconds or 0.0)
        call.tool, call.tool_s = slowest.name, min(gap, busy)
        call.think_s = gap - call.tool_s

    def _attach(self, runs: list[Run], rows: list[list[Row]]) -> None:
        spawner = {t.spawned: (i, k) for i, mine in enumerate(rows) for k, r in enumerate(mine)
                   for t in r.tools if t.spawned}
        number = {mine[0].agent: i for i, mine in enumerate(rows)}
        for i in range(1, len(runs)):
            head = rows[i][0]
            if head.agent not in spawner and head.caller in number:
                spawner[head.agent] = number[head.caller], self._latest(runs[number[head.caller]], runs[i])
        for i in range(1, len(runs)):
            at = spawner.get(rows[i][0].agent)
            if at is None or self._leads_to(at[0], i, rows, spawner):
                self.counts["subagents_attached_by_time"] += 1
                at = (0, self._latest(runs[0], runs[i]))
                spawner[rows[i][0].agent] = at
            runs[i].spawn = at
        for i, mine in enumerate(rows):
            for k, name in ((k, a) for k, r in enumerate(mine) for t in r.tools for a in t.awaited):
                child = runs[number[name]] if name in number else None
                if child is not None and child.spawn is not None and child.spawn[0] == i and child.waited is None:
                    child.waited = k

    @staticmethod
    def _latest(caller: Run, child: Run) -> int:
        """The caller's latest call that began before the child's first."""
        start = child.calls[0].start_s
        return max((k for k, c in enumerate(caller.calls) if c.start_s <= start), default=0)

    @staticmethod
    def _leads_to(i: int, goal: int, rows: list[list[Row]], spawner: dict[str, tuple[int, int]]) -> bool:
        """Whether run `goal` is run `i` or one of its spawners: then `i` cannot have spawned it."""
        for _ in range(len(rows)):
            if i == goal:
                return True
            if i == 0:
                return False
            i = spawner.get(rows[i][0].agent, (0, 0))[0]
        return True

    def _step(self, p: Placed, placed: list[Placed], by_call: dict[int, Row], arrival: float) -> StepSpec:
        row = by_call[id(p.call)]
        before = placed[p.previous].call if p.previous >= 0 else None
        block = self.reading.block
        if len(row.hash_ids) and block:
            shared = 0
            if before is not None:
                known = by_call[id(before)].context_ids or before.hash_ids
                limit = before.prompt_tokens + (before.output_tokens if by_call[id(before)].context_ids else 0)
                whole = min(limit, row.prompt) // block
                shared = longest_common_prefix(np.asarray(row.hash_ids[:whole]), np.asarray(known))
            return p.spec(arrival, prefix_step=p.previous if shared else -1, prefix_tokens=shared * block,
                          hashes=row.hash_ids[shared:])
        if before is not None and row.prompt >= before.prompt_tokens:
            context = before.prompt_tokens + before.output_tokens
            return p.spec(arrival, prefix_step=p.previous, prefix_tokens=min(context, row.prompt))
        key = row.tenant, row.agent_type, row.model
        text = self.texts.get(key) or _Text("/".join(filter(None, key)))
        self.counts["contexts_compacted"] += before is not None
        tokens = min(row.cached, row.prompt) if row.cached > 0 and before is None else min(text.least, row.prompt)
        return p.spec(arrival, prefix_tokens=tokens, shared_prefix=text.name if tokens else None)
