"""Reading native files: JSON Lines, plain or gzip, line by line, and strict access to their fields."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.files import must_exist

Progress = Callable[[int, int], None]
"""Called with (bytes read of the file on disk, its size)."""


def json_lines(path: str | Path, progress: Progress | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each non-empty line of `path`; `place` names file and line for messages.

    Raises `UserError` for a missing file, damaged gzip, text that is not UTF-8, and lines that are not JSON objects.
    """
    path = must_exist(path)
    size = path.stat().st_size
    number = 0
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        lines = gzip.GzipFile(fileobj=raw) if zipped else raw
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as e:
                    raise UserError(where, f"is not JSON ({e})", "check that the file is whole") from None
                if not isinstance(value, dict):
                    raise UserError(where, "is not a JSON object", "check that the file is of this format")
                yield where, value
                if progress:
                    progress(raw.tell(), size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            raise UserError(f"{path}, after line {number}", f"the gzip stream is cut short or damaged ({e})",
                            "copy or download the file again") from None


_WHAT: dict[type, str] = {int: "an integer", float: "a number", str: "a string", list: "a list", dict: "an object"}


def take(row: dict[str, Any], name: str, kind: type, where: str, default: Any = ...) -> Any:
    """`row[name]` if it has type `kind` (an integer passes as a number; a boolean as neither). Missing or null:
    `default` if one is given. Numbers have to be finite. Raises `UserError` that names the field."""
    value = row.get(name)
    if value is None:
        if default is ...:
            raise UserError(f"{where}, field {name!r}", "is missing", f"give {_WHAT[kind]}")
        return default
    good = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not good or (kind is float and not math.isfinite(value)):
        raise UserError(f"{where}, field {name!r}", f"is {str(value)[:60]!r}", f"give {_WHAT[kind]}")
    return float(value) if kind is float else value


def at_least(value: Any, least: int, name: str, where: str) -> Any:
    """`value` unless it is below `least`."""
    if value < least:
        raise UserError(f"{where}, field {name!r}", f"is {value}", f"give {least} or more")
    return value


def id_list(row: dict[str, Any], name: str, where: str) -> list[int]:
    """A list of block ids (integers of 64 bits), empty where the field is missing."""
    ids = take(row, name, list, where, [])
    if not all(type(i) is int and -(1 << 63) <= i < 1 << 63 for i in ids):
        raise UserError(f"{where}, field {name!r}", "holds more than 64-bit integers", "give a list of integers")
    return ids
