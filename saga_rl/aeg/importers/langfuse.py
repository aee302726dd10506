"""Importer `langfuse`: Langfuse observations (an export, or the API's `data` list), a call, tool or agent each.

- Generations are calls, tools are tools, agents nest (`building/spans.py`); the session is `sessionId`, else the trace.
- The prompt is the sum of all usage that is named input, cached input included; the output all that is named output.
- Calls of one agent that overlap are taken for those of sub-agents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, sessions_of
from saga_rl.aeg.importers.building.spans import Span, rows_of
from saga_rl.aeg.importers.format import ANY, LIST, TEXT, Format, Reading, one_of
from saga_rl.aeg.importers.reading.fields import calendar, count, inner, objects, take
from saga_rl.aeg.importers.reading.left_out import Place

KINDS = {"GENERATION": "call", "TOOL": "tool", "AGENT": "agent"}


def _read(reading: Reading) -> Iterator[SessionSpec]:
    yield from sessions_of(reading, rows_of(_spans(reading), reading), split_overlaps=True)


def _spans(reading: Reading) -> Iterator[Span]:
    for where, record in reading.records():
        for raw in objects(record, "data", where) or objects(record, "observations", where) or [record]:
            span = None
            with reading.left.guard(where):
                span = _span(raw, where, reading)
            if span:
                yield span


def _span(raw: dict[str, Any], where: Place, reading: Reading) -> Span:
    kind = KINDS.get(str(raw.get("type")).upper(), "other")
    start, end = calendar(raw, "startTime", where), calendar(raw, "endTime", where, None)
    parent = str(raw.get("parentObservationId") or "")
    span = Span(str(raw.get("name") or "tool"), kind, take(raw, "id", str, where), parent,
                take(raw, "traceId", str, where), start, end, str(raw.get("sessionId") or ""))
    if kind == "call":
        span.row = _row(raw, start, end, where, reading)
        span.kind = "call" if span.row else "other"
    return span


def _row(raw: dict[str, Any], start: float, end: float | None, where: Place, reading: Reading) -> Row | None:
    usage = inner(raw, "usageDetails") or inner(raw, "usage")
    used = {k.lower(): count(usage, k, where) for k, v in usage.items() if isinstance(v, int | float)}
    prompt = sum(v for k, v in used.items() if "input" in k)
    output = sum(v for k, v in used.items() if "output" in k)
    read = [v for k, v in used.items() if "input" in k and "cache" in k and "creat" not in k and "write" not in k]
    if prompt <= 0 or output <= 0:
        reading.drop("calls_without_tokens")
        return None
    return Row("", "main", 0, prompt, output, sum(read) if read else -1, (), start,
               calendar(raw, "completionStartTime", where, None), end, agent_type="agent",
               tenant=str(raw.get("userId") or raw.get("projectId") or "default"), model=str(raw.get("model") or ""))


_TYPE = one_of("GENERATION", "SPAN", "EVENT", "TOOL", "AGENT", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING",
               "GUARDRAIL")
_ONE = {"id": TEXT, "traceId": TEXT, "type": _TYPE, "startTime": ANY}
FORMAT = Format("langfuse", "Langfuse observations",
                (_ONE, {"data": LIST, **{f"data[].{k}": v for k, v in _ONE.items()}},
                 {"observations": LIST, **{f"observations[].{k}": v for k, v in _ONE.items()}}), _read)
