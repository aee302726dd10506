"""Importer `tracelab`: TraceLab's normalised rounds of Claude Code and Codex, one call a line.

- A round is sent at the last `user_message` or `tool_result` among its first timing events, and ends with its last
  event. `prefix_tokens` were found in cache.
- Tools are named in `tools`; those without a latency of their own share the gap to the next round.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, Tool, sessions_of
from saga_rl.aeg.importers.format import INTEGER, NUMBER, TEXT, Format, Reading
from saga_rl.aeg.importers.reading.fields import calendar, count, objects, seconds, take
from saga_rl.aeg.importers.reading.left_out import Place

INPUTS = ("user_message", "tool_result", "user")
LATENCIES = ("wall_latency_ms", "tool_wall_latency_ms", "latency_ms", "duration_ms")


def _read(reading: Reading) -> Iterator[SessionSpec]:
    yield from sessions_of(reading, reading.each(lambda record, where, n: _row(record, where, reading)))


def _row(record: dict[str, Any], where: Place, reading: Reading) -> Iterator[Row]:
    prompt, output = count(record, "input_tokens_total", where), count(record, "output_tokens", where)
    if prompt == 0 or output == 0:
        reading.drop("rounds_without_tokens")
        return
    events = sorted((calendar(e, "timestamp", where), str(e.get("event_type"))) for e in
                    objects(record, "timing_events", where) if e.get("timestamp") is not None)
    sent = events[0][0] if events else None
    for at, kind in events:
        if kind not in INPUTS:
            break
        sent = at
    tools = [Tool(str(t.get("name") or t.get("tool_name") or "tool"),
                  next((seconds(t, k, where, 1000.0) for k in LATENCIES if t.get(k) is not None), None))
             if isinstance(t, dict) else Tool(str(t)) for t in take(record, "tools", list, where, [])]
    yield Row(take(record, "session_id", str, where), "main", count(record, "round_index", where), prompt, output,
               min(count(record, "prefix_tokens", where, -1), prompt), tools or (), sent, None,
               events[-1][0] if events else None, tenant=str(record.get("user_id") or "default"),
               agent_type=str(record.get("provider") or "tracelab"), model=str(record.get("model") or ""))


FORMAT = Format("tracelab", "TraceLab's rounds of Claude Code and Codex sessions",
                ({"session_id": TEXT, "round_index": INTEGER, "input_tokens_total": NUMBER,
                  "output_tokens": NUMBER},), _read)
