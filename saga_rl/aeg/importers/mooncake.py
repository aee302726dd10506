"""Importer `mooncake`: one request a line with `timestamp` (ms), `input_length`, `output_length`, `hash_ids`.

Ids are global, one for each 512 tokens of the prompt (the last one may stand for a partial block): equal ids mean equal
content up to the end of that block. They are kept, so sharing between sessions is exact.

There are no session ids. A request continues a session if its ids begin with all whole blocks of that session's last
request (at least one; the longest such prompt wins, the latest among equals); otherwise it begins a session. A second
request that continues an earlier point of a session is therefore a session of its own, which shares by its ids.
The think gap is the time between the two requests less an estimate of the first one's service.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.importers.graph import estimated_service_s, move_session, poisson_arrivals
from saga_rl.aeg.importers.reading import Progress, at_least, id_list, json_lines, take
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.errors import UserError

BLOCK = 512


@dataclass
class _Open:
    session: SessionSpec
    ids: list[int]
    sent_s: float
    output: int


def import_trace(path: str | Path, *, rate_per_min: float | None = None, seed: int = 0, limit: int | None = None,
                 progress: Progress | None = None) -> Trace:
    """The requests of `path` (at most the first `limit`) as sessions, at their recorded times unless `rate_per_min`
    lays their arrivals out anew."""
    sessions: list[SessionSpec] = []
    tips: dict[tuple[int, int], list[_Open]] = {}  # (whole blocks, id of the last of them) -> sessions that end there
    dropped: dict[str, int] = {}
    before = 0.0
    for n, (where, row) in enumerate(json_lines(path, progress)):
        if limit is not None and n >= limit:
            break
        at = at_least(take(row, "timestamp", float, where), 0, "timestamp", where) / 1000.0
        prompt = at_least(take(row, "input_length", int, where), 0, "input_length", where)
        output = at_least(take(row, "output_length", int, where), 0, "output_length", where)
        take(row, "hash_ids", list, where)
        ids = id_list(row, "hash_ids", where)
        if at < before:
            raise UserError(f"{where}, field 'timestamp'", f"is {row['timestamp']}, before the previous line's",
                            "sort the lines by timestamp")
        if not prompt // BLOCK <= len(ids) <= -(-prompt // BLOCK):
            raise UserError(f"{where}, field 'hash_ids'", f"has {len(ids)} ids for {prompt} tokens",
                            f"give one id for each {BLOCK} tokens")
        before = at
        if prompt == 0 or output == 0:
            dropped["requests_without_tokens"] = dropped.get("requests_without_tokens", 0) + 1
            continue
        whole = prompt // BLOCK
        found = _continued(tips, ids, whole)
        if found is None:
            step = StepSpec(prompt, output, hashes=ids, start_s=at)
            session = SessionSpec(f"request-{n:06d}", at, [step], agent_type="chat")
            sessions.append(session)
        else:
            opened, shared = found
            session = opened.session
            last = len(session.steps) - 1
            session.steps[-1].think_s = max(0.0, at - opened.sent_s - estimated_service_s(opened.output))
            session.steps.append(StepSpec(prompt, output, (last,), prefix_step=last, prefix_tokens=shared * BLOCK,
                                          hashes=ids[shared:], start_s=at))
        if whole:
            tips.setdefault((whole, ids[whole - 1]), []).append(_Open(session, ids[:whole], at, output))
    if rate_per_min is not None:
        for session, arrival in zip(sessions, poisson_arrivals(len(sessions), rate_per_min, seed), strict=True):
            move_session(session, float(arrival))
    notes = {"arrivals": "recorded" if rate_per_min is None else f"Poisson, {rate_per_min:g} sessions/min",
             "sessions": "inferred from hash prefixes"}
    meta = TraceMeta(Path(path).name.split(".")[0], "imported:mooncake", seed, BLOCK, dropped, notes)
    return build_trace(meta, sessions)


def _continued(tips: dict[tuple[int, int], list[_Open]], ids: list[int], whole: int) -> tuple[_Open, int] | None:
    for n in range(whole, 0, -1):
        opened = tips.get((n, ids[n - 1]), [])
        for k in range(len(opened) - 1, -1, -1):
            if opened[k].ids == ids[:n]:
                return opened.pop(k), n
    return None
