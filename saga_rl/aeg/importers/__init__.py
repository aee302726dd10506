"""Importers by name: a native file becomes a Trace. One file a format; each counts what it left out in `meta.dropped`
and what it had to assume in `meta.notes`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saga_rl.aeg.importers import claude_code, jsonl, katas, mooncake, weka
from saga_rl.aeg.trace import Trace
from saga_rl.aeg.validate import check
from saga_rl.errors import UserError, unknown_name

_IMPORTERS: dict[str, Callable[..., Trace]] = {
    "weka": weka.import_trace, "claude-code": claude_code.import_trace, "mooncake": mooncake.import_trace,
    "jsonl": jsonl.import_trace, "katas": katas.import_trace,
}
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rate_per_min": (lambda v: 0 < v < math.inf, "give a positive number of sessions a minute"),
    "limit": (lambda v: v >= 1, "ask for 1 or more"),
    "hash_block_tokens": (lambda v: v >= 1, "give 1 token or more"),
}


def importer_names() -> list[str]:
    return sorted(_IMPORTERS)


def import_trace(fmt: str, path: str | Path, **options: Any) -> Trace:
    """The valid trace of the file or folder `path` in format `fmt`; options of None mean the importer's default.

    Raises `UserError` for an unknown format or option, a value out of range, and input that is not of the format.
    """
    if fmt not in _IMPORTERS:
        raise unknown_name("import format", fmt, _IMPORTERS)
    importer = _IMPORTERS[fmt]
    valid = [k for k in inspect.signature(importer).parameters if k != "path"]
    given = {k: v for k, v in options.items() if v is not None}
    for key, value in given.items():
        if key not in valid:
            raise unknown_name(f"option of import format {fmt!r}", key, [v for v in valid if v != "progress"])
        if key in _RANGES and not _RANGES[key][0](value):
            raise UserError(f"option {key}", f"is {value}", _RANGES[key][1])
    trace = importer(path, **given)
    if not trace.n_sessions:
        raise UserError(path, f"holds no LLM call that format {fmt!r} can read", "check the file and the format")
    try:
        check(trace)
    except UserError as e:
        raise UserError(path, f"{e.where} {e.cause}", e.mend) from None
    return trace
