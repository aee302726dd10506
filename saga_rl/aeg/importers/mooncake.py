"""Importer `mooncake`: one request a line with `timestamp` (ms), `input_length`, `output_length`, `hash_ids`.

Ids are global, one for each block of the prompt (512 tokens as published; the last id may stand for a partial block):
equal ids mean equal content up to the end of that block. They are kept, so sharing between sessions is exact. The
block size is the one that fits the first requests, or `--hash-block-tokens`. Requests without ids are lengths only.

There are no session ids as published: `building/requests.py` infers sessions from the ids. Rows of AIPerf and Dynamo
may have `session_id`, and on later turns `delay` (ms after the turn before ended) instead of a timestamp; where
prompts of such a session do not contain what came before, each holds only the text that is new.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.requests import Request, block_that_fits, sessions_from
from saga_rl.aeg.importers.format import ABSENT, INTEGER, NUMBER, Format, Reading
from saga_rl.aeg.importers.reading.fields import count, id_list, seconds, take
from saga_rl.aeg.importers.reading.left_out import Place
from saga_rl.errors import UserError

BLOCK = 512
LOOK_AT = 1000
"""Requests that the block size is found from."""


def _read(reading: Reading) -> Iterator[SessionSpec]:
    yield from sessions_from(reading, read_requests(reading, _request, (BLOCK, 16)), added_text=True)
    inferred = "inferred from hash prefixes" if reading.block else "none: one request each"
    reading.notes["sessions"] = inferred


def read_requests(reading: Reading, make: Any, usual: tuple[int, ...]) -> Iterator[Request]:
    """Requests that `make(record, where)` makes, at most the limit's, whose ids fit one size of blocks."""
    made = _made(reading, make)
    head = list(islice(made, LOOK_AT))
    lengths = [(r.prompt, len(r.ids)) for _, r in head if len(r.ids)]
    if lengths:
        fits = block_that_fits(lengths, usual)
        reading.block = reading.hash_block_tokens or fits or usual[0]
        reading.notes["hash_block_tokens"] = ("as given" if reading.hash_block_tokens else
                                              "inferred from lengths" if fits else "as published")
    for place, r in chain(head, made):
        if len(r.ids) and not r.prompt // reading.block <= len(r.ids) <= -(-r.prompt // reading.block):
            with reading.left.guard(place):
                raise UserError(f"{place}, field 'hash_ids'", f"has another number of ids than one for each "
                                f"{reading.block} tokens", "state the block size (--hash-block-tokens)")
            continue
        yield r


def _made(reading: Reading, make: Any) -> Iterator[tuple[Place, Request]]:
    for n, (where, row) in enumerate(reading.records()):
        if reading.limit is not None and n >= reading.limit:
            return
        made = None
        with reading.left.guard(where):
            made = make(row, where)
        if made:
            made.number = n
            yield where, made


def _request(row: dict[str, Any], where: Place) -> Request:
    session = row.get("session_id")
    later = session is not None and ("delay" in row or "delay_ms" in row)
    at = seconds(row, "timestamp", where, 1000.0, None if later else ...)
    delay = seconds(row, "delay" if "delay" in row else "delay_ms", where, 1000.0, None)
    take(row, "hash_ids", list, where, [])
    ids = id_list(row, "hash_ids", where)
    return Request(at, count(row, "input_length", where), count(row, "output_length", where),
                   array("q", ids) if ids else (), "" if session is None else str(session), delay)


_LENGTHS = {"input_length": INTEGER, "output_length": INTEGER, "chat_id": ABSENT}
FORMAT = Format("mooncake", "requests with lengths and global block ids (Mooncake, AIPerf, Dynamo), times in ms",
                ({"timestamp": NUMBER, **_LENGTHS},), _read, ("hash_block_tokens",))
