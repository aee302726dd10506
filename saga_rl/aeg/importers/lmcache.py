"""Importer `lmcache`: agents' requests with their text, a call a line: `session_id`, `input` (text, or the messages),
and `output` (text) or `output_length`; `timestamp` (µs) or `session_timestamp` (s from the session's beginning).

Lengths of text come from `--tokenizer`, else four characters a token (counted as estimated). Block ids are of the
text, so what calls share is exact. A call is sent at its time; ends are not recorded. An answer without text called a
tool, and its length is missing: 1 token is taken, and counted. Calls of a session whose prompts begin otherwise are of
another agent (such as the simulated user of tau-bench).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, Tool, sessions_of
from saga_rl.aeg.importers.building.text import BLOCK, Chat, words
from saga_rl.aeg.importers.format import INTEGER, LIST, NUMBER, TEXT, Format, Reading
from saga_rl.aeg.importers.reading.fields import calendar, count, seconds, take
from saga_rl.aeg.importers.reading.left_out import Place

BEGINNING = 24
"""Characters of a prompt that tell the agents of a session apart."""


def _read(reading: Reading) -> Iterator[SessionSpec]:
    reading.block = BLOCK
    chat = Chat(reading.tokenizer)
    rows = list(reading.each(lambda record, where, n: _row(record, where, n, chat, reading)))
    first: dict[str, Row] = {}
    for row in rows:
        known = first.setdefault(row.session, row)
        if (row.sent_s or 0.0) < (known.sent_s or 0.0):
            first[row.session] = row
    mains = {session: row.agent for session, row in first.items()}
    for row in rows:
        row.agent, row.caller = ("main", "") if row.agent == mains[row.session] else (row.agent, "main")
    others = {(row.session, row.agent) for row in rows if row.agent != "main"}
    reading.assume("agents_told_apart_by_how_their_prompts_begin", len(others))
    yield from sessions_of(reading, rows)


def _row(record: dict[str, Any], where: Place, n: int, chat: Chat, reading: Reading) -> Iterator[Row]:
    given = record.get("input")
    messages = [m for m in given if isinstance(m, dict | str)] if isinstance(given, list) else [
        take(record, "input", str, where)]
    context = chat.context(messages)
    row = Row(take(record, "session_id", str, where), words(messages[:1])[:BEGINNING], n, context.length, 0,
              agent_type="agent", model=str(record.get("model") or ""), hash_ids=context.blocks[:],
              lengths=chat.lengths)
    if record.get("output"):
        context.add(chat.message(take(record, "output", str, where)))
        row.output, row.context_ids = context.length - row.prompt, context.blocks
    elif "output_length" in record:
        row.output = count(record, "output_length", where)
    else:
        reading.assume("outputs_without_text_taken_as_1_token")
        row.output, row.lengths, row.tools = 1, "missing", [Tool("tool")]
    if row.prompt == 0 or row.output == 0:
        reading.drop("calls_without_text")
        return
    row.sent_s = calendar(record, "timestamp", where, None)
    if row.sent_s is None:
        row.sent_s = seconds(record, "session_timestamp", where, default=None)
        reading.timed = False
    yield row


FORMAT = Format("lmcache", "agents' requests with their text (LMCache's agent traces)",
                ({"session_id": TEXT, "input": TEXT, "output": TEXT, "timestamp": NUMBER},
                 {"session_id": TEXT, "input": LIST, "output_length": INTEGER}), _read, ("tokenizer",))
