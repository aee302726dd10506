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
from pathlib import Path

from saga_rl.aeg.importers.flat import Assembler, Row
from saga_rl.aeg.importers.jsonl import Dialect, read_rows
from saga_rl.aeg.importers.reading import Progress
from saga_rl.aeg.trace import Trace, TraceMeta

AGENT = "claude-code"
DIALECT = Dialect(required=("task", "tenant"), by_session=True)


def import_trace(path: str | Path, *, rate_per_min: float | None = None, seed: int = 0, limit: int | None = None,
                 progress: Progress | None = None) -> Trace:
    """The calls of `path`, at most its first `limit` sessions, at recorded times unless `rate_per_min` lays their
    arrivals out anew (the recorded ones are spread over months)."""
    rows, dropped = read_rows(path, DIALECT, limit, 1, progress)
    for row in rows:
        row.agent_type = sys.intern(_kind(row))
    meta = TraceMeta("katas", "imported:katas", seed, 0, dropped)
    return Assembler(1).trace(rows, meta, rate_per_min=rate_per_min, seed=seed)


def _kind(row: Row) -> str:
    return AGENT if row.agent == "main" else f"{AGENT}/{row.agent_type or 'sub-agent'}"
