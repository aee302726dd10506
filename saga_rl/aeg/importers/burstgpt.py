"""Importer `burstgpt`: the BurstGPT CSV, one request a row: `Timestamp` (s), `Model`, `Request tokens`, `Response
tokens`, and in later files `Session ID` and `Elapsed time` (s).

Rows of one session follow each other; rows without a session are sessions of one request. Requests that failed (no
response tokens) are left out and counted. No block ids: prefixes from lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, sessions_of
from saga_rl.aeg.importers.format import ANY, Format, Reading
from saga_rl.aeg.importers.reading.fields import count, moment, seconds
from saga_rl.aeg.importers.reading.left_out import Place


def _read(reading: Reading) -> Iterator[SessionSpec]:
    yield from sessions_of(reading, reading.each(lambda record, where, n: _row(record, where, n, reading)))


def _row(record: dict[str, Any], where: Place, n: int, reading: Reading) -> Iterator[Row]:
    prompt, output = count(record, "Request tokens", where), count(record, "Response tokens", where)
    if prompt == 0 or output == 0:
        reading.drop("requests_that_failed")
        return
    sent = moment(record, "Timestamp", where)
    long = seconds(record, "Elapsed time", where, default=None)
    session = str(record.get("Session ID") or "").strip()
    yield Row(f"session-{session}" if session else f"request-{n:06d}", "main", n, prompt, output, sent_s=sent,
               end_s=None if long is None else sent + long, agent_type=str(record.get("Log Type") or "chat"),
               model=str(record.get("Model") or ""))


FORMAT = Format("burstgpt", "the BurstGPT CSV of requests",
                ({"Timestamp": ANY, "Model": ANY, "Request tokens": ANY, "Response tokens": ANY},), _read)
