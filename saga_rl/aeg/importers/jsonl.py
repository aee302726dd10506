"""Importer `jsonl`: one LLM call a line, the format to export your own traffic to.

docs/reference/trace-format.md lists the fields. Types are strict; unknown fields are left out and counted in
`meta.dropped`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saga_rl.aeg.importers.flat import Assembler, Row, Tool
from saga_rl.aeg.importers.reading import Progress, at_least, id_list, json_lines, take
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.errors import UserError

FIELDS = frozenset({"session", "agent", "step", "in", "out", "cached", "tools", "t_req", "t_first", "t_end", "gap",
                    "group", "task", "tenant", "agent_type", "model", "deadline", "hash_ids"})
TOOL_FIELDS = frozenset({"name", "t0", "dur", "spawned"})


@dataclass(frozen=True)
class Dialect:
    """How a producer's rows differ from the plain format."""

    required: tuple[str, ...] = ()
    """Strings that its rows always have, beyond those that the plain format requires."""
    by_session: bool = False
    """A session's rows stand together, so reading may stop at the limit."""


PLAIN = Dialect()


def import_trace(path: str | Path, *, rate_per_min: float | None = None, seed: int = 0, limit: int | None = None,
                 hash_block_tokens: int = 16, progress: Progress | None = None) -> Trace:
    """The calls of `path`, at most its first `limit` sessions. Without `t_req` in every row, or with `rate_per_min`
    given, arrivals are a Poisson stream (8 a minute unless given); else they are the recorded ones."""
    rows, dropped = read_rows(path, PLAIN, limit, hash_block_tokens, progress)
    block = hash_block_tokens if any(r.hash_ids for r in rows) else 0
    meta = TraceMeta(Path(path).name.split(".")[0], "imported:jsonl", seed, block, dropped)
    return Assembler(hash_block_tokens).trace(rows, meta, rate_per_min=rate_per_min, seed=seed)


def read_rows(path: str | Path, dialect: Dialect, limit: int | None, hash_block_tokens: int,
              progress: Progress | None) -> tuple[list[Row], dict[str, int]]:
    """The calls of at most the first `limit` sessions of `path`, and what was left out, counted by reason."""
    dropped: dict[str, int] = defaultdict(int)
    rows: list[Row] = []
    sessions: set[str] = set()
    seen: set[tuple[str, str, int]] = set()
    current = None
    for where, raw in json_lines(path, progress):
        row = _row(raw, where, dropped, dialect)
        if dialect.by_session and row.session != current and row.session in sessions:
            raise UserError(f"{where}, field 'session'", f"is {row.session!r} again, after another session's rows",
                            "sort the rows by session, or import them as jsonl")
        current = row.session
        if limit is not None and row.session not in sessions and len(sessions) >= limit:
            if dialect.by_session:
                break
            continue
        sessions.add(row.session)
        key = (row.session, row.agent, row.step)
        if key in seen:
            raise UserError(f"{where}, field 'step'", f"is {row.step} a second time for agent {row.agent!r} of session "
                            f"{row.session!r}", "number an agent's calls 0, 1, 2, ...")
        seen.add(key)
        if not len(row.hash_ids) * hash_block_tokens < row.prompt + hash_block_tokens:
            raise UserError(f"{where}, field 'hash_ids'", f"has {len(row.hash_ids)} ids of {hash_block_tokens} tokens "
                            f"for a prompt of {row.prompt}", "state the block size (--hash-block-tokens)")
        if row.output == 0 or row.prompt == 0:
            dropped["calls_without_tokens"] += 1
            continue
        rows.append(row)
    return rows, dict(sorted(dropped.items()))


def _row(raw: dict[str, Any], where: str, dropped: dict[str, int], dialect: Dialect) -> Row:
    for key in raw.keys() - FIELDS:
        dropped[f"field {key}"] += 1
    for key in dialect.required:
        take(raw, key, str, where)

    def text(name: str, default: Any = "") -> str:
        return sys.intern(take(raw, name, str, where, default))  # few distinct strings, many rows

    def seconds(name: str) -> float | None:
        value = take(raw, name, float, where, None)
        return value if value is None else at_least(value, 0, name, where)

    tenant, task = text("tenant", "default"), text("task")
    row = Row(
        session=text("session", ...), agent=text("agent", "main"),
        step=at_least(take(raw, "step", int, where), 0, "step", where),
        prompt=at_least(take(raw, "in", int, where), 0, "in", where),
        output=at_least(take(raw, "out", int, where), 0, "out", where),
        cached=at_least(take(raw, "cached", int, where, -1), -1, "cached", where),
        tools=[_tool(t, f"{where}, tool {k}", dropped) for k, t in enumerate(take(raw, "tools", list, where, []))],
        sent_s=seconds("t_req"), first_token_s=seconds("t_first"), end_s=seconds("t_end"),
        gap_s=take(raw, "gap", float, where, None),
        group=text("group") or (f"{task}/{tenant}" if task else ""), tenant=tenant, agent_type=text("agent_type"),
        model=text("model"), deadline_s=seconds("deadline"), hash_ids=id_list(raw, "hash_ids", where))
    if row.sent_s is not None and row.end_s is not None and row.end_s < row.sent_s:
        raise UserError(f"{where}, field 't_end'", f"is {row.end_s}, before t_req {row.sent_s}", "give epoch seconds")
    return row


def _tool(raw: Any, where: str, dropped: dict[str, int]) -> Tool:
    if not isinstance(raw, dict):
        raise UserError(where, "is not a JSON object", 'write {"name": ...}')
    for key in raw.keys() - TOOL_FIELDS:
        dropped[f"field tools.{key}"] += 1
    duration = take(raw, "dur", float, where, None)
    if duration is not None:
        at_least(duration, 0, "dur", where)
    return Tool(sys.intern(take(raw, "name", str, where)), duration,
                take(raw, "t0", float, where, None), take(raw, "spawned", str, where, None))
