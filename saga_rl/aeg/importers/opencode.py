"""Importer `opencode`: what `opencode export` prints, or its storage folder (session, message and part files).

- Each assistant message is a call, from `time.created` to `time.completed` (ms). Its prompt is `input` and what was
  read from and written to cache, its output `output` and `reasoning`.
- Tools are the message's parts of type `tool`, with recorded times. A session with `parentID` is a sub-agent; the tool
  whose state names it started it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, Tool, sessions_of
from saga_rl.aeg.importers.building.roots import root_of
from saga_rl.aeg.importers.format import ANY, LIST, OBJECT, TEXT, Format, Reading, one_of
from saga_rl.aeg.importers.reading.fields import count, inner, objects, seconds, take
from saga_rl.aeg.importers.reading.left_out import Place


def _read(reading: Reading) -> Iterator[SessionSpec]:
    rows: dict[str, Row] = {}
    tools: dict[str, list[Tool]] = {}
    parents: dict[str, str] = {}
    for where, record in reading.records():
        with reading.left.guard(where):
            if "messages" in record:
                _about(inner(record, "info"), parents)
                for message in objects(record, "messages", where):
                    info = take(message, "info", dict, where)
                    _message(info, where, rows, reading)
                    for part in objects(message, "parts", where):
                        _part(part, str(info.get("id")), where, tools)
            elif "role" in record:
                _message(record, where, rows, reading)
            elif "messageID" in record:
                _part(record, str(record["messageID"]), where, tools)
            elif "id" in record:
                _about(record, parents)
            else:
                reading.drop("records_of_other_kinds")
    yield from sessions_of(reading, _linked(rows, tools, parents))


def _about(info: dict[str, Any], parents: dict[str, str]) -> None:
    if isinstance(info.get("parentID"), str) and isinstance(info.get("id"), str):
        parents[info["id"]] = info["parentID"]


def _message(info: dict[str, Any], where: Place, rows: dict[str, Row], reading: Reading) -> None:
    if info.get("role") != "assistant":
        return
    tokens, time = take(info, "tokens", dict, where), take(info, "time", dict, where)
    cache = inner(tokens, "cache")
    read, written = count(cache, "read", where, 0), count(cache, "write", where, 0)
    prompt = count(tokens, "input", where) + read + written
    output = count(tokens, "output", where) + count(tokens, "reasoning", where, 0)
    if prompt == 0 or output == 0:
        reading.drop("calls_without_tokens")
        return
    sent, end = seconds(time, "created", where, 1000.0), seconds(time, "completed", where, 1000.0, None)
    rows[take(info, "id", str, where)] = Row(
        take(info, "sessionID", str, where), "main", len(rows), prompt, output, read, (), sent, None,
        None if end is None else max(sent, end), tenant=reading.tenant, agent_type="opencode",
        model=str(info.get("modelID") or ""))


def _part(part: dict[str, Any], message: str, where: Place, tools: dict[str, list[Tool]]) -> None:
    if part.get("type") != "tool":
        return
    state = inner(part, "state")
    time = inner(state, "time")
    begin, end = seconds(time, "start", where, 1000.0, None), seconds(time, "end", where, 1000.0, None)
    known = inner(state, "metadata")
    spawned = known.get("sessionId") or known.get("sessionID")
    tools.setdefault(message, []).append(Tool(
        str(part.get("tool") or "tool"), None if begin is None or end is None else max(0.0, end - begin), begin,
        spawned if isinstance(spawned, str) else None))


def _linked(rows: dict[str, Row], tools: dict[str, list[Tool]], parents: dict[str, str]) -> Iterator[Row]:
    known = {r.session for r in rows.values()}
    inside = {child: above for child, above in parents.items() if above in known}
    for message, row in rows.items():
        own = row.session
        row.session = root_of(own, inside)
        row.agent = "main" if own == row.session else own
        above = inside.get(own, "")
        row.caller = "main" if above == row.session else above
        row.tools = tools.get(message, ())
        yield row


FORMAT = Format("opencode", "OpenCode's exports or its storage folder",
                ({"info": OBJECT, "messages": LIST, "messages[].info": OBJECT},
                 {"sessionID": TEXT, "role": one_of("assistant", "user"), "time": OBJECT, "id": TEXT},
                 {"sessionID": TEXT, "messageID": TEXT, "type": TEXT, "id": TEXT},
                 {"id": TEXT, "projectID": TEXT, "directory": ANY, "time": OBJECT}), _read, ("tenant",))
