"""The folder of an experiment: what it is made of (`experiment.json`), and a journal of finished cells, a line each.

The journal is only ever appended to. A run that is killed leaves at most one line without its end, which is cut off
when the folder is opened again; a line that was damaged otherwise stays where it is and counts for nothing. What those
lines held is run again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.experiments.cell import Cell, Result
from saga_rl.files import LOCK, locked, write_json

HEAD = "experiment.json"
RUN = "run"
Line = dict[str, Any]


def _nested(cell: Cell, result: Result, seconds: float) -> Line:
    return {"key": cell.key, "spec": cell.spec, "result": result, "seconds": seconds}


def _entry(line: Line) -> tuple[str, Result, float]:
    return line["key"], line["result"], line["seconds"]


@dataclass(frozen=True)
class Kind:
    """A kind of experiment.

    name: in `experiment.json`; noun: in messages; journal: its file. inputs: (key in `experiment.json`, noun) of named
    things that cells read, such as traces. anew: what a person may do where the folder is of other input. line, entry:
    a finished cell as a line of the journal, and a line as (key, result, seconds). before: the head of a folder of an
    earlier format, which has no `experiment.json`; None where there is none.
    """

    name: str
    noun: str
    journal: str = "cells.jsonl"
    format: int = 1
    inputs: tuple[str, str] = ("traces", "trace")
    anew: str = "give --fresh to begin anew there (the old folder is kept beside it), or another --out"
    line: Callable[[Cell, Result, float], Line] = _nested
    entry: Callable[[Line], tuple[str, Result, float]] = _entry
    before: Callable[[Path], Head | None] = field(default=lambda out: None)


@dataclass(frozen=True)
class Head:
    """What the cells of a folder have in common. code: digest, "" where it is not asked for. what: settings. inputs: by
    name; `identity` in an entry is what the cells depend on, the rest of it may change."""

    code: str = ""
    what: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def as_json(self, kind: Kind) -> dict[str, Any]:
        """The value of `experiment.json`."""
        more = {"code": self.code, "what": dict(self.what), kind.inputs[0]: dict(self.inputs)}
        return {"kind": kind.name, "format": kind.format} | {k: v for k, v in more.items() if v}


def state_of(out: Path, kind: Kind) -> str:
    """`new` (absent or empty) or `ours`. `UserError` for anything else, and where the folder cannot be made."""
    if not out.exists():
        if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
            raise UserError(out, "cannot be made: its parent is no folder that can be written to",
                            "name a folder in a folder that exists")
        return "new"
    if not out.is_dir():
        raise UserError(out, "is no folder", f"name a new folder, or one of an earlier {kind.noun}")
    if not os.access(out, os.W_OK):
        raise UserError(out, "cannot be written to", "check its permissions")
    if all(path.name == LOCK for path in out.iterdir()):
        return "new"
    read_head(out, kind)
    return "ours"


def read_head(out: Path, kind: Kind) -> Head:
    """What `experiment.json` says. `UserError` if the folder holds something else, or another format."""
    try:
        head = json.loads((out / HEAD).read_text(encoding="utf-8"))
        name, version = head["kind"], head["format"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None if (out / HEAD).exists() else kind.before(out)
        if found is None:
            raise UserError(out, f"holds something else than a {kind.noun}", "name a new or empty folder") from None
        return found
    if name != kind.name or version != kind.format:
        raise UserError(out, f"holds {name!r} of format {version}, not {kind.name!r} of format {kind.format}",
                        "name a new or empty folder")
    return Head(head.get("code", ""), head.get("what", {}), head.get(kind.inputs[0], {}))


def check_same(out: Path, kind: Kind, now: Head) -> Head:
    """The folder's head. `UserError` that names what is other now than when its cells were run: the code, a setting, or
    an input. Inputs that only one of the two has are no difference."""
    then, told = read_head(out, kind), json.loads(json.dumps(now.what))
    changed = [] if then.code == now.code else [f"the code ({then.code[:12]} then, {now.code[:12]} now)"]
    changed += [f"{k} was {then.what.get(k)!r}, is {told.get(k)!r}"[:200] for k in sorted({*then.what, *told})
                if then.what.get(k) != told.get(k)]
    for name, entry in now.inputs.items():
        was, is_now = then.inputs.get(name, entry)["identity"], entry["identity"]
        if was != is_now:
            sums = [x.get("sha256") and x["sha256"][:12] for x in (was, is_now)]
            changed.append(f"{kind.inputs[1]} {name!r}" + (f" ({sums[0]} then, {sums[1]} now)" if sums[0] != sums[1]
                                                           else " (its source or options)"))
    if changed:
        raise UserError(out, "was begun with other input; changed since: " + ", ".join(changed), kind.anew)
    return then


def move_aside(out: Path, kind: Kind) -> Path:
    """Rename the folder to the first free NAME.old-N and return that. `UserError` if another process has it open."""
    with locked(out, kind.noun):
        n = 1
        while (target := out.with_name(f"{out.name}.old-{n}")).exists():
            n += 1
        out.rename(target)
    return target


class Journal:
    """The journal of the folder `out`, which need not be there. results, seconds: by key, of every cell that it holds;
    notes: its other lines, in order; cut: whether it ended in the middle of a line; damaged: lines that could not be
    read. Nothing is written before `add` or `note`; only `opened` gives one that may write."""

    def __init__(self, out: Path, kind: Kind) -> None:
        self.out, self.path, self.kind = out, out / kind.journal, kind
        self.results: dict[str, Result] = {}
        self.seconds: dict[str, float] = {}
        self.notes: list[Line] = []
        self.damaged = 0
        data = self.path.read_bytes() if self.path.exists() else b""
        self.whole = data.rfind(b"\n") + 1
        """Bytes of whole lines."""
        self.cut = self.whole < len(data)
        for text in data[:self.whole].splitlines():
            try:
                self._accept(json.loads(text))
            except (ValueError, KeyError, TypeError, AttributeError):
                self.damaged += 1

    def _accept(self, line: Line) -> None:
        if line.get("kind", RUN) != RUN:
            self.notes.append(line)
            return
        key, result, seconds = self.kind.entry(line)
        self.results[key], self.seconds[key] = result, seconds

    def add(self, cell: Cell, result: Result, seconds: float) -> None:
        """Append a finished cell; it is on the disk when this returns. seconds: what it took."""
        self._append(self.kind.line(cell, result, seconds))

    def note(self, line: Line) -> None:
        """Append a line that is no cell; its `kind` says what it is."""
        self._append(line)

    def _append(self, line: Line) -> None:
        text = json.dumps(line, allow_nan=False)
        with self.path.open("ab") as file:
            file.write(text.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._accept(json.loads(text))  # what was just computed reads like what a resumed run finds

    def write_head(self, head: Head) -> None:
        """Replace `experiment.json`."""
        write_json(self.out / HEAD, head.as_json(self.kind))

    def troubles(self) -> list[str]:
        """Sentences on what the journal lost; none where it lost nothing."""
        out = ["the journal ended in the middle of a cell, which is run again"] if self.cut else []
        if self.damaged:
            out.append(f"{self.path}: {self.damaged} damaged line{'s' * (self.damaged > 1)} left out; what "
                       f"{'they' if self.damaged > 1 else 'it'} held is run again")
        return out


@contextmanager
def opened(out: Path, kind: Kind, head: Head) -> Iterator[Journal]:
    """The folder `out`, which exists, with `head` written to it, for this process alone. `UserError` if another process
    has it open."""
    with locked(out, kind.noun):
        journal = Journal(out, kind)
        if journal.cut:
            os.truncate(journal.path, journal.whole)
        journal.write_head(head)
        yield journal
