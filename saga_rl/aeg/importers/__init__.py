"""Importers: files as they are become a Trace. One file a format; what was left out is counted in `meta.dropped`, what
had to be assumed in `meta.notes["mended"]`, and what was recorded, estimated or missing in `meta.notes["quality"]`.
Imports nothing of the package above `aeg`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from saga_rl.aeg.build import SessionSpec, TraceBuilder
from saga_rl.aeg.importers.building.graph import poisson_arrivals
from saga_rl.aeg.importers.format import Format, Reading
from saga_rl.aeg.importers.reading.files import expand
from saga_rl.aeg.importers.reading.left_out import LeftOut
from saga_rl.aeg.importers.reading.records import Progress
from saga_rl.aeg.importers.registry import FORMATS, choose, format_named, format_of
from saga_rl.aeg.quality import KEY
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.aeg.validate import check
from saga_rl.errors import UserError, unknown_name

DAMAGED = "damaged or foreign: "
"""What reasons in `meta.dropped` begin with that are not the format's own."""
RATE = 8.0
"""Sessions a minute where arrivals are not recorded."""
COMMON = ("rate_per_min", "seed", "limit", "strict", "lenient")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rate_per_min": (lambda v: 0 < v < math.inf, "give a positive number of sessions a minute"),
    "limit": (lambda v: v >= 1, "ask for 1 or more"),
    "hash_block_tokens": (lambda v: v >= 1, "give 1 token or more"),
}


def importer_names() -> list[str]:
    """Names of all formats."""
    return sorted(FORMATS)


@dataclass(frozen=True)
class Imported:
    """A trace, the format that it was read in, and what was left out, by file and cause."""

    trace: Trace
    format: Format
    left: LeftOut


def import_trace(fmt: str | None, path: str | Path | Sequence[str | Path], **options: Any) -> Trace:
    """The valid trace of the files, folders or patterns `path`, as `imported` makes it."""
    return imported(fmt, path, **options).trace


def imported(fmt: str | None, path: str | Path | Sequence[str | Path], *, progress: Progress | None = None,
             **options: Any) -> Imported:
    """Import `path` in format `fmt`, or in the one that its content shows where `fmt` is None.

    Options, of which None means the default: `rate_per_min` (lay arrivals out anew as a Poisson stream; else the
    recorded ones, and 8 a minute where there are none), `seed` of that, `limit` (the first so many sessions), `strict`
    (refuse the first record that cannot be read), `lenient` (leave out any share of them; else a tenth), and those of
    the format. Raises `UserError` for an unknown format or option, a value out of range, and input that is not of the
    format.
    """
    given = {k: v for k, v in options.items() if v is not None}
    if fmt is not None:
        _check_options(format_named(fmt), given)
    if given.get("strict") and given.get("lenient"):
        raise UserError("options strict and lenient", "exclude each other", "give one of them")
    files = expand(path)
    format_ = choose(fmt, files)
    _check_options(format_, given)
    rate, seed, limit = given.pop("rate_per_min", None), given.pop("seed", 0), given.pop("limit", None)
    left = LeftOut(given.pop("strict", False), given.pop("lenient", False))
    named = path if isinstance(path, str | Path) else files[0]
    if len(files) == 1 and format_.beside:
        files += format_.beside(files[0])
    reading = Reading(files, left, progress, limit, **given)
    trace = _build(reading, format_, str(named), rate, seed)
    try:
        check(trace)
    except UserError as e:
        raise UserError(named, f"{e.where} {e.cause}", e.mend) from None
    return Imported(trace, format_, left)


def _build(reading: Reading, format_: Format, named: str, rate: float | None, seed: int) -> Trace:
    builder = TraceBuilder()
    ids: dict[str, int] = {}
    for session in islice(format_.read(reading), reading.limit):
        if not session.steps:
            continue
        again = ids[session.session_id] = ids.get(session.session_id, 0) + 1
        if again > 1:
            reading.assume("session_ids_used_again_and_numbered")
            session.group = session.group or session.session_id
            session.session_id = f"{session.session_id}#{again}"
        builder.add(_named_in_utf8(session, reading))
    if not builder.ids:
        first = reading.left.first()
        raise UserError(named, f"holds no LLM call that format {format_.name!r} can read"
                        + (f"; the first record that was left out: {first}" if first else ""),
                        "check the file and the format")
    _check_left_out(reading.left, format_, named)
    if rate is None and not reading.timed:
        rate = RATE
    arrivals: np.ndarray | None = None
    layout = "recorded"
    if rate is not None:
        arrivals, layout = poisson_arrivals(len(builder.ids), rate, seed), f"Poisson, {rate:g} sessions/min"
    damaged = {f"{DAMAGED}{k}": n for k, n in reading.left.by_cause().items()}
    dropped = {**_counted(reading.dropped), **damaged}
    notes = {"arrivals": layout, "mended": _counted(reading.assumed), KEY: reading.quality.counts, **reading.notes}
    name = Path(named).resolve().name.split(".")[0] or format_.name
    meta = TraceMeta(name, f"imported:{format_.name}", seed, reading.block, dropped, notes)
    return builder.trace(meta, arrivals)


def _check_left_out(left: LeftOut, format_: Format, named: str) -> None:
    """Raise `UserError` if too much was left out; one that says so where files are of several formats."""
    try:
        left.check(named)
    except UserError as e:
        other = format_of(Path(left.worst()))
        if other is None or other is format_:
            raise
        raise UserError(e.where, e.cause, f"that file is of format {other.name!r}, and these are read as "
                        f"{format_.name!r}: import each format by itself, or add --lenient to leave the rest out"
                        ) from None


def _named_in_utf8(session: SessionSpec, reading: Reading) -> SessionSpec:
    """The session; halves of characters in names, which no file can hold, become question marks and are counted."""
    def mended(name: str) -> str:
        new = name if name.isascii() else name.encode("utf-8", "replace").decode()
        reading.assumed["names_with_half_characters_mended"] += new != name
        return new

    for part in ("session_id", "group", "tenant", "agent_type"):
        setattr(session, part, mended(getattr(session, part)))
    for step in session.steps:
        step.tool = None if step.tool is None else mended(step.tool)
        step.shared_prefix = None if step.shared_prefix is None else mended(step.shared_prefix)
    return session


def _counted(counts: dict[str, int]) -> dict[str, int]:
    return {k: counts[k] for k in sorted(counts) if counts[k]}


def _check_options(format_: Format, given: dict[str, Any]) -> None:
    valid = (*COMMON, *format_.options)
    for key, value in given.items():
        if key not in valid:
            raise unknown_name(f"option of import format {format_.name!r}", key, valid)
        if key in _RANGES and not _RANGES[key][0](value):
            raise UserError(f"option {key}", f"is {value}", _RANGES[key][1])
