"""Importer `gemini-cli`: Gemini CLI's chat recordings (`~/.gemini/tmp/*/chats/session-*`), a document a session, or
lines of messages under a heading.

- Each message of type `gemini` with token counts is a call: its prompt is `input` (cached tokens included) and `tool`,
  its output `output` and `thoughts`.
- It is sent when the message before it was written or that one's last tool had ended, and ends when it was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, Tool, sessions_of
from saga_rl.aeg.importers.format import ANY, LIST, TEXT, Format, Reading
from saga_rl.aeg.importers.reading.fields import count, moment, objects, take
from saga_rl.aeg.importers.reading.left_out import Place


def _read(reading: Reading) -> Iterator[SessionSpec]:
    yield from sessions_of(reading, (row for file in reading.files for row in _rows(file, reading)))


def _rows(file: Path, reading: Reading) -> Iterator[Row]:
    session = file.name.split(".json")[0]
    lines: dict[str, tuple[Place, dict[str, Any]]] = {}
    for where, record in reading.of_file(file):
        if isinstance(record.get("messages"), list):
            rows: list[Row] = []
            with reading.left.guard(where):
                name = take(record, "sessionId", str, where)
                rows = list(_session(name, [(where, m) for m in objects(record, "messages", where)], reading))
            yield from rows
        elif "sessionId" in record:
            session = str(record["sessionId"])
        elif "id" in record and "type" in record:
            lines[str(record["id"])] = where, record  # a message is written again when it grows
        else:
            reading.drop("lines_of_other_kinds")
    yield from _session(session, list(lines.values()), reading)


def _session(session: str, messages: list[tuple[Place, dict[str, Any]]], reading: Reading) -> Iterator[Row]:
    before: float | None = None
    step = 0
    for where, message in messages:
        row = None
        with reading.left.guard(where):
            at = moment(message, "timestamp", where)
            tokens = message.get("tokens")
            tools = _tools(message, at, where)
            if message.get("type") == "gemini" and isinstance(tokens, dict):
                prompt = count(tokens, "input", where) + count(tokens, "tool", where, 0)
                output = count(tokens, "output", where) + count(tokens, "thoughts", where, 0)
                if prompt and output:
                    row = Row(session, "main", step, prompt, output, min(count(tokens, "cached", where, -1), prompt),
                              tools or (), at if before is None else min(before, at), None, at, tenant=reading.tenant,
                              agent_type="gemini-cli", model=str(message.get("model") or ""))
                    step += 1
                else:
                    reading.drop("calls_without_tokens")
            elif message.get("type") == "gemini":
                reading.drop("messages_without_token_counts")
            before = max([at, *(at + t.seconds for t in tools if t.seconds is not None)])
        if row:
            yield row


def _tools(message: dict[str, Any], at: float, where: Place) -> list[Tool]:
    """Tools of a message, each from the message to its own time, when it had ended."""
    out = []
    for call in objects(message, "toolCalls", where):
        ended = moment(call, "timestamp", where, default=None)
        out.append(Tool(str(call.get("name") or "tool"), None if ended is None else max(0.0, ended - at), at))
    return out


FORMAT = Format("gemini-cli", "Gemini CLI's chat recordings",
                ({"sessionId": TEXT, "messages": LIST, "startTime": ANY},
                 {"sessionId": TEXT, "projectHash": TEXT, "startTime": ANY}), _read, ("tenant",))
