"""Importer `lmcache`: agents' requests with their text, a call a line: `session_id`, `input` (text, or the messages),
and `output` (text) or `output_length`; `timestamp` (µs) or `session_timestamp` (s from the session's beginning).

Lengths of text come from `--tokenizer`, else four characters a token (counted as estimated). Block ids are of the
text, so what calls share is exact. A call is sent at its time; ends are not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, sessions_of
from saga_rl.aeg.importers.building.text import BLOCK, Chat
from saga_rl.aeg.importers.format import INTEGER, LIST, NUMBER, TEXT, Format, Reading
from saga_rl.aeg.importers.reading.fields import calendar, count, seconds, take
from saga_rl.aeg.importers.reading.left_out import Place


def _read(reading: Reading) -> Iterator[SessionSpec]:
    reading.block = BLOCK
    chat = Chat(reading.tokenizer)
    yield from sessions_of(reading, _rows(reading, chat))


def _rows(reading: Reading, chat: Chat) -> Iterator[Row]:
    for n, (where, record) in enumerate(reading.records()):
        row = None
        with reading.left.guard(where):
            row = _row(record, where, n, chat, reading)
        if row:
            yield row


def _row(record: dict[str, Any], where: Place, n: int, chat: Chat, reading: Reading) -> Row | None:
    given = record.get("input")
    messages = [m for m in given if isinstance(m, dict | str)] if isinstance(given, list) else [
        take(record, "input", str, where)]
    context = chat.context(messages)
    prompt, ids, whole = context.length, context.blocks[:], None
    if record.get("output") is not None:
        context.add(chat.message(take(record, "output", str, where)))
        output, whole = context.length - prompt, context.blocks
    else:
        output = count(record, "output_length", where)
    if prompt == 0 or output == 0:
        reading.drop("calls_without_text")
        return None
    sent = calendar(record, "timestamp", where, None)
    if sent is None:
        sent = seconds(record, "session_timestamp", where, default=None)
        reading.timed = False
    return Row(take(record, "session_id", str, where), "main", n, prompt, output, sent_s=sent, agent_type="agent",
               model=str(record.get("model") or ""), hash_ids=ids, context_ids=whole if whole is not None else (),
               estimated=not chat.tokens.exact)


FORMAT = Format("lmcache", "agents' requests with their text (LMCache's agent traces)",
                ({"session_id": TEXT, "input": TEXT, "output": TEXT, "timestamp": NUMBER},
                 {"session_id": TEXT, "input": LIST, "output_length": INTEGER}), _read, ("tokenizer",))
