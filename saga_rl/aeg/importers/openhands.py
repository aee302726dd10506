"""Importer `openhands`: OpenHands' evaluation output (`output.jsonl`), an instance a line, with `history` and
`metrics`.

- Calls are `metrics.token_usages`, or the usages in the events' `tool_call_metadata`, each response once.
- A call ends when the event that it made was written, and was sent its recorded latency earlier; a call that made no
  event (a condenser's) has no time, so its session's times are not used.
- A tool lasts from its action's event to the observation that it caused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, Tool, sessions_of
from saga_rl.aeg.importers.format import ANY, LIST, OBJECT, Format, Reading
from saga_rl.aeg.importers.reading.fields import count, inner, moment, objects, seconds
from saga_rl.aeg.importers.reading.left_out import Place
from saga_rl.errors import UserError


def _read(reading: Reading) -> Iterator[SessionSpec]:
    yield from sessions_of(reading, reading.each(lambda record, where, n: _instance(record, where, reading)))


def _instance(record: dict[str, Any], where: Place, reading: Reading) -> list[Row]:
    events, metrics = objects(record, "history", where, need=True), inner(record, "metrics")
    made: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        response = inner(event, "tool_call_metadata", "model_response").get("id")
        if response and "action" in event:
            made.setdefault(str(response), []).append(event)
    usages = objects(metrics, "token_usages", where) or [
        {"response_id": name, **inner(first, "tool_call_metadata", "model_response", "usage")}
        for name, (first, *_) in made.items()]
    if not usages:
        raise UserError(f"{where}, field 'metrics.token_usages'", "is missing, and no event holds a usage",
                        "import the conversation's text as chats")
    latency = {str(x.get("response_id")): seconds(x, "latency", where, default=None)
               for x in objects(metrics, "response_latencies", where)}
    ended = {str(e.get("cause")): moment(e, "timestamp", where, default=None) for e in events if e.get("observation")}
    rows = []
    for k, usage in enumerate(usages):
        prompt, output = count(usage, "prompt_tokens", where), count(usage, "completion_tokens", where)
        if prompt == 0 or output == 0:
            reading.drop("calls_without_tokens")
            continue
        name = str(usage.get("response_id"))
        actions = made.get(name, [])
        end = moment(actions[0], "timestamp", where, default=None) if actions else None
        long = latency.get(name)
        tools = [_tool(a, ended, where) for a in actions]
        rows.append(Row(str(record.get("instance_id")), "main", k, prompt, output,
                        min(count(usage, "cache_read_tokens", where, -1), prompt), tools or (),
                        None if end is None else end - (long or 0.0), None, end if long is not None else None,
                        agent_type="openhands", model=str(usage.get("model") or "")))
    return rows


def _tool(action: dict[str, Any], ended: dict[str, float | None], where: Place) -> Tool:
    begin, end = moment(action, "timestamp", where, default=None), ended.get(str(action.get("id")))
    name = inner(action, "tool_call_metadata").get("function_name") or action.get("action") or "tool"
    return Tool(str(name), None if begin is None or end is None else max(0.0, end - begin), begin)


FORMAT = Format("openhands", "OpenHands' evaluation output",
                ({"instance_id": ANY, "history": LIST, "metrics": OBJECT},), _read)
