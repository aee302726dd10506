"""The sessions: read or imported, those that fit, in three parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saga_rl.aeg.importers import imported
from saga_rl.aeg.importers.reading.files import expand
from saga_rl.aeg.io import read_trace
from saga_rl.aeg.quality import doubts, quality, sentence
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.experiments.compare.sources import without_longer
from saga_rl.learn.judge.sessions import parts_of
from saga_rl.learn.own.settings import FEWEST_GROUPS, FEWEST_OF_A_PART, FEWEST_SESSIONS
from saga_rl.provenance import sha256

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Material:
    """parts: sessions to search on, to choose by, to judge on. facts: JSON, for the head of the folder and the page."""

    parts: dict[str, Trace]
    facts: dict[str, Any]


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files that `paths` name. Raises `UserError`."""
    return [paths[0]] if len(paths) == 1 and paths[0].is_file() else expand(list(paths))


def identity(files: Sequence[Path]) -> dict[str, Any]:
    """What the sessions are determined by, besides the code."""
    digests = [sha256(file) for file in files]
    return {"sha256": digests[0] if len(digests) == 1 else None, "files": digests}


def read(files: Sequence[Path]) -> Trace:
    """A trace file as it is; anything else as `saga-rl trace import` reads it. Raises `UserError`."""
    if len(files) == 1 and _is_trace(files[0]):
        return read_trace(files[0])
    for file in files:
        if _is_trace(file):
            raise UserError(file, "is one trace file of several", "name one trace, or files to import alone")
    return imported(None, list(files)).trace


def _is_trace(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"PAR1"


def material(trace: Trace, name: str, longest: int, limit: str) -> Material:
    """Sessions with contexts of at most `longest` tokens, split by group. limit: what says so, for messages. Raises
    `UserError` where too few are left for three parts."""
    kept, left_out = trace, 0
    context = np.maximum.reduceat(trace.steps.prompt_tokens + trace.steps.output_tokens, trace.session_offsets[:-1])
    if (context > longest).all():
        left_out = trace.n_sessions
    elif (context > longest).any():
        kept, names = without_longer(trace, longest)
        left_out = len(names)
    sessions = 0 if left_out == trace.n_sessions else kept.n_sessions
    groups = len(set(kept.sessions.group)) if sessions else 0
    if sessions < FEWEST_SESSIONS or groups < FEWEST_GROUPS:
        longer = f" ({left_out} of {trace.n_sessions} sessions left out: longer than {longest:,} tokens, {limit})"
        raise UserError(name, f"has {sessions} sessions in {groups} groups{longer if left_out else ''}, too few to "
                        "search on some, choose by others and judge on the rest",
                        f"give a trace of {FEWEST_SESSIONS} sessions in {FEWEST_GROUPS} groups or more"
                        + (", or a larger --window or --kv-tokens" if left_out else ""))
    parts = parts_of(kept)
    for part, few in parts.items():
        if few.n_sessions < FEWEST_OF_A_PART:
            raise UserError(name, f"leaves {few.n_sessions} sessions for the part {part}: most belong to one group",
                            "give a trace with more groups of sessions")
    steps = kept.steps
    return Material(parts, {
        "name": name, "source": trace.meta.source, "sessions": kept.n_sessions, "groups": groups, "steps": kept.n_steps,
        "left_out": left_out, "longest_allowed_tokens": longest, "limit": limit,
        "longest_context_tokens": int((steps.prompt_tokens + steps.output_tokens).max()),
        "median_context_tokens": int(np.median(steps.prompt_tokens + steps.output_tokens)),
        "parts": {part: parts[part].n_sessions for part in PARTS},
        "steps_of_a_session": {part: parts[part].n_steps / parts[part].n_sessions for part in PARTS},
        "sentence": sentence(trace), "quality": quality(trace), "doubts": doubts(trace),
        "dropped_by_importer": dict(trace.meta.dropped)})
