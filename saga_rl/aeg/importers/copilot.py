"""Importer `copilot-2026`: GitHub Copilot's coding agents (2026), a session a line: `turns[]` of `llm_calls[]` and
`tool_batches[]`.

- A call is sent at its `timestamp` and lasts `duration_ms`. Calls that overlap are taken for those of sub-agents.
- A batch of tools belongs to the call that its `request_id` names, else to the latest call that was sent before it.
- Calls without completion tokens were cancelled: left out and counted. No text, no block ids: prefixes from lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, Tool, sessions_of
from saga_rl.aeg.importers.format import LIST, TEXT, Format, Reading
from saga_rl.aeg.importers.reading.fields import calendar, count, objects, seconds, take
from saga_rl.aeg.importers.reading.left_out import Place


def _read(reading: Reading) -> Iterator[SessionSpec]:
    yield from sessions_of(reading, reading.each(lambda session, where, n: _session(session, where, reading)),
                           split_overlaps=True)


def _session(session: dict[str, Any], where: Place, reading: Reading) -> list[Row]:
    name = take(session, "session_id", str, where)
    rows: list[Row] = []
    by_message: dict[str, Row] = {}
    cancelled = 0
    for turn in objects(session, "turns", where, need=True):
        mine: list[Row] = []
        for call in objects(turn, "llm_calls", where):
            tokens = take(call, "tokens", dict, where)
            prompt, output = count(tokens, "prompt", where), count(tokens, "completion", where)
            if prompt == 0 or output == 0:
                cancelled += 1
                continue
            sent = calendar(call, "timestamp", where)
            long = seconds(call, "duration_ms", where, 1000.0, None)
            row = Row(name, "main", len(rows) + len(mine), prompt, output, count(tokens, "cached", where, -1), [], sent,
                      None, None if long is None else sent + long, tenant=reading.tenant, agent_type="copilot",
                      model=str(call.get("model") or ""))
            by_message[str(call.get("message_id"))] = row
            mine.append(row)
        for batch in objects(turn, "tool_batches", where):
            _tools(batch, by_message, mine or rows, where, reading)
        rows += mine
    reading.dropped["calls_cancelled"] += cancelled
    return rows


def _tools(batch: dict[str, Any], by_message: dict[str, Row], rows: list[Row], where: Place, reading: Reading) -> None:
    at = calendar(batch, "timestamp", where, None)
    row = by_message.get(str(batch.get("request_id")))
    if row is None:
        before = [r for r in rows if at is None or (r.sent_s or 0.0) <= at]
        if not before:
            reading.drop("tool_batches_before_any_call")
            return
        row = max(before, key=lambda r: r.sent_s or 0.0)
        reading.assume("tool_batches_given_to_a_call_by_time")
    whole = seconds(batch, "duration_ms", where, 1000.0, None)
    calls = [Tool(take(call, "name", str, where), seconds(call, "duration_ms", where, 1000.0, whole), at)
             for call in objects(batch, "function_calls", where)]
    row.tools = [*row.tools, *calls]


FORMAT = Format("copilot-2026", "GitHub Copilot's coding agents (2026), a session a line",
                ({"session_id": TEXT, "turns": LIST, "turns[].llm_calls": LIST},), _read, ("tenant",))
