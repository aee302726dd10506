"""Importer `weka`: Claude Code sessions of kv-cache-tester, one JSON document a session (a line, or a file of lines).

- Block ids with `hash_id_scope` `local` mean something within a session only. They are not stored: a step's prefix is
  the longest common prefix with an earlier prompt of the session. If it covers all whole blocks of that prompt and the
  new prompt also has room for the output, the step continues that context and the output counts as shared too (the ids
  cannot show the partial last block). With scope `global`, ids are kept, so sharing between sessions is exact.
- Times within a session are relative, with a resolution of 1 s. Arrivals are laid out as a Poisson stream.
- Gaps: from the end of a call to the next request; where the end is missing it is estimated. A gap that ends in a
  tool's result counts as tool time (of a tool named `tool`: names are not recorded), else as think time.
- A nested sub-agent's times have two forms, told apart by which one puts all of a session's sub-agents within their
  own duration: its `t` is its end and its requests count from its beginning, or all count from the session's. A
  session that fits neither is left out.
- `fork_groups.json` beside the file, if present, gives the groups: group name -> session ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from saga_rl.aeg.build import SessionSpec, StepSpec
from saga_rl.aeg.importers.building.graph import (
    Call,
    Placed,
    Run,
    assemble,
    estimated_service_s,
    longest_common_prefix,
)
from saga_rl.aeg.importers.format import INTEGER, LIST, TEXT, Format, Reading
from saga_rl.aeg.importers.reading.fields import at_least, id_list, take
from saga_rl.errors import UserError

SLACK_S = 1.5
"""Request times are whole seconds, sub-agents' are not."""


def _read(reading: Reading) -> Iterator[SessionSpec]:
    reading.timed = False
    for file in reading.files:
        groups = _groups(file.parent / "fork_groups.json")
        for where, document in reading.of_file(file):
            session = None
            with reading.left.guard(where):
                session = _session(document, str(where), groups, reading)
            if session and session.steps:
                yield session
            elif session:
                reading.drop("sessions_without_requests")


def _groups(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text())
        return {member: group for group, members in value.items() for member in members}
    except (ValueError, AttributeError, TypeError) as e:
        raise UserError(path, f"does not map group names to lists of session ids ({e})",
                        "mend it or move it away") from None


def _session(document: dict[str, Any], where: str, groups: dict[str, str], reading: Reading) -> SessionSpec:
    session_id = take(document, "id", str, where)
    block = at_least(take(document, "block_size", int, where), 1, "block_size", where)
    shared = take(document, "hash_id_scope", str, where, "local") == "global"
    if shared and reading.block not in (0, block):
        raise UserError(f"{where}, field 'block_size'", f"is {block}, and earlier sessions share ids of "
                        f"{reading.block} tokens", "import the two sizes apart")
    requests = take(document, "requests", list, where)
    counts: dict[str, int] = {}
    runs: list[Run] = []
    _collect(requests, 0.0, _nested_times(requests, where), where, runs, counts)
    for name, n in counts.items():
        reading.assume(name, n)
    if not runs[0].calls:
        return SessionSpec(session_id, 0.0, [])
    reading.block = block if shared else reading.block
    origin = min(c.start_s for r in runs for c in r.calls)
    runs = [Run([replace(c, start_s=c.start_s - origin, end_s=c.end_s - origin) for c in r.calls], r.spawn)
            for r in runs]
    for run in runs:
        for k, call in enumerate(run.calls):
            reading.quality.call(time=True, end=call.end_known)
            if k + 1 < len(run.calls):
                reading.quality.add("tools", "recorded" if call.end_known else "estimated")
    steps = _with_prefixes(assemble(runs, SLACK_S), block, shared)
    return SessionSpec(session_id, 0.0, steps, groups.get(session_id, session_id), agent_type="claude-code")


def _nested_times(requests: list[Any], where: str) -> bool:
    """Whether nested times count from the session's beginning. Raises `UserError` if sub-agents fit neither form."""
    if _fits(requests, 0.0, False, where):
        return False
    if _fits(requests, 0.0, True, where):
        return True
    raise UserError(f"{where}, sub-agents", "have times that lie within their duration neither from their own "
                    "beginning nor from the session's", "check t, duration_ms and the times of their requests")


def _fits(requests: list[Any], began_s: float, absolute: bool, where: str) -> bool:
    """Whether all sub-agents below, of an agent that began at `began_s`, lie within their duration and after it."""
    for r in requests:
        if not isinstance(r, dict) or r.get("type") != "subagent":
            continue
        inner = [q for q in take(r, "requests", list, where) if isinstance(q, dict)]
        starts = [take(q, "t", float, where) for q in inner]
        ends = [t + take(q, "api_time", float, where, 0.0) for t, q in zip(starts, inner, strict=True)
                if q.get("type") != "subagent"]
        t, long = take(r, "t", float, where), _duration_s(r, inner, absolute, where)
        start = t if absolute else began_s + t - long
        first = start if absolute else 0.0
        if start < began_s - SLACK_S or not all(s >= first - SLACK_S for s in starts) or not all(
                e <= first + long + SLACK_S for e in ends) or not _fits(inner, start, absolute, where):
            return False
    return True


def _duration_s(r: dict[str, Any], inner: list[dict[str, Any]], absolute: bool, where: str) -> float:
    """Recorded, else to the end of the last request."""
    duration = take(r, "duration_ms", float, where, None)
    if duration is not None:
        return float(duration) / 1000.0
    last = inner[-1] if inner else {}
    return max(0.0, take(last, "t", float, where, 0.0) + take(last, "api_time", float, where, 0.0)
               - (take(r, "t", float, where) if absolute else 0.0))


def _collect(requests: list[Any], offset_s: float, absolute: bool, where: str, runs: list[Run],
             counts: dict[str, int]) -> None:
    """Append the run of one agent to `runs`, and its sub-agents' runs after it. offset_s: what its times count from."""
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
        _collect_sub(r, offset_s, absolute, me, at, runs, counts)


def _collect_sub(r: dict[str, Any], offset_s: float, absolute: bool, me: int, at: str, runs: list[Run],
                 counts: dict[str, int]) -> None:
    inner = take(r, "requests", list, at)
    if r.get("duration_ms") is None:
        counts["subagent_durations_estimated"] = counts.get("subagent_durations_estimated", 0) + 1
    long = _duration_s(r, [q for q in inner if isinstance(q, dict)], absolute, at)
    t = at_least(take(r, "t", float, at), 0, "t", at)
    began = t if absolute else offset_s + t - long
    child = len(runs)
    _collect(inner, 0.0 if absolute else began, absolute, at, runs, counts)
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


def _with_prefixes(placed: list[Placed], block: int, keep: bool) -> list[StepSpec]:
    """Steps with their prefixes. keep: the ids after it are kept, so it ends at a block."""
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
        if keep and length:
            length = min(length, placed[best].call.prompt_tokens // block, p.call.prompt_tokens // block)
        rest = ids[length:].tolist() if keep else []
        if length:
            tokens = length * block if keep else _shared_tokens(p.call, placed[best].call, length, block)
            steps.append(p.spec(0.0, prefix_step=best, prefix_tokens=tokens, hashes=rest))
        else:
            steps.append(p.spec(0.0, hashes=rest))
    return steps


def _shared_tokens(call: Call, earlier: Call, blocks: int, block: int) -> int:
    context = earlier.prompt_tokens + earlier.output_tokens
    continues = blocks == len(earlier.hash_ids) and call.prompt_tokens >= context
    return context if continues else min(blocks * block, earlier.prompt_tokens, call.prompt_tokens)


FORMAT = Format("weka", "Claude Code sessions of kv-cache-tester (weka), a JSON document each, relative times",
                ({"id": TEXT, "block_size": INTEGER, "requests": LIST},), _read)
