"""One Trace from the journals of all engines of a deployment."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saga_rl.aeg.build import NAN, SessionSpec, StepSpec, build_trace
from saga_rl.aeg.io import write_trace
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.errors import UserError
from saga_rl.runtime.recording.recorder import VERSION

SKEW_S = 1.0
"""How far clocks of several machines are expected to lie apart."""


@dataclass
class _Row:
    """A journal line with its whole context's hashes."""

    data: dict[str, Any]
    hashes: list[int]
    clock: str = ""
    """Which clock its times come from: rows of one clock lie right against each other."""
    agent: int = 0

    @property
    def start(self) -> float:
        return self.data["queued"]

    @property
    def end(self) -> float:
        return self.data["end"]


@dataclass
class _Journals:
    block: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    sessions: dict[str, list[_Row]] = field(default_factory=lambda: defaultdict(list))
    dropped: Counter[str] = field(default_factory=Counter)
    engines: set[tuple[int, str]] = field(default_factory=set)
    """(number, process)."""
    walls: dict[str, float] = field(default_factory=dict)
    """By clock: what its first journal adds to it to get seconds since the epoch; all others are put right by it."""


def merge(folder: str | Path, out: str | Path, keep: bool = False) -> Trace:
    """Write the Trace of the journals in `folder` to `out` and, unless `keep`, remove them.

    A last line that a crash cut short is left out and counted, and so is a step whose times make no sense. Raises
    `UserError` for a folder without journals or without a step, and for a journal of a later version.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("engine-*.jsonl"))
    if not paths:
        raise UserError(folder, "holds no journal", "name the folder FILE.journal that `serve --record FILE` made")
    j = _Journals()
    for path in paths:
        _read(path, j)
    if not j.sessions:
        raise UserError(folder, "holds no finished step", "serve some requests first")
    t0 = min(r.start for rows in j.sessions.values() for r in rows)
    specs = [_session(f"{name}#{n}" if n > 1 else name, rows, t0, j.block)
             for name, all_rows in j.sessions.items() for n, rows in enumerate(_lives(all_rows), 1)]
    meta = TraceMeta(name=Path(out).stem, source="recorded:vllm", hash_block_tokens=j.block, dropped=dict(j.dropped),
                     notes={**j.about, "engines": len(j.engines), "recorded_at_s": t0})
    trace = build_trace(meta, specs)
    write_trace(trace, out)
    if not keep:
        shutil.rmtree(folder)
    return trace


def _read(path: Path, j: _Journals) -> None:
    last: dict[tuple[str, int], list[int]] = {}
    process, engine, clock, shift = path.stem.rsplit("-", 1)[0], None, "", 0.0
    for number, data in _lines(path, j):
        try:
            if "journal" in data:
                if data["journal"] > VERSION:
                    raise UserError(f"{path}, line {number}", f"is of version {data['journal']}", "upgrade saga-rl")
                engine = data["engine"]
                j.engines.add((engine, process))
                j.block, j.about = data["block"], data["about"]
                clock = data.get("clock", "")
                shift = j.walls.setdefault(clock, data["wall"]) - data["wall"] if clock else 0.0
            elif "dropped" in data:
                j.dropped[data["dropped"]] += data.get("n", 1)
            elif engine is None:
                raise UserError(f"{path}, line {number}", "comes before the heading", "remove the file")
            elif data["output"] < 1:
                j.dropped["no output"] += 1
            else:
                name = data["session"] or f"request-{engine}-{data['n']}"
                chain = (name, data["agent"])
                hashes = last.get(chain, [])[: data["same"]] + data["hashes"]
                last[chain] = hashes
                row = _Row(data, hashes, clock or process)
                _shift(row, shift)
                if row.start <= row.end and row.start <= (data["first"] or row.end) <= row.end:
                    j.sessions[name].append(row)
                else:
                    j.dropped["times out of order"] += 1
        except (KeyError, TypeError) as e:
            raise UserError(f"{path}, line {number}", f"is not a step ({e})", "remove the line") from None


def _shift(row: _Row, seconds: float) -> None:
    """Move all its times."""
    for key in ("queued", "scheduled", "first", "end"):
        if row.data[key] is not None:
            row.data[key] = round(row.data[key] + seconds, 6)


def _lines(path: Path, j: _Journals) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as f:
        for number, line in enumerate(f, 1):
            if not line.endswith(b"\n"):
                j.dropped["line cut short"] += 1
                return
            try:
                yield number, json.loads(line)
            except ValueError:
                raise UserError(f"{path}, line {number}", "is not JSON", "remove the line") from None


def _lives(rows: list[_Row]) -> list[list[_Row]]:
    """One list a session: after the announced end of its main agent, that agent's next request begins a name anew."""
    lives: list[list[_Row]] = [[]]
    over = math.inf
    for row in sorted(rows, key=lambda r: (r.start, r.end)):
        main = row.data["agent"] == 0
        if main and row.start >= over:
            lives.append([])
            over = math.inf
        lives[-1].append(row)
        if main and row.data.get("final"):
            over = row.end
    return lives


def _session(name: str, rows: list[_Row], t0: float, block: int) -> SessionSpec:
    rows.sort(key=lambda r: (r.start, r.end))
    if len({r.clock for r in rows}) > 1:
        _mend_skew(rows)
    _number_agents(rows)
    steps: list[StepSpec] = []
    last: dict[int, int] = {}
    caller: dict[int, int] = {}
    """By agent: who called it, as the client numbers agents; -1: nobody said."""
    joined: set[int] = set()
    for i, row in enumerate(rows):
        d, mine = row.data, last.get(row.agent)
        parents = [] if mine is None else [mine]
        done = [s for a, s in last.items() if a != row.agent and s not in joined and rows[s].end <= row.start]
        if mine is None:
            told = caller[row.agent] = d.get("caller", -1)
            done = [s for s in done if rows[s].data["agent"] == told] or done
            parents += [max(done, key=lambda s: rows[s].end)] if done else []
        else:  # sub-agents that ended while it was away are what it waited for
            whose = {d["agent"]} if row.agent else {d["agent"], -1}
            subs = [s for s in done if rows[s].start >= rows[mine].start and caller[rows[s].agent] in whose]
            joined.update(subs)
            parents += subs
        step = StepSpec(
            prompt_tokens=d["prompt"], output_tokens=d["output"], parents=sorted(parents), agent=row.agent,
            tool=d["next_tool"], start_s=row.start - t0, first_token_s=NAN if d["first"] is None else d["first"] - t0,
            end_s=row.end - t0, cached_tokens=d["cached"],
        )
        source = mine if mine is not None else (parents[0] if parents else None)
        prompt = row.hashes[: d["prompt"] // block]
        if source is not None:
            same = _common(rows[source].hashes, prompt)
            if same:
                step.prefix_step, step.prefix_tokens = source, same * block
        step.hashes = prompt[step.prefix_tokens // block:]
        if mine is not None:
            gap = max(row.start - max(rows[p].end for p in parents), 0.0)
            steps[mine].tool = d["tool"] or steps[mine].tool
            if steps[mine].tool is not None:
                steps[mine].tool_s = gap
            else:
                steps[mine].think_s = gap
        steps.append(step)
        last[row.agent] = i
    first = rows[0]
    arrival = first.start - t0
    deadline = first.data["deadline"]
    return SessionSpec(name, arrival, steps, tenant=first.data["tenant"], agent_type=first.data["type"],
                       deadline_s=NAN if deadline is None else arrival + deadline)


def _mend_skew(rows: list[_Row]) -> None:
    """Machines' clocks differ a little: a step that extends the whole context of one of another clock, and seems to
    begin up to `SKEW_S` before that ended, began when it ended."""
    for i, row in enumerate(rows):
        for before in rows[max(i - 8, 0):i]:
            early = before.end - row.start
            if (before.clock != row.clock and before.data["agent"] == row.data["agent"] and 0 < early <= SKEW_S
                    and before.hashes and row.hashes[:len(before.hashes)] == before.hashes):
                _shift(row, early)
    rows.sort(key=lambda r: (r.start, r.end))


def _number_agents(rows: list[_Row]) -> None:
    """Agents by order of first appearance; requests that one agent had in flight together count as several agents."""
    lanes: dict[int, list[tuple[int, float]]] = defaultdict(list)  # agent as named -> (agent here, busy until)
    n = 0
    for row in rows:
        mine = lanes[row.data["agent"]]
        for k, (agent, until) in enumerate(mine):
            if until <= row.start:
                row.agent = agent
                mine[k] = (agent, row.end)
                break
        else:
            row.agent = n
            mine.append((n, row.end))
            n += 1


def _common(a: list[int], b: list[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
