"""Spans of a trace (calls, tools, agents, others, nested in each other) to flat rows.

- A call belongs to the nearest span above it that is an agent or a tool; to the main agent if that is an agent with no
  agent or tool above it, or if there is none. An agent inside a tool is the tool's: the tool started it.
- A tool belongs to its agent's latest call that had ended when the tool began.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from saga_rl.aeg.importers.building.flat import SLACK_S, Row, Tool
from saga_rl.aeg.importers.format import Reading


@dataclass(slots=True)
class Span:
    """One span. kind: `call`, `tool`, `agent` or `other`; `row` of a call, whose agent is found here."""

    name: str
    kind: str
    span: str
    parent: str
    trace: str
    start_s: float
    end_s: float | None
    session: str = ""
    row: Row | None = None


def rows_of(spans: Iterable[Span], reading: Reading) -> Iterator[Row]:
    """Rows of all calls, with their agents, callers and tools; a trace's spans are of one session, whoever names it."""
    kept = list(spans)
    by_id = {(s.trace, s.span): s for s in kept}
    session_of: dict[str, str] = {}
    for s in kept:
        if s.session:
            session_of.setdefault(s.trace, s.session)
    by_agent: dict[tuple[str, str], list[Row]] = {}
    for n, s in enumerate(kept):
        if s.row is not None:
            owner = _owner(s, by_id)
            s.row.session = s.session or session_of.get(s.trace, s.trace)
            s.row.agent = _agent(owner, by_id)
            above = _owner(owner, by_id) if owner is not None else None
            s.row.caller = _agent(above, by_id) if s.row.agent != "main" else ""
            s.row.step = n
            by_agent.setdefault((s.row.session, s.row.agent), []).append(s.row)
    agents = {name for _, name in by_agent}
    for s in kept:
        if s.kind != "tool":
            continue
        session = s.session or session_of.get(s.trace, s.trace)
        mine = by_agent.get((session, _agent(_owner(s, by_id), by_id)), [])
        before = [r for r in mine if (r.sent_s if r.end_s is None else r.end_s or 0.0) <= s.start_s + SLACK_S]  # type: ignore[operator]
        if not before:
            reading.drop("tools_before_any_call")
            continue
        row = max(before, key=lambda r: r.end_s or r.sent_s or 0.0)
        row.tools = [*row.tools, Tool(s.name, None if s.end_s is None else s.end_s - s.start_s, s.start_s,
                                      s.span if s.span in agents else None)]
    yield from (s.row for s in kept if s.row is not None)


def _owner(span: Span | None, by_id: dict[tuple[str, str], Span]) -> Span | None:
    """The nearest agent or tool above."""
    seen: set[str] = set()
    while span is not None and span.span not in seen:
        seen.add(span.span)
        span = by_id.get((span.trace, span.parent))
        if span is not None and span.kind in ("agent", "tool"):
            return span
    return None


def _agent(owner: Span | None, by_id: dict[tuple[str, str], Span]) -> str:
    """Name of the agent whose calls lie in `owner`."""
    if owner is None:
        return "main"
    above = _owner(owner, by_id)
    if owner.kind == "agent" and above is None:
        return "main"
    return above.span if owner.kind == "agent" and above is not None and above.kind == "tool" else owner.span
