"""Importer `codex`: Codex rollouts (`~/.codex/sessions/**/rollout-*.jsonl`), lines of `{timestamp, type, payload}`.

- A call is a `token_count` whose `info` is there and whose totals are new (the same one is often written twice); its
  lengths are `last_token_usage`, where the input includes what was cached.
- It is sent when the line before its first output was written (a user's message, a tool's result) and ends with its
  last output. Tools are calls among its outputs; each lasts until its result is written.
- A rollout that names a thread that spawned it is a sub-agent of that session, if that one is among the files; the
  result of `spawn_agent` says which call it was (the thread's id, or its path), that of `wait_agent` who had ended.
- A turn that was aborted ends what was under way: so does the copy of its parent's last turn that a rollout may begin
  with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, Tool, sessions_of
from saga_rl.aeg.importers.building.roots import root_of
from saga_rl.aeg.importers.format import OBJECT, TEXT, Format, Reading, one_of
from saga_rl.aeg.importers.reading.fields import count, inner, moment, take
from saga_rl.aeg.importers.reading.left_out import Place

CALLS = ("function_call", "custom_tool_call", "local_shell_call", "web_search_call", "tool_search_call")
OUTPUTS = ("reasoning", "message", *CALLS)
SPAWN, WAIT = "spawn_agent", "wait_agent"
BREAKS = ("turn_aborted", "task_started")


@dataclass
class _Rollout:
    """One file as far as it has been read."""

    session: str
    model: str = ""
    rows: list[Row] = field(default_factory=list)
    total: Any = None
    input_s: float | None = None
    """When what the next call answers was written."""
    sent_s: float | None = None
    end_s: float | None = None
    """First and last output of the call that is under way."""
    tools: list[Tool] = field(default_factory=list)
    """Of the call that is under way."""
    waiting: dict[str, Tool] = field(default_factory=dict)
    """Tools without a result so far, by their call's id."""
    path: str = ""
    """What its caller may name it by."""


def _read(reading: Reading) -> Iterator[SessionSpec]:
    parents: dict[str, str] = {}
    rollouts = [_rollout(file, parents, reading) for file in reading.files]
    known = {r.session for r in rollouts}
    parents = {child: parent for child, parent in parents.items() if parent in known}
    paths = {r.path: r.session for r in rollouts if r.path}

    def rows() -> Iterator[Row]:
        for r in sorted(rollouts, key=lambda r: r.rows[0].sent_s or 0.0 if r.rows else 0.0):
            root = root_of(r.session, parents)
            for row in r.rows:
                row.session, row.agent = root, "main" if root == r.session else r.session
                caller = parents.get(r.session, "")
                row.caller = "main" if caller == root else caller
                for tool in row.tools:
                    tool.spawned = paths.get(tool.spawned or "", tool.spawned)
                yield row

    yield from sessions_of(reading, rows())


def _rollout(file: Path, parents: dict[str, str], reading: Reading) -> _Rollout:
    r = _Rollout(file.name.split(".jsonl")[0])
    named = False
    for where, line in reading.of_file(file):
        with reading.left.guard(where):
            kind, payload = take(line, "type", str, where), take(line, "payload", dict, where)
            at = moment(line, "timestamp", where)
            if kind == "session_meta" and not named:
                named = True
                r.session = str(payload.get("id") or payload.get("session_id") or r.session)
                spawn = inner(payload, "source", "subagent", "thread_spawn")
                if isinstance(spawn.get("parent_thread_id"), str):
                    parents[r.session] = spawn["parent_thread_id"]
                r.path = str(spawn.get("agent_path") or "")
            elif kind == "turn_context":
                r.model = str(payload.get("model") or r.model)
            elif kind == "response_item":
                _item(r, payload, at)
            elif kind == "event_msg" and payload.get("type") == "token_count":
                _count(r, payload, at, where, reading)
            elif kind == "event_msg" and payload.get("type") in BREAKS:
                r.sent_s, r.end_s, r.tools = None, None, []
    return r


def _item(r: _Rollout, payload: dict[str, Any], at: float) -> None:
    kind = payload.get("type")
    if kind in OUTPUTS and payload.get("role", "assistant") == "assistant":
        r.sent_s = (at if r.input_s is None else r.input_s) if r.sent_s is None else r.sent_s
        r.end_s = at
        if kind in CALLS:
            tool = Tool(str(payload.get("name") or str(kind).removesuffix("_call")), None, at)
            r.tools.append(tool)
            r.waiting[str(payload.get("call_id") or payload.get("id"))] = tool
        return
    r.input_s = at
    if not str(kind).endswith("_output"):
        return
    call = r.waiting.pop(str(payload.get("call_id")), None)
    if call is not None and call.begin_s is not None:
        call.seconds = max(0.0, at - call.begin_s)
        found = _object(payload.get("output"))
        if call.name == SPAWN:
            name = found.get("agent_id") or found.get("task_name")
            call.spawned = name if isinstance(name, str) else None
        elif call.name == WAIT and isinstance(found.get("status"), dict):
            call.awaited = tuple(found["status"])


def _object(output: Any) -> dict[str, Any]:
    """The JSON object that a tool's result is; empty if it is none."""
    try:
        found = json.loads(output) if isinstance(output, str) else output
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _count(r: _Rollout, payload: dict[str, Any], at: float, where: Place, reading: Reading) -> None:
    info = payload.get("info")
    if not isinstance(info, dict):
        reading.drop("token_counts_without_info")
        return
    total = info.get("total_token_usage")
    if total is not None and total == r.total:
        reading.drop("token_counts_repeated")
        return
    r.total = total
    usage = take(info, "last_token_usage", dict, where)
    prompt, output = count(usage, "input_tokens", where), count(usage, "output_tokens", where)
    if prompt == 0 or output == 0:
        reading.drop("calls_without_tokens")
    else:
        sent = r.sent_s if r.sent_s is not None else at if r.input_s is None else r.input_s
        end = at if r.end_s is None else r.end_s
        r.rows.append(Row("", "main", len(r.rows), prompt, output, count(usage, "cached_input_tokens", where, -1),
                          r.tools, sent, None, max(sent, end), tenant=reading.tenant,
                          agent_type="codex", model=r.model))
    r.sent_s, r.end_s, r.tools = None, None, []


FORMAT = Format("codex", "Codex rollouts: lines of timestamp, type, payload",
                ({"timestamp": TEXT, "type": one_of("session_meta", "turn_context", "response_item", "event_msg"),
                  "payload": OBJECT},), _read, ("tenant",))
