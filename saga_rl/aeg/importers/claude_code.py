"""Importer `claude-code`: a user's own Claude Code transcripts of all versions since 2.0, sub-agents included, and
what `claude -p --output-format stream-json` prints.

Sub-agents are found in files of their own (`agent-*.jsonl` anywhere below, or beside a transcript) or as side chains
inside a transcript. Only sizes, times, tool names and links are read; no text enters the trace.

- A call is an assistant message: all lines with one message id. Lines of one id whose request id or prompt differs are
  different calls (counted: some backends repeat ids). Its prompt is the sum of the input tokens that its usage counts
  (fresh, written to cache, read from cache); the last line's usage is the final one.
- Versions before 2.1.97 wrote output lengths of a few tokens beside kilobytes of content: an output of less than a
  token for 12 characters is estimated at 4 characters a token, and counted.
- A request is sent when its agent's line before it (a user's message, a tool's result) was written; it ends with its
  last line. The first token's time is not recorded. stream-json has no times at all.
- A message that an earlier file already holds (a resumed or forked session copies its past) is left out and counted,
  and the two sessions form one group.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, Tool, sessions_of
from saga_rl.aeg.importers.building.text import CHARACTERS, characters, tokens_of_characters
from saga_rl.aeg.importers.format import ANY, OBJECT, TEXT, Format, Reading, one_of
from saga_rl.aeg.importers.reading.fields import at_least, inner, moment, take
from saga_rl.aeg.importers.reading.left_out import Place
from saga_rl.errors import UserError

_SUFFIX = re.compile(r"\.jsonl(\.gz|\.zst)?$")
INPUTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
MOST_CHARACTERS = 12
"""Characters that a token stands for at most: text of agents has 3 to 5."""


@dataclass(slots=True)
class _Message:
    session: str
    agent: str
    model: str
    file: int
    request: str
    sent_s: float | None
    end_s: float | None
    usage: dict[str, Any]
    where: Place
    characters: int = 0
    tools: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    """Tool use id -> name, time of its line."""


@dataclass
class _Reader:
    """What has been read so far, over all files."""

    reading: Reading
    messages: list[_Message] = field(default_factory=list)
    latest: dict[str, _Message] = field(default_factory=dict)
    lines: dict[int, _Message] = field(default_factory=dict)
    """Hash of (message id, time or uuid of one of its lines) -> the message."""
    finals: dict[str, int] = field(default_factory=dict)
    """Message id -> output tokens that the stream's last event told."""
    started: dict[tuple[str, str], str] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    spawned: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    group: dict[str, str] = field(default_factory=dict)


def _read(reading: Reading) -> Iterator[SessionSpec]:
    files = [f for f in reading.files if _SUFFIX.search(f.name)] or reading.files
    reader = _Reader(reading)
    for k, file in enumerate(files):
        before = len(reader.messages)
        _of_file(file, k, reader)
        reading.dropped["files_without_calls"] += len(reader.messages) == before
    yield from sessions_of(reading, _rows(reader))


def _beside(path: Path) -> list[Path]:
    stem = _SUFFIX.sub("", path.name)
    folders = [path.parent / stem, path.parent / f"{stem}-subagents"]
    return sorted(f for d in folders if d.is_dir() for f in d.rglob("*.jsonl*") if _SUFFIX.search(f.name))


def _of_file(file: Path, number: int, reader: _Reader) -> None:
    last: dict[tuple[str, str], float | None] = {}
    root: dict[str, str] = {}
    for where, line in reader.reading.of_file(file):
        with reader.reading.left.guard(where):
            _line(line, where, number, last, root, reader)
    note = file.with_name(_SUFFIX.sub("", file.name) + ".meta.json")
    if note.exists():
        with reader.reading.left.guard(Place(str(note), 1)):
            _meta(note, _SUFFIX.sub("", file.name).removeprefix("agent-"), reader)


def _line(line: dict[str, Any], where: Place, number: int, last: dict[tuple[str, str], float | None],
          root: dict[str, str], reader: _Reader) -> None:
    kind = take(line, "type", str, where)
    if kind not in ("user", "assistant", "stream_event"):
        reader.reading.drop(f"lines of type {kind[:40]}")
        return
    streamed = "sessionId" not in line and "session_id" in line
    session = take(line, "session_id" if streamed else "sessionId", str, where)
    reader.group.setdefault(session, session)
    uuid = take(line, "uuid", str, where, "")
    root[uuid] = root.get(take(line, "parentUuid", str, where, ""), uuid)
    agent = "main"
    if streamed:
        caller = take(line, "parent_tool_use_id", str, where, None)
        agent = caller or "main"
        if caller:
            reader.spawned[caller] = caller
    elif line.get("isSidechain") is True:
        agent = take(line, "agentId", str, where, f"sidechain-{root[uuid]}")
    if kind == "stream_event":
        _event(line, session, agent, reader)
        return
    at = moment(line, "timestamp", where, default=None if streamed else ...)
    message = take(line, "message", dict, where)
    if kind == "user":
        _user(line, message, at, reader)
    elif not _assistant(line, message, session, agent, at, last.get((session, agent)), where, number, reader):
        return
    last[session, agent] = at


def _event(line: dict[str, Any], session: str, agent: str, reader: _Reader) -> None:
    event = inner(line, "event")
    if event.get("type") == "message_start":
        reader.started[session, agent] = str(inner(event, "message").get("id"))
    output = inner(event, "usage").get("output_tokens")
    if event.get("type") == "message_delta" and isinstance(output, int):
        reader.finals[reader.started.get((session, agent), "")] = output


def _parts(message: dict[str, Any], reader: _Reader) -> list[dict[str, Any]]:
    """The content's parts: a list, text, or parts spread over numbered keys."""
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if content is None:
        numbered = [message[k] for k in sorted((k for k in message if k.isdigit()), key=int)]
        reader.reading.assumed["messages_whose_parts_are_numbered_keys"] += bool(numbered)
        content = numbered
    return [p for p in content if isinstance(p, dict)] if isinstance(content, list) else []


def _user(line: dict[str, Any], message: dict[str, Any], at: float | None, reader: _Reader) -> None:
    for part in _parts(message, reader):
        if part.get("type") == "tool_result":
            use = str(part.get("tool_use_id"))
            if at is not None:
                reader.results.setdefault(use, at)
            agent = inner(line, "toolUseResult").get("agentId")
            if isinstance(agent, str):
                reader.spawned[use] = agent


def _assistant(line: dict[str, Any], message: dict[str, Any], session: str, agent: str, at: float | None,
               last_s: float | None, where: Place, number: int, reader: _Reader) -> bool:
    """Add a line to its call; False if an earlier file holds it."""
    request, uuid = take(line, "requestId", str, where, ""), take(line, "uuid", str, where, "")
    key = take(message, "id", str, where, "") or request or uuid or f"{where}"
    usage = take(message, "usage", dict, where, {})
    stamp = hash((key, at if at is not None else uuid))
    known = reader.lines.get(stamp) or reader.latest.get(key)
    if known is not None and not _same(known, request, usage):
        reader.reading.assume("message_ids_used_again_by_another_call")
        known = None
    if known is not None and known.file != number:
        if stamp in reader.lines or (request and request == known.request):
            reader.reading.drop("lines_copied_from_another_file")
            reader.group[session] = reader.group[known.session]
            return False
        reader.reading.assume("message_ids_used_again_by_another_call")
        known = None
    if known is None:
        sent = at if last_s is None or at is None else min(last_s, at)
        known = _Message(session, agent, take(message, "model", str, where, ""), number, request, sent, at, {}, where)
        reader.messages.append(known)
    reader.latest[key] = reader.lines[stamp] = known
    if at is not None and known.end_s is not None:
        known.end_s = max(known.end_s, at)
    if usage:
        known.usage = usage | ({"output_tokens": reader.finals.pop(key)} if key in reader.finals else {})
        known.where = where
    for part in _parts(message, reader):
        known.characters += characters(part)
        if part.get("type") == "tool_use":
            known.tools[take(part, "id", str, where)] = (take(part, "name", str, where), at)
    return True


def _same(known: _Message, request: str, usage: dict[str, Any]) -> bool:
    """Whether a line with a call's message id is of that call."""
    if request and known.request:
        return request == known.request
    return not usage or not known.usage or all(usage.get(k) == known.usage.get(k) for k in INPUTS)


def _meta(note: Path, agent: str, reader: _Reader) -> None:
    """The note beside a sub-agent's transcript: its type, and the tool use that started it."""
    try:
        value = json.loads(note.read_text())
    except ValueError as e:
        raise UserError(f"{note}, line 1", f"is not JSON ({e})", "mend it or move it away") from None
    if isinstance(value, dict):
        if isinstance(value.get("toolUseId"), str):
            reader.spawned[value["toolUseId"]] = agent
        if isinstance(value.get("agentType"), str):
            reader.types[agent] = value["agentType"]


def _rows(reader: _Reader) -> Iterator[Row]:
    reading = reader.reading
    count: dict[tuple[str, str], int] = defaultdict(int)
    for m in sorted(reader.messages, key=lambda m: (m.sent_s or 0.0, m.end_s or 0.0)):
        row = None
        with reading.left.guard(m.where):
            row = _row(m, count[m.session, m.agent], reader)
        if row:
            count[m.session, m.agent] += 1
            yield row


def _row(m: _Message, step: int, reader: _Reader) -> Row | None:
    if not m.usage:
        raise UserError(f"{m.where}, field 'usage'", "is missing in all lines of the message",
                        "leave the call out")
    parts = [at_least(take(m.usage, k, int, m.where, 0), 0, k, m.where) for k in INPUTS]
    output = at_least(take(m.usage, "output_tokens", int, m.where, 0), 0, "output_tokens", m.where)
    guessed = sum(parts) > 0 and output * MOST_CHARACTERS < m.characters
    if guessed:
        reader.reading.assume(f"outputs_estimated_from_content_at_{CHARACTERS}_characters_a_token")
        output = tokens_of_characters(m.characters)
    if sum(parts) == 0 or output == 0:
        reader.reading.drop("calls_without_tokens")
        return None
    tools = [Tool(name, max(0.0, reader.results[use] - at) if use in reader.results and at is not None else None, at,
                  reader.spawned.get(use)) for use, (name, at) in m.tools.items()]
    kind = "claude-code" if m.agent == "main" else f"claude-code/{reader.types.get(m.agent, 'sub-agent')}"
    return Row(m.session, m.agent, step, sum(parts), output, parts[2], tools or (), m.sent_s, None, m.end_s,
               group=reader.group[m.session], tenant=reader.reading.tenant, agent_type=kind, model=m.model,
               lengths="estimated" if guessed else "recorded")


_KIND = {"type": one_of("user", "assistant"), "message": OBJECT}
FORMAT = Format("claude-code", "Claude Code's transcripts, or its stream-json output",
                ({**_KIND, "sessionId": TEXT, "timestamp": TEXT},
                 {**_KIND, "session_id": TEXT, "parent_tool_use_id": ANY}),
                _read, ("tenant",), _beside)
