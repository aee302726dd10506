"""Importer `litellm`: LiteLLM's spend logs (`/spend/logs`, or the table LiteLLM_SpendLogs as JSON or CSV), a call each.

- `session_id` (or `metadata.session_id`, else `litellm_trace_id`) names the session; without one a call is a session.
- `startTime`, `completionStartTime`, `endTime` are recorded. Calls of one session that overlap are taken for those of
  sub-agents. Answers from LiteLLM's own cache, failures and calls without tokens never reached a model: left out.
- The tenant is `team_id`, else `end_user`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, sessions_of
from saga_rl.aeg.importers.format import ANY, Format, Reading
from saga_rl.aeg.importers.reading.fields import calendar, count, inner
from saga_rl.aeg.importers.reading.left_out import Place


def _read(reading: Reading) -> Iterator[SessionSpec]:
    yield from sessions_of(reading, reading.each(lambda record, where, n: _row(record, where, n, reading)),
                           split_overlaps=True)


def _row(record: dict[str, Any], where: Place, n: int, reading: Reading) -> Iterator[Row]:
    if str(record.get("cache_hit")).lower() == "true":
        reading.drop("calls_answered_from_litellms_own_cache")
        return
    prompt, output = count(record, "prompt_tokens", where), count(record, "completion_tokens", where)
    if prompt == 0 or output == 0:
        reading.drop("calls_without_tokens")
        return
    known = _metadata(record)
    session = record.get("session_id") or known.get("session_id") or record.get("litellm_trace_id")
    usage = inner(known, "usage_object")
    details = inner(usage, "prompt_tokens_details")
    cached = count(details, "cached_tokens", where, count(usage, "cache_read_input_tokens", where, -1))
    name = str(session or record.get("request_id") or f"call-{n}")
    yield Row(name, "main", n, prompt, output, min(cached, prompt), (),
               calendar(record, "startTime", where), calendar(record, "completionStartTime", where, None),
               calendar(record, "endTime", where, None),
               tenant=str(record.get("team_id") or record.get("end_user") or "default"), agent_type="agent",
               model=str(record.get("model") or ""))


def _metadata(record: dict[str, Any]) -> dict[str, Any]:
    """The metadata, which tables hold as JSON text."""
    value = record.get("metadata")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


FORMAT = Format("litellm", "LiteLLM's spend logs",
                ({"request_id": ANY, "startTime": ANY, "endTime": ANY, "prompt_tokens": ANY,
                  "completion_tokens": ANY},), _read)
