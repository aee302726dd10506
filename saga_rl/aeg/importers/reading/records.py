"""The records of a file, one after another, whatever its layout; what cannot be read is left out and counted.

Layouts, told by the first bytes: JSON Lines; one JSON array, or documents of several lines after each other; CSV with a
header (a record maps column to text). Only one record is held in memory.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from saga_rl.aeg.importers.reading.files import open_data
from saga_rl.aeg.importers.reading.left_out import LeftOut, Place
from saga_rl.errors import UserError

Progress = Callable[[int, int], None]
"""Called with (bytes read of the files on disk, their size)."""
_COLUMN = re.compile(r"\s*\"?[A-Za-z_][\w .()/%-]*\"?\s*")
_CHUNK = 1 << 20
_EVERY = 256
"""Lines between two calls of progress."""


def records(path: Path, left: LeftOut, said: Callable[[int], None] | None = None) -> Iterator[tuple[Place, Any]]:
    """(place, JSON object) of each record in `path`. said: called now and then with the bytes read on disk.

    Raises `UserError` for compressed files that are cut short, unless `left` is lenient.
    """
    stream, raw = open_data(path)
    last = Place(str(path), 0)
    try:
        with raw, stream:
            head = _head(stream)
            for n, (last, value) in enumerate(_layout(head)(stream, str(path), left)):
                left.read += 1
                if isinstance(value, dict):
                    yield last, value
                else:
                    left.add(last, "is not a JSON object")
                if said and n % _EVERY == 0:
                    said(raw.tell())
    except (EOFError, zlib.error, OSError) as e:
        if not left.lenient:
            raise UserError(f"{path}, after line {last.line}",
                            f"the gzip or zstd stream is cut short or damaged ({e})",
                            "copy or download the file again, or add --lenient to take what is there") from None
        left.add(last, "the compressed stream is cut short after this line")


def _head(stream: BinaryIO) -> bytes:
    head: bytes = stream.peek(1 << 16)  # type: ignore[attr-defined]
    if head.startswith(b"\xef\xbb\xbf"):
        stream.read(3)
        head = head[3:]
    return head


Reader = Callable[[BinaryIO, str, LeftOut], Iterator[tuple[Place, Any]]]


def _layout(head: bytes) -> Reader:
    text = head.lstrip()
    first, _, rest = text.partition(b"\n")
    if text[:1] == b"[":
        return _documents
    if text[:1] != b"{":
        cells = first.decode("utf-8", "replace").strip().split(",")
        return _table if len(cells) > 1 and all(_COLUMN.fullmatch(c) for c in cells) else _lines
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        follows = rest.lstrip(b"\r\n")[:1]
        if first.strip() == b"{" or (follows and follows in b" \t\"}]"):
            return _documents
    return _lines


def _lines(stream: BinaryIO, file: str, left: LeftOut) -> Iterator[tuple[Place, Any]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        place = Place(file, number)
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as e:
            left.read += 1
            left.add(place, _cause(line, e))
            continue
        yield place, value


def _cause(line: bytes, e: Exception) -> str:
    if b"\0" in line:
        return "holds NUL bytes"
    if isinstance(e, UnicodeDecodeError):
        return "is not UTF-8 text"
    if isinstance(e, json.JSONDecodeError):
        if e.msg == "Extra data":
            return "holds more than one JSON record"
        if e.pos >= len(e.doc.rstrip("\r\n")) or e.msg.startswith("Unterminated"):
            return "is cut short: half a JSON record"
        return f"is not JSON ({e.msg})"
    return "is not JSON (nested too deep)"


def _documents(stream: BinaryIO, file: str, left: LeftOut) -> Iterator[tuple[Place, Any]]:
    text = io.TextIOWrapper(stream, encoding="utf-8")
    decode = json.JSONDecoder().raw_decode
    held, at, line, within = "", 0, 1, False
    more = True
    while True:
        start = _skip(held, at, within)
        line += held.count("\n", at, start)
        at = start
        if at < len(held) and held[at] == "[" and not within:
            within, at = True, at + 1
            continue
        if at < len(held) and held[at] == "]" and within:
            within, at = False, at + 1
            continue
        fault = ""
        if at < len(held):
            try:
                value, end = decode(held, at)
            except json.JSONDecodeError as e:
                fault = f"is not JSON ({e.msg}, line {line + held.count(chr(10), at, e.pos)})"
            except RecursionError:
                left.read += 1
                left.add(Place(file, line), "is not JSON (nested too deep)")
                return
            else:
                yield Place(file, line), value
                line += held.count("\n", at, end)
                at = end
                continue
        if not more:
            if fault:
                left.read += 1
                left.add(Place(file, line), fault)
            return
        try:
            chunk = text.read(max(_CHUNK, len(held) - at))
        except UnicodeDecodeError:
            left.read += 1
            left.add(Place(file, line), "is not UTF-8 text from here on")
            return
        held, at, more = held[at:] + chunk, 0, bool(chunk)


def _skip(text: str, at: int, within: bool) -> int:
    """Position of the next value: past white space, and past commas in an array."""
    gap = " \t\r\n," if within else " \t\r\n"
    while at < len(text) and text[at] in gap:
        at += 1
    return at


def _decoded(stream: BinaryIO, file: str, left: LeftOut) -> Iterator[str]:
    """Lines that are text; the others are left out."""
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode()
        except UnicodeDecodeError:
            left.read += 1
            left.add(Place(file, number), "is not UTF-8 text")


def _table(stream: BinaryIO, file: str, left: LeftOut) -> Iterator[tuple[Place, Any]]:
    rows = csv.reader(_decoded(stream, file, left))
    header = [name.strip() for name in next(rows)]
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as e:
            left.read += 1
            left.add(Place(file, rows.line_num), f"is not a CSV row ({e})")
            continue
        if not cells:
            continue
        place = Place(file, rows.line_num)
        if len(cells) != len(header):
            left.read += 1
            left.add(place, f"has {len(cells)} cells for {len(header)} columns")
            continue
        yield place, dict(zip(header, cells, strict=True))
