"""Importer `jsonl`: one LLM call a line, the format to export your own traffic to.

docs/reference/trace-format.md lists the fields. Types are strict; unknown fields are left out and counted in
`meta.dropped`. Calls without `step` are in order of `t_req`, or of their lines where that is missing.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, Tool, sessions_of
from saga_rl.aeg.importers.format import INTEGER, TEXT, Format, Reading
from saga_rl.aeg.importers.reading.fields import at_least, id_list, moment, take
from saga_rl.errors import UserError

FIELDS = frozenset({"session", "agent", "step", "in", "out", "cached", "tools", "t_req", "t_first", "t_end", "gap",
                    "group", "task", "tenant", "agent_type", "model", "deadline", "hash_ids"})
TOOL_FIELDS = frozenset({"name", "t0", "dur", "spawned"})
BLOCK = 16


@dataclass(frozen=True)
class Dialect:
    """How a producer's rows differ from the plain format."""

    required: tuple[str, ...] = ()
    """Strings that its rows always have, beyond those that the plain format requires."""
    by_session: bool = False
    """A session's rows stand together, so reading may stop at the limit."""


PLAIN = Dialect()


def _read(reading: Reading) -> Iterator[SessionSpec]:
    reading.block = reading.hash_block_tokens or BLOCK
    rows = list(read_rows(reading, PLAIN))
    if not any(r.hash_ids for r in rows):
        reading.block = 0
    yield from sessions_of(reading, rows)


def read_rows(reading: Reading, dialect: Dialect) -> Iterator[Row]:
    """The calls; with a dialect whose sessions stand together, of at most the limit's sessions."""
    block = reading.hash_block_tokens or BLOCK
    seen: dict[tuple[str, str], set[int]] = {}
    sessions: set[str] = set()
    current = None
    for number, (where, raw) in enumerate(reading.records()):
        with reading.left.guard(where):
            row = _row(raw, str(where), number, dialect)
            if dialect.by_session and row.session != current and row.session in sessions:
                raise UserError(f"{where}, field 'session'", "is named again, after another session's rows",
                                "sort the rows by session, or import them as jsonl")
            current = row.session
            if dialect.by_session and row.session not in sessions and len(sessions) == reading.limit:
                return
            sessions.add(row.session)
            if "step" in raw:
                steps = seen.setdefault((row.session, row.agent), set())
                if row.step in steps:
                    raise UserError(f"{where}, field 'step'", "is a second time the same for this agent of the session",
                                    "number an agent's calls 0, 1, 2, ...")
                steps.add(row.step)
            if not len(row.hash_ids) * block < row.prompt + block:
                raise UserError(f"{where}, field 'hash_ids'", f"has more ids of {block} tokens than the prompt has "
                                "blocks", "state the block size (--hash-block-tokens)")
            if row.output == 0 or row.prompt == 0:
                reading.drop("calls_without_tokens")
                continue
            _drop_fields(raw, reading)
            yield row


def _drop_fields(raw: dict[str, Any], reading: Reading) -> None:
    """Count what is not read of a row that is taken."""
    for key in raw.keys() - FIELDS:
        reading.drop(f"field {key}")
    for tool in raw.get("tools") or ():
        for key in tool.keys() - TOOL_FIELDS:
            reading.drop(f"field tools.{key}")


def _row(raw: dict[str, Any], where: str, number: int, dialect: Dialect) -> Row:
    for key in dialect.required:
        take(raw, key, str, where)

    def text(name: str, default: Any = "") -> str:
        return sys.intern(take(raw, name, str, where, default))  # few distinct strings, many rows

    tenant, task = text("tenant", "default"), text("task")
    ids = id_list(raw, "hash_ids", where)
    row = Row(
        session=text("session", ...), agent=text("agent", "main"),
        step=at_least(take(raw, "step", int, where), 0, "step", where) if "step" in raw else number,
        prompt=at_least(take(raw, "in", int, where), 0, "in", where),
        output=at_least(take(raw, "out", int, where), 0, "out", where),
        cached=at_least(take(raw, "cached", int, where, -1), -1, "cached", where),
        tools=[_tool(t, f"{where}, tool {k}") for k, t in enumerate(take(raw, "tools", list, where, []))] or (),
        sent_s=moment(raw, "t_req", where, default=None), first_token_s=moment(raw, "t_first", where, default=None),
        end_s=moment(raw, "t_end", where, default=None), gap_s=take(raw, "gap", float, where, None),
        group=text("group") or (f"{task}/{tenant}" if task else ""), tenant=tenant, agent_type=text("agent_type"),
        model=text("model"), deadline_s=moment(raw, "deadline", where, default=None),
        hash_ids=array("q", ids) if ids else ())
    if row.sent_s is not None and row.end_s is not None and row.end_s < row.sent_s:
        raise UserError(f"{where}, field 't_end'", f"is {row.end_s}, before t_req {row.sent_s}", "give epoch seconds")
    return row


def _tool(raw: Any, where: str) -> Tool:
    if not isinstance(raw, dict):
        raise UserError(where, "is not a JSON object", 'write {"name": ...}')
    duration = take(raw, "dur", float, where, None)
    if duration is not None:
        at_least(duration, 0, "dur", where)
    return Tool(sys.intern(take(raw, "name", str, where)), duration,
                moment(raw, "t0", where, default=None), take(raw, "spawned", str, where, None))


FORMAT = Format("jsonl", "one LLM call a line, for your own traffic",
                ({"session": TEXT, "in": INTEGER, "out": INTEGER},), _read, ("hash_block_tokens",))
