"""Importer `azure`: AzureLLMInferenceTrace CSVs, one request a row: `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`.

There are no sessions and no ids: each request is a session of its own. Times without a zone are taken for UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.requests import Request, sessions_from
from saga_rl.aeg.importers.format import ANY, Format, Reading
from saga_rl.aeg.importers.mooncake import read_requests
from saga_rl.aeg.importers.reading.fields import count, moment
from saga_rl.aeg.importers.reading.left_out import Place


def _read(reading: Reading) -> Iterator[SessionSpec]:
    yield from sessions_from(reading, read_requests(reading, _request, (1,)))


def _request(row: dict[str, Any], where: Place) -> Request:
    return Request(moment(row, "TIMESTAMP", where), count(row, "ContextTokens", where),
                   count(row, "GeneratedTokens", where))


FORMAT = Format("azure", "AzureLLMInferenceTrace CSVs of requests",
                ({"TIMESTAMP": ANY, "ContextTokens": ANY, "GeneratedTokens": ANY},), _read)
