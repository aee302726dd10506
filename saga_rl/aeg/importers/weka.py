"""Importer `weka`: Claude Code sessions of kv-cache-tester, one JSON document a session a line.

- Block ids are local to a session and cover whole 64-token blocks of the prompt. They are not stored: a step's prefix
  is the longest common prefix with an earlier prompt of the session. If it covers all whole blocks of that prompt and
  the new prompt also has room for the output, the step continues that context and the output counts as shared too (the
  ids cannot show the partial last block). Whether sessions share a system prompt is not recorded: none is assumed.
- Times within a session are relative, with a resolution of 1 s. Arrivals are laid out as a Poisson stream.
- Gaps: from the end of a call to the next request; where the end is missing it is estimated. A gap that ends in a
  tool's result counts as tool time (of a tool named `tool`: names are not recorded), else as think time.
- A nested sub-agent's `t` is its end; it began `duration_ms` earlier. Its requests' times count from its beginning.
- `fork_groups.json` beside the file, if present, gives the groups: group name -> session ids.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.importers.graph import (
    Call,
    Placed,
    Run,
    assemble,
    estimated_service_s,
    longest_common_prefix,
    move_session,
    poisson_arrivals,
)
from saga_rl.aeg.importers.reading import Progress, at_least, id_list, json_lines, take
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.errors import UserError

SLACK_S = 1.5
"""Request times are whole seconds, sub-agents' are not."""


def import_trace(path: str | Path, *, rate_per_min: float = 8.0, seed: int = 0, limit: int | None = None,
                 progress: Progress | None = None) -> Trace:
    """The sessions of `path`, at most the first `limit`, arriving at `rate_per_min`."""
    groups = _groups(Path(path).parent / "fork_groups.json")
    counts: dict[str, int] = {}
    sessions: list[SessionSpec] = []
    for where, document in json_lines(path, progress):
        if limit is not None and len(sessions) >= limit:
            break
        session = _session(document, where, groups, counts)
        if session.steps:
            sessions.append(session)
        else:
            counts["sessions_without_requests"] = counts.get("sessions_without_requests", 0) + 1
    for session, arrival in zip(sessions, poisson_arrivals(len(sessions), rate_per_min, seed), strict=True):
        move_session(session, float(arrival))
    dropped = {k: n for k, n in counts.items() if k.startswith("sessions_")}
    notes = {"arrivals": f"Poisson, {rate_per_min:g} sessions/min", "mended": {k: n for k, n in counts.items()
                                                                            if k not in dropped}}
    return build_trace(TraceMeta(Path(path).name.split(".")[0], "imported:weka", seed, 0, dropped, notes), sessions)


def _groups(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text())
        return {member: group for group, members in value.items() for member in members}
    except (ValueError, AttributeError, TypeError) as e:
        raise UserError(path, f"does not map group names to lists of session ids ({e})",
                        "mend it or move it away") from None


def _session(document: dict[str, Any], where: str, groups: dict[str, str], counts: dict[str, int]) -> SessionSpec:
    session_id = take(document, "id", str, where)
    block = at_least(take(document, "block_size", int, where), 1, "block_size", where)
    runs: list[Run] = []
    requests = take(document, "requests", list, where)
    _collect(requests, 0.0, f"{where}, session {session_id!r}", runs, counts)
    if not runs[0].calls:
        return SessionSpec(session_id, 0.0, [])
    origin = min(c.start_s for r in runs for c in r.calls)
    runs = [Run([replace(c, start_s=c.start_s - origin, end_s=c.end_s - origin) for c in r.calls], r.spawn)
            for r in runs]
    steps = _with_prefixes(assemble(runs, SLACK_S), block)
    return SessionSpec(session_id, 0.0, steps, groups.get(session_id, session_id), agent_type="claude-code")


def _collect(requests: list[Any], offset_s: float, where: str, runs: list[Run], counts: dict[str, int]) -> None:
    """Append the run of one agent to `runs`, and its sub-agents' runs after it."""
    me = len(runs)
    run = Run([])
    runs.append(run)
    kinds: list[tuple[str, list[str]]] = []
    subs = []
    for k, r in enumerate(requests):
        at = f"{where}, request {k}"
        if not isinstance(r, dict):
            raise UserError(at, "is not a JSON object", "check that the file is of this format")
        if take(r, "type", str, at) == "subagent":
            subs.append((at, r))
            continue
        run.calls.append(_call(r, offset_s, at, counts))
        kinds.append((take(r, "stop", str, at, ""), take(r, "input_types", list, at, [])))
    for i in range(len(run.calls) - 1):
        call, then = run.calls[i], run.calls[i + 1]
        gap = max(0.0, then.start_s - call.end_s)
        if "tool_result" in kinds[i + 1][1]:
            call.tool, call.tool_s = "tool", gap
        else:
            call.think_s = gap
    for at, r in subs:
        _collect_sub(r, offset_s, me, at, runs, counts)


def _collect_sub(r: dict[str, Any], offset_s: float, me: int, at: str, runs: list[Run], counts: dict[str, int]) -> None:
    inner = take(r, "requests", list, at)
    duration = take(r, "duration_ms", float, at, None)
    if duration is None:
        last = next((q for q in reversed(inner) if isinstance(q, dict)), {})
        duration = 1000.0 * (take(last, "t", float, at, 0.0) + take(last, "api_time", float, at, 0.0))
        counts["subagent_durations_estimated"] = counts.get("subagent_durations_estimated", 0) + 1
    began = offset_s + at_least(take(r, "t", float, at), 0, "t", at) - duration / 1000.0
    child = len(runs)
    _collect(inner, began, at, runs, counts)
    calls = runs[me].calls
    if not runs[child].calls or not calls:
        counts["subagents_without_requests"] = counts.get("subagents_without_requests", 0) + 1
        del runs[child:]
        return
    spawner = max((i for i, c in enumerate(calls) if c.start_s <= began + SLACK_S), default=0)
    runs[child].spawn = (me, spawner)
    calls[spawner].tool = "Agent"


def _call(r: dict[str, Any], offset_s: float, at: str, counts: dict[str, int]) -> Call:
    start = offset_s + at_least(take(r, "t", float, at), 0, "t", at)
    prompt = at_least(take(r, "in", int, at), 1, "in", at)
    out = at_least(take(r, "out", int, at), 0, "out", at)
    api = take(r, "api_time", float, at, None)
    ttft = take(r, "ttft", float, at, None)
    for name, seconds in (("api_time", api), ("ttft", ttft), ("think_time", take(r, "think_time", float, at, None))):
        if seconds is not None:
            at_least(seconds, 0, name, at)
    if out == 0:
        counts["outputs_raised_to_1_token"] = counts.get("outputs_raised_to_1_token", 0) + 1
    if api is None:
        counts["ends_estimated"] = counts.get("ends_estimated", 0) + 1
    end = start + (estimated_service_s(out) if api is None else api)
    return Call(start, end, prompt, max(out, 1), end_known=api is not None,
                hash_ids=np.array(id_list(r, "hash_ids", at), np.int64))


def _with_prefixes(placed: list[Placed], block: int) -> list[StepSpec]:
    steps: list[StepSpec] = []
    for i, p in enumerate(placed):
        ids = np.asarray(p.call.hash_ids)
        best, length = p.previous, 0
        if best >= 0:
            length = longest_common_prefix(ids, np.asarray(placed[best].call.hash_ids))
        if best < 0 or length < len(placed[best].call.hash_ids):
            for j in range(i - 1, -1, -1):
                other = np.asarray(placed[j].call.hash_ids)
                if len(other) > length and np.array_equal(other[:length + 1], ids[:length + 1]):
                    best, length = j, longest_common_prefix(ids, other)
        if length:
            tokens = _shared_tokens(p.call, placed[best].call, length, block)
            steps.append(p.spec(0.0, prefix_step=best, prefix_tokens=tokens))
        else:
            steps.append(p.spec(0.0))
    return steps


def _shared_tokens(call: Call, earlier: Call, blocks: int, block: int) -> int:
    context = earlier.prompt_tokens + earlier.output_tokens
    continues = blocks == len(earlier.hash_ids) and call.prompt_tokens >= context
    return context if continues else min(blocks * block, earlier.prompt_tokens, call.prompt_tokens)
