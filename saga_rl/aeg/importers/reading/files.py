"""Which files a path names, and their bytes: folders, globs, gzip and Zstandard by their first bytes."""

from __future__ import annotations

import glob
import gzip
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from saga_rl.errors import UserError
from saga_rl.files import must_exist

_DATA = re.compile(r"\.(jsonl|ndjson|json|csv|traj)(\.gz|\.zst)?$")
_SIDE = re.compile(r"(\.meta\.json|^fork_groups\.json)$")
"""Notes beside the data, which an importer reads by name."""
BUFFER = 1 << 20
MENDS = "name a file, a folder or a pattern such as 'logs/*.jsonl'"


def expand(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that `paths` name, each once: files, all data files below folders (by name), patterns.

    Raises `UserError` for a path that names nothing.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    found: dict[Path, None] = {}
    for path in given:
        found |= dict.fromkeys(_files(Path(path)))
    if not found:
        raise UserError("PATH", "is missing", MENDS)
    return list(found)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        below = sorted(f for f in path.rglob("*") if _DATA.search(f.name) and not _SIDE.search(f.name) and f.is_file())
        if not below:
            raise UserError(path, "holds no .jsonl, .json or .csv file (plain, .gz or .zst)", "name the file itself")
        return below
    if not path.exists() and glob.has_magic(str(path)):
        matched = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        if not matched:
            raise UserError(path, "matches no file", MENDS)
        return [f for m in matched for f in (_files(m) if m.is_dir() else [m])]
    if not path.exists():
        raise UserError(path, "no such file or folder", "check the path")
    return [must_exist(path)]


def open_data(path: Path) -> tuple[BinaryIO, BinaryIO]:
    """(the decompressed bytes, the file on disk, which tells how far the reading is)."""
    raw = must_exist(path).open("rb", buffering=BUFFER)
    head = raw.read(4)
    raw.seek(0)
    if head == b"PAR1":
        raw.close()
        raise UserError(path, "is a Parquet file", "a trace needs no import; write other tables as JSON Lines or CSV")
    if head[:2] == b"\x1f\x8b":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), BUFFER), raw
    if head == b"\x28\xb5\x2f\xfd":
        unpacked = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
        return io.BufferedReader(unpacked, BUFFER), raw
    return raw, raw
