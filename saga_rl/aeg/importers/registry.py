"""All formats by name, and which of them a file is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saga_rl.aeg.importers import (
    azure,
    bailian,
    burstgpt,
    chats,
    claude_code,
    codex,
    copilot,
    dynamo,
    gemini_cli,
    jsonl,
    katas,
    langfuse,
    litellm,
    lmcache,
    mooncake,
    opencode,
    openhands,
    otel_genai,
    swe_agent,
    tracelab,
    vllm_multi_turn,
    weka,
)
from saga_rl.aeg.importers.format import Format
from saga_rl.aeg.importers.reading.left_out import LeftOut
from saga_rl.aeg.importers.reading.records import records
from saga_rl.errors import UserError, unknown_name

FORMATS: dict[str, Format] = {m.FORMAT.name: m.FORMAT for m in (
    azure, bailian, burstgpt, chats, claude_code, codex, copilot, dynamo, gemini_cli, jsonl, katas, langfuse,
    litellm, lmcache, mooncake, opencode, openhands, otel_genai, swe_agent, tracelab, vllm_multi_turn, weka,
)}
LOOK_AT, AT_MOST = 20, 400
"""Records of a file that are looked at to tell its format; so many where the first tell nothing (a transcript may
begin with notes)."""
FILES = 5
"""Files that are looked into."""


def format_named(name: str) -> Format:
    """The format `name`. Raises `UserError` with the nearest names."""
    if name not in FORMATS:
        raise unknown_name("import format", name, FORMATS)
    return FORMATS[name]


def choose(name: str | None, files: list[Path]) -> Format:
    """The format `name`, or the one that the content of `files` shows.

    Raises `UserError` if nothing fits (with the nearest format, and the first thing that does not fit), if formats fit
    equally well, and if `name` does not fit and another format does.
    """
    named = format_named(name) if name is not None else None
    sample = _sample(files, named)
    if named is not None:
        found = named.best(sample)
        others = _fitting(sample) if not found.whole else []
        if others:
            raise UserError(files[0], f"is not of format {name!r}: {found.problem}",
                            f"it is of format {others[0].name!r} ({others[0].holds}): write --format {others[0].name}")
        return named
    fitting = _fitting(sample)
    if fitting:
        return fitting[0]
    if not sample:
        raise UserError(files[0], "holds no record of JSON or CSV that can be read", "check that it is the right file")
    near = max(FORMATS.values(), key=lambda f: f.best(sample).good / f.best(sample).total)
    raise UserError(files[0], f"is of no format that is known; the nearest is {near.name!r} ({near.holds}), but "
                    f"{near.best(sample).problem}", "name it with --format, or convert it to jsonl (docs: import)")


def format_of(file: Path) -> Format | None:
    """The format that fits the content of `file` best, None if none does."""
    return next(iter(_fitting(_sample([file], None))), None) if file.is_file() else None


def _fitting(sample: list[dict[str, Any]]) -> list[Format]:
    """Formats that fit, those with most to fit first."""
    fits = [(f, f.best(sample)) for f in FORMATS.values()]
    return [f for f, found in sorted(fits, key=lambda pair: -pair[1].total) if found.whole]


def _sample(files: list[Path], named: Format | None) -> list[dict[str, Any]]:
    """First records of the first files; only as many as it takes to see that `named` fits."""
    out: list[dict[str, Any]] = []
    for file in files[:FILES]:
        for n, (_, record) in enumerate(records(file, LeftOut(lenient=True))):
            out.append(record)
            if named is not None and named.best([record]).whole:
                return [record]
            if n + 1 >= AT_MOST or (n + 1 >= LOOK_AT and n % LOOK_AT == 0 and _fitting(out)):
                break
    return out
