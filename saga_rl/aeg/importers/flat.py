"""Flat rows, one LLM call each, to sessions: the common part of the importers `jsonl` and `claude-code`.

- Gaps: `gap_s`, else next request - end, else 0 (counted; a negative one, of calls that overlap, is 0 too). The
  tools' own seconds are tool time, the rest think time.
- Sub-agents: a tool's `spawned` names the agent that it started; an agent that no tool names is attached to the main
  agent's latest call before it (counted). Joins as in `graph`.
- Prefix without block ids: an agent's first call begins with the text that all first calls of its (tenant, agent type,
  model) share, as far as it was found in cache (where nothing was, as far as the least of the others); a later call
  continues its agent's context; one shorter than the previous prompt was compacted, and shares the first text only.
- Prefix with block ids (equal ids mean equal content up to that block's end, in the whole file): the common whole
  blocks with the agent's previous call; the ids after it are kept.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.importers.graph import (
    Call,
    Placed,
    Run,
    assemble,
    estimated_service_s,
    longest_common_prefix,
    move_session,
    poisson_arrivals,
)
from saga_rl.aeg.trace import Trace, TraceMeta

SLACK_S = 0.5


@dataclass
class Tool:
    """One tool call; `seconds` and `begin_s` (epoch) where known."""

    name: str
    seconds: float | None = None
    begin_s: float | None = None
    spawned: str | None = None


@dataclass
class Row:
    """One LLM call. Times are epoch seconds, None where unknown."""

    session: str
    agent: str
    step: int
    prompt: int
    output: int
    cached: int = -1
    tools: list[Tool] = field(default_factory=list)
    sent_s: float | None = None
    first_token_s: float | None = None
    end_s: float | None = None
    gap_s: float | None = None
    group: str = ""
    tenant: str = "default"
    agent_type: str = ""
    model: str = ""
    deadline_s: float | None = None
    hash_ids: list[int] = field(default_factory=list)


@dataclass
class _Text:
    """The text that the first calls of one (tenant, agent type, model) begin with."""

    name: str
    least: int = 0


class Assembler:
    """Builds one trace; `counts` says what had to be assumed."""

    def __init__(self, hash_block_tokens: int) -> None:
        self.block = hash_block_tokens
        self.counts: dict[str, int] = defaultdict(int)
        self.texts: dict[tuple[str, str, str], _Text] = {}

    def trace(self, rows: list[Row], meta: TraceMeta, *, rate_per_min: float | None, seed: int) -> Trace:
        """Sessions in order of their first call; at recorded times if all are known and no rate is asked for."""
        by_session: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_session[row.session].append(row)
        self._find_texts(by_session)
        timed = all(r.sent_s is not None for r in rows)
        zero = min((r.sent_s for r in rows if r.sent_s is not None), default=0.0)
        sessions = [self._session(s, members, zero if timed else None) for s, members in by_session.items()]
        if not timed and rate_per_min is None:
            rate_per_min = 8.0
        if rate_per_min is not None:
            sessions.sort(key=lambda s: s.arrival_s)
            for session, arrival in zip(sessions, poisson_arrivals(len(sessions), rate_per_min, seed), strict=True):
                move_session(session, float(arrival))
        layout = "recorded" if rate_per_min is None else f"Poisson, {rate_per_min:g} sessions/min"
        meta.notes.update(arrivals=layout, mended={k: self.counts[k] for k in sorted(self.counts) if self.counts[k]})
        return build_trace(meta, sessions)

    def _find_texts(self, by_session: dict[str, list[Row]]) -> None:
        found: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for members in by_session.values():
            first: dict[str, Row] = {}
            for r in members:
                if r.agent not in first or r.step < first[r.agent].step:
                    first[r.agent] = r
            for r in first.values():
                found[r.tenant, r.agent_type, r.model].append(min(r.cached, r.prompt))
        for key, cached in found.items():
            self.texts[key] = _Text("/".join(filter(None, key)), min((c for c in cached if c > 0), default=0))

    def _session(self, session_id: str, rows: list[Row], zero: float | None) -> SessionSpec:
        agents: dict[str, list[Row]] = defaultdict(list)
        for r in rows:
            agents[r.agent].append(r)
        for mine in agents.values():
            mine.sort(key=lambda r: r.step)
            if zero is not None:
                mine.sort(key=lambda r: r.sent_s or 0.0)
        main = "main" if "main" in agents else min(agents, key=lambda a: agents[a][0].sent_s or 0.0)
        self.counts["sessions_without_main_agent"] += main != "main"
        names = [main, *(a for a in agents if a != main)]
        origin = min((r.sent_s or 0.0) for r in rows) if zero is not None else 0.0
        runs = [Run(self._calls(agents[a], origin if zero is not None else None)) for a in names]
        self._attach(runs, [agents[a] for a in names])
        by_call = {id(c): r for a, run in zip(names, runs, strict=True)
                   for c, r in zip(run.calls, agents[a], strict=True)}
        arrival = origin - zero if zero is not None else 0.0
        placed = assemble(runs, SLACK_S)
        steps = [self._step(p, placed, by_call, arrival) for p in placed]
        head = agents[main][0]
        deadline = head.deadline_s - zero if head.deadline_s is not None and zero is not None else float("nan")
        return SessionSpec(session_id, arrival, steps, head.group or session_id, head.tenant,
                           head.agent_type or "agent", deadline)

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
            gap = r.gap_s
            if gap is None and k + 1 < len(rows):
                then = rows[k + 1].sent_s
                if known and then is not None and origin is not None:
                    gap = max(0.0, then - origin - end)
                else:
                    self.counts["gaps_unknown_taken_as_0"] += 1
            self.counts["gaps_negative_taken_as_0"] += gap is not None and gap < 0
            gap = max(gap or 0.0, 0.0)
            self._split_gap(call, r, gap)
            calls.append(call)
            clock = end + gap
        return calls

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
        for i in range(1, len(runs)):
            at = spawner.get(rows[i][0].agent)
            if at is None or self._leads_to(at[0], i, rows, spawner):
                self.counts["subagents_attached_by_time"] += 1
                start = runs[i].calls[0].start_s
                at = (0, max((k for k, c in enumerate(runs[0].calls) if c.start_s <= start), default=0))
            runs[i].spawn = at

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
        if row.hash_ids:
            shared = 0
            if before is not None:
                whole = min(before.prompt_tokens, row.prompt) // self.block
                shared = longest_common_prefix(np.array(row.hash_ids[:whole]), np.array(before.hash_ids))
            return p.spec(arrival, prefix_step=p.previous if shared else -1, prefix_tokens=shared * self.block,
                          hashes=row.hash_ids[shared:])
        if before is not None and row.prompt >= before.prompt_tokens:
            context = before.prompt_tokens + before.output_tokens
            return p.spec(arrival, prefix_step=p.previous, prefix_tokens=min(context, row.prompt))
        text = self.texts[row.tenant, row.agent_type, row.model]
        self.counts["contexts_compacted"] += before is not None
        tokens = min(row.cached, row.prompt) if row.cached > 0 and before is None else min(text.least, row.prompt)
        return p.spec(arrival, prefix_tokens=tokens, shared_prefix=text.name if tokens else None)
