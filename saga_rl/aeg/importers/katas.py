"""Importer `katas`: flat rows of Claude Code's runs through programming katas (agentic_coding_lab), a call a line.

The rows are those of `jsonl`; what is known of this set beyond them:

- `task` (the kata) and `tenant` (the workflow that the agent followed) stand in every row. Sessions of one task and one
  workflow form a group: they repeat each other, so a split must not separate them.
- Agents are Claude Code's: `claude-code` the main one, `claude-code/KIND` a sub-agent, as the importer `claude-code`
  names them. The kind tells which calls share a first text; the trace's agent type is the session's, the main one.
- A session's rows stand together, so a limit ends the reading.
- Left out, and counted as such: the client's settings, sizes in characters, why a call was sent and why it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, sessions_of
from saga_rl.aeg.importers.format import ANY, INTEGER, TEXT, Format, Reading
from saga_rl.aeg.importers.jsonl import Dialect, read_rows

AGENT = "claude-code"
DIALECT = Dialect(required=("task", "tenant"), by_session=True)


def _read(reading: Reading) -> Iterator[SessionSpec]:
    yield from sessions_of(reading, _rows(reading))


def _rows(reading: Reading) -> Iterator[Row]:
    for row in read_rows(reading, DIALECT):
        row.agent_type = sys.intern(_kind(row))
        yield row


def _kind(row: Row) -> str:
    return AGENT if row.agent == "main" else f"{AGENT}/{row.agent_type or 'sub-agent'}"


FORMAT = Format("katas", "flat rows of agentic_coding_lab's Claude Code runs",
                ({"session": TEXT, "in": INTEGER, "out": INTEGER, "task": TEXT, "tenant": TEXT, "trigger": ANY,
                  "cfg": ANY},), _read)
