"""Importer `dynamo`: Dynamo's request traces (`dynamo.request.trace.v1`): `request_end` and tool events, a line each,
bare or in a sink's envelope.

- A request is sent at `request_received_ms` and ends at `event_time_unix_ms`. Its block hashes stand for a block and
  all before it; they are kept. All requests need one block size.
- `agent_context` names the session and its parent: a session with a parent is a sub-agent of the session at the top.
  Requests without it are sessions of their own, joined by their hashes as in `mooncake`. Overlapping requests of one
  session are taken for those of sub-agents.
- Tool events belong to their session's latest request that had ended when the tool began.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import SLACK_S, Row, Tool, sessions_of
from saga_rl.aeg.importers.building.requests import Request, sessions_from
from saga_rl.aeg.importers.building.roots import root_of
from saga_rl.aeg.importers.format import TEXT, Format, Reading, one_of
from saga_rl.aeg.importers.reading.fields import count, id_list, inner, moment, seconds, take
from saga_rl.aeg.importers.reading.left_out import Place
from saga_rl.errors import UserError

SCHEMA = "dynamo.request.trace.v1"


def _read(reading: Reading) -> Iterator[SessionSpec]:
    parents: dict[str, str] = {}
    rows: list[Row] = []
    loose: list[Request] = []
    tools: list[tuple[str, float, Tool]] = []
    for where, record in reading.records():
        with reading.left.guard(where):
            _event(_bare(record), where, rows, loose, tools, parents, reading)
    _give(tools, rows, reading)
    for row in rows:
        own = row.session
        row.session = root_of(own, parents)
        row.agent = "main" if row.session == own else own
        above = parents.get(own, "")
        row.caller = "main" if above == row.session else above
    yield from sessions_of(reading, rows, split_overlaps=True)
    if reading.limit is None or not rows:
        yield from sessions_from(reading, loose)


def _bare(record: dict[str, Any]) -> dict[str, Any]:
    for name in ("event", "record", "data"):
        if "schema" not in record and inner(record, name).get("schema"):
            return inner(record, name)
    return record


def _event(record: dict[str, Any], where: Place, rows: list[Row], loose: list[Request],
           tools: list[tuple[str, float, Tool]], parents: dict[str, str], reading: Reading) -> None:
    kind, agent = take(record, "event_type", str, where), inner(record, "agent_context")
    session = agent.get("session_id")
    if isinstance(session, str) and isinstance(agent.get("parent_session_id"), str):
        parents[session] = agent["parent_session_id"]
    if kind in ("tool_end", "tool_error", "tool"):
        _tool(record, session, where, tools, reading)
    elif kind == "request_end":
        _request(record, session if isinstance(session, str) else "", where, rows, loose, reading)
    else:
        reading.drop(f"events of type {kind[:40]}")


def _tool(record: dict[str, Any], session: Any, where: Place, tools: list[tuple[str, float, Tool]],
          reading: Reading) -> None:
    tool = take(record, "tool", dict, where)
    end = moment(tool, "ended_at_unix_ms", where, 1000.0, None) or moment(record, "event_time_unix_ms", where, 1000.0)
    long = seconds(tool, "duration_ms", where, 1000.0, None)
    begin = moment(tool, "started_at_unix_ms", where, 1000.0, None)
    begin = (end - (long or 0.0)) if begin is None else begin
    name = str(tool.get("tool_class") or tool.get("tool_name") or tool.get("name") or "tool")
    if isinstance(session, str):
        tools.append((session, begin, Tool(name, max(0.0, end - begin) if long is None else long, begin)))
    else:
        reading.drop("tool_events_without_a_session")


def _request(record: dict[str, Any], session: str, where: Place, rows: list[Row], loose: list[Request],
             reading: Reading) -> None:
    request = take(record, "request", dict, where)
    replay = inner(request, "replay")
    ids = array("q", id_list(replay, "input_sequence_hashes", where)) if replay else array("q")
    prompt = count(replay, "input_length", where) if "input_length" in replay else count(request, "input_tokens", where)
    output = count(request, "output_tokens", where)
    if prompt == 0 or output == 0:
        reading.drop("requests_without_tokens")
        return
    if ids:
        block = count(replay, "trace_block_size", where)
        reading.block = reading.block or block
        if block != reading.block or block < 1:
            raise UserError(f"{where}, field 'trace_block_size'", f"is {block}, and {reading.block} before",
                            "import the two sizes apart")
        if len(ids) * block >= prompt + block:
            raise UserError(f"{where}, field 'input_sequence_hashes'", "has more ids than the prompt has blocks",
                            "check trace_block_size")
    end = moment(record, "event_time_unix_ms", where, 1000.0)
    long = seconds(request, "total_time_ms", where, 1000.0, None)
    sent = moment(request, "request_received_ms", where, 1000.0, None)
    sent = (end if long is None else end - long) if sent is None else sent
    if not session:
        loose.append(Request(sent, prompt, output, ids, number=len(rows) + len(loose)))
        return
    first = seconds(request, "ttft_ms", where, 1000.0, None)
    cached = min(count(request, "cached_tokens", where, -1), prompt)
    rows.append(Row(session, "main", len(rows), prompt, output, cached, (), sent,
                    None if first is None else sent + first, max(sent, end), agent_type="agent",
                    model=str(request.get("model") or ""), hash_ids=ids))


def _give(tools: list[tuple[str, float, Tool]], rows: list[Row], reading: Reading) -> None:
    by_session: dict[str, list[Row]] = {}
    for row in rows:
        by_session.setdefault(row.session, []).append(row)
    for session, begin, tool in tools:
        before = [r for r in by_session.get(session, []) if (r.end_s or 0.0) <= begin + SLACK_S]
        if before:
            row = max(before, key=lambda r: r.end_s or 0.0)
            row.tools = [*row.tools, tool]
        else:
            reading.drop("tool_events_before_any_request")


_KIND = one_of("request_end", "request_payload", "tool_start", "tool_end", "tool_error", "tool")
FORMAT = Format("dynamo", "Dynamo's request traces (dynamo.request.trace.v1)",
                ({"schema": one_of(SCHEMA), "event_type": _KIND},
                 {"event.schema": one_of(SCHEMA), "event.event_type": _KIND, "timestamp": TEXT},
                 {"event.schema": one_of(SCHEMA), "event.event_type": _KIND}), _read)
