"""Importer `claude-code`: a user's own Claude Code transcripts (JSON Lines, plain or gzip), sub-agents included.

`path` is one transcript or a folder of them, such as a project under ~/.claude/projects. Sub-agents are found in files
of their own (`agent-*.jsonl` anywhere below) or as side chains inside a transcript. Only sizes, times, tool names and
links are read; no text enters the trace.

- A call is an assistant message: all lines with one message id. Its prompt is the sum of the input tokens that its
  usage counts (fresh, written to cache, read from cache); the last line's usage is the final one.
- A request is sent when its agent's line before it (a user's message, a tool's result) was written; it ends with its
  last line. The first token's time is not recorded.
- A message that an earlier file already holds (a resumed or forked session copies its past) is left out and counted,
  and the two sessions form one group.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from saga_rl.aeg.importers.flat import Assembler, Row, Tool
from saga_rl.aeg.importers.reading import Progress, at_least, json_lines, take
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.errors import UserError

_SUFFIX = re.compile(r"\.jsonl(\.gz)?$")


@dataclass
class _Message:
    session: str
    agent: str
    model: str
    sent_s: float
    end_s: float
    usage: dict[str, Any]
    where: str
    tools: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Tool use id -> name, time of its line."""


@dataclass
class _Agent:
    last_s: float | None = None
    """Time of the agent's last line: a new call was sent then."""


@dataclass
class _Reader:
    """What has been read so far, over all files."""

    messages: dict[str, _Message] = field(default_factory=dict)
    file_of: dict[str, Path] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    spawned: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    group: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def import_trace(path: str | Path, *, rate_per_min: float | None = None, seed: int = 0, limit: int | None = None,
                 tenant: str = "default", progress: Progress | None = None) -> Trace:
    """The sessions below `path` (at most the first `limit` by time), at recorded times unless `rate_per_min` lays their
    arrivals out anew."""
    files = _files(Path(path))
    reader = _Reader()
    for k, file in enumerate(files):
        before = len(reader.messages)
        _read(file, reader)
        reader.dropped["files_without_calls"] += len(reader.messages) == before
        if progress:
            progress(k + 1, len(files))
    rows = _rows(reader, tenant)
    if limit is not None:
        keep = set(list(dict.fromkeys(r.session for r in sorted(rows, key=lambda r: r.sent_s or 0.0)))[:limit])
        rows = [r for r in rows if r.session in keep]
    dropped = {k: n for k, n in sorted(reader.dropped.items()) if n}
    meta = TraceMeta(Path(path).resolve().name.split(".")[0], "imported:claude-code", seed, 0, dropped)
    return Assembler(1).trace(rows, meta, rate_per_min=rate_per_min, seed=seed)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(path, "no such file or folder", "check the path")
    if path.is_file():
        stem = _SUFFIX.sub("", path.name)
        inside = [f for name in (stem, f"{stem}-subagents") for f in _below(path.parent / name)]
        return [path, *inside]
    found = _below(path)
    if not found:
        raise UserError(path, "holds no .jsonl or .jsonl.gz file", "name a transcript, or a folder of transcripts")
    return found


def _below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.rglob("*.jsonl*") if _SUFFIX.search(f.name) and f.is_file())


def _read(file: Path, reader: _Reader) -> None:
    agents: dict[tuple[str, str], _Agent] = defaultdict(_Agent)
    root: dict[str, str] = {}
    for where, line in json_lines(file):
        kind = line.get("type")
        if kind not in ("user", "assistant"):
            reader.dropped[f"lines of type {str(kind)[:40]}"] += 1
            continue
        session = take(line, "sessionId", str, where)
        reader.group.setdefault(session, session)
        uuid = take(line, "uuid", str, where, "")
        root[uuid] = root.get(take(line, "parentUuid", str, where, ""), uuid)
        agent = "main"
        if line.get("isSidechain") is True:
            agent = take(line, "agentId", str, where, f"sidechain-{root[uuid]}")
        at = _epoch_s(take(line, "timestamp", str, where), where)
        message = take(line, "message", dict, where)
        state = agents[session, agent]
        if kind == "user":
            _user(line, message, at, reader)
        elif not _assistant(message, session, agent, at, state.last_s, where, file, reader):
            continue
        state.last_s = at
    _meta(file, reader)


def _user(line: dict[str, Any], message: dict[str, Any], at: float, reader: _Reader) -> None:
    content = message.get("content")
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and part.get("type") == "tool_result":
            use = str(part.get("tool_use_id"))
            reader.results.setdefault(use, at)
            result = line.get("toolUseResult")
            if isinstance(result, dict) and isinstance(result.get("agentId"), str):
                reader.spawned[use] = result["agentId"]


def _assistant(message: dict[str, Any], session: str, agent: str, at: float, last_s: float | None, where: str,
               file: Path, reader: _Reader) -> bool:
    key = take(message, "id", str, where)
    known = reader.messages.get(key)
    if known is not None and reader.file_of[key] != file:
        reader.dropped["lines_copied_from_another_file"] += 1
        reader.group[session] = reader.group[known.session]
        return False
    if known is None:
        sent = at if last_s is None else min(last_s, at)
        known = _Message(session, agent, take(message, "model", str, where, ""), sent, at, {}, where)
        reader.messages[key], reader.file_of[key] = known, file
    known.end_s = max(known.end_s, at)
    known.usage = take(message, "usage", dict, where)
    known.where = where
    for part in take(message, "content", list, where, []):
        if isinstance(part, dict) and part.get("type") == "tool_use":
            known.tools[take(part, "id", str, where)] = (take(part, "name", str, where), at)
    return True


def _meta(file: Path, reader: _Reader) -> None:
    """The note beside a sub-agent's transcript: its type, and the tool use that started it."""
    note = file.with_name(_SUFFIX.sub("", file.name) + ".meta.json")
    if not note.exists():
        return
    try:
        value = json.loads(note.read_text())
    except ValueError as e:
        raise UserError(note, f"is not JSON ({e})", "mend it or move it away") from None
    agent = _SUFFIX.sub("", file.name).removeprefix("agent-")
    if isinstance(value, dict):
        if isinstance(value.get("toolUseId"), str):
            reader.spawned[value["toolUseId"]] = agent
        if isinstance(value.get("agentType"), str):
            reader.types[agent] = value["agentType"]


def _rows(reader: _Reader, tenant: str) -> list[Row]:
    rows = []
    count: dict[tuple[str, str], int] = defaultdict(int)
    for m in sorted(reader.messages.values(), key=lambda m: (m.sent_s, m.end_s)):
        parts = [at_least(take(m.usage, k, int, m.where, 0), 0, k, m.where)
                 for k in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")]
        output = at_least(take(m.usage, "output_tokens", int, m.where, 0), 0, "output_tokens", m.where)
        if sum(parts) == 0 or output == 0:
            reader.dropped["calls_without_tokens"] += 1
            continue
        tools = [Tool(name, max(0.0, reader.results[use] - at) if use in reader.results else None, at,
                      reader.spawned.get(use)) for use, (name, at) in m.tools.items()]
        kind = "claude-code" if m.agent == "main" else f"claude-code/{reader.types.get(m.agent, 'sub-agent')}"
        step = count[m.session, m.agent]
        count[m.session, m.agent] += 1
        rows.append(Row(m.session, m.agent, step, sum(parts), output, parts[2], tools, m.sent_s, None, m.end_s,
                        group=reader.group[m.session], tenant=tenant, agent_type=kind, model=m.model))
    return rows


def _epoch_s(text: str, where: str) -> float:
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise UserError(f"{where}, field 'timestamp'", f"is {text[:40]!r}", "give an ISO 8601 time") from None
    if moment.tzinfo is None:
        raise UserError(f"{where}, field 'timestamp'", f"is {text[:40]!r}, without a time zone", "add Z or an offset")
    return moment.timestamp()
