"""Importer `bailian`: Qwen-Bailian usage traces, one request a line: `chat_id`, `parent_chat_id` (-1: none),
`timestamp` (s), `input_length`, `output_length`, `type`, `turn`, `hash_ids` of 16 tokens.

Each row holds its whole prompt. A request continues the session of its parent if that is the session's last request; a
second child of one parent begins a session of its own, which shares by its ids. Ids are kept.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.requests import Request, sessions_from
from saga_rl.aeg.importers.format import ANY, INTEGER, NUMBER, Format, Reading
from saga_rl.aeg.importers.mooncake import read_requests
from saga_rl.aeg.importers.reading.fields import count, id_list, seconds
from saga_rl.aeg.importers.reading.left_out import Place
from saga_rl.errors import UserError

BLOCK = 16
NONE = ("-1", "None", "")


def _read(reading: Reading) -> Iterator[SessionSpec]:
    yield from sessions_from(reading, read_requests(reading, _request, (BLOCK,)))
    reading.notes["sessions"] = "by parent_chat_id"


def _request(row: dict[str, Any], where: Place) -> Request:
    if row.get("chat_id") is None:
        raise UserError(f"{where}, field 'chat_id'", "is missing", "give the request's id")
    parent, ids = str(row.get("parent_chat_id")), id_list(row, "hash_ids", where)
    return Request(seconds(row, "timestamp", where), count(row, "input_length", where),
                   count(row, "output_length", where), array("q", ids) if ids else (), name=str(row["chat_id"]),
                   parent="" if parent in NONE else parent, kind=str(row.get("type") or "chat"))


FORMAT = Format("bailian", "Qwen-Bailian usage traces: requests with parents, times in s",
                ({"chat_id": ANY, "parent_chat_id": ANY, "timestamp": NUMBER, "input_length": INTEGER,
                  "output_length": INTEGER},), _read, ("hash_block_tokens",))
