"""The folder of an experiment: what it is made of (`experiment.json`), its traces, and a journal of finished cells.

A line of the journal is one cell. A run that is killed leaves at most one line without its end, which is taken off when
the folder is opened again; that cell is computed anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.experiments.compare.cells import Cell, Result
from saga_rl.files import LOCK, locked, write_json
from saga_rl.provenance import sha256

KIND, FORMAT = "saga-rl compare", 1
HEAD, JOURNAL = "experiment.json", "cells.jsonl"


def state_of(out: Path) -> str:
    """`new` (absent or empty) or `ours`. `UserError` for anything else, and where the folder cannot be made."""
    if not out.exists():
        if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
            raise UserError(out, "cannot be made: its parent is no folder that can be written to",
                            "name a folder in a folder that exists")
        return "new"
    if not out.is_dir():
        raise UserError(out, "is no folder", "name a new folder, or one of an earlier compare")
    if not os.access(out, os.W_OK):
        raise UserError(out, "cannot be written to", "check its permissions")
    if all(path.name == LOCK for path in out.iterdir()):
        return "new"
    read_head(out)
    return "ours"


def read_head(out: Path) -> dict[str, Any]:
    """experiment.json. `UserError` if the folder holds something else, or a later format."""
    try:
        head = json.loads((out / HEAD).read_text(encoding="utf-8"))
        kind, version = head["kind"], head["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(out, "holds something else than a compare", "name a new or empty folder") from None
    if kind != KIND or version != FORMAT:
        raise UserError(out, f"holds {kind!r} of format {version}, not {KIND!r} of format {FORMAT}",
                        "name a new or empty folder")
    return head


def check_same(out: Path, code: str, identities: Mapping[str, dict[str, Any]]) -> None:
    """`UserError` that names what changed since the folder's cells were computed: the code, or a trace."""
    head = read_head(out)
    changed = []
    if head["code"] != code:
        changed.append(f"the code ({head['code'][:12]} then, {code[:12]} now)")
    for name, identity in identities.items():
        then = head["traces"].get(name)
        if then is not None and then["identity"] != identity:
            was, now = (i["sha256"] and i["sha256"][:12] for i in (then["identity"], identity))
            what = f" ({was} then, {now} now)" if was != now else " (its source or options)"
            changed.append(f"trace {name!r}{what}")
    if changed:
        raise UserError(out, "was begun with other input; changed since: " + ", ".join(changed),
                        "give --fresh to begin anew there (the old folder is kept beside it), or another --out")


def move_aside(out: Path) -> Path:
    """Rename the folder to the first free NAME.old-N and return that. `UserError` if another compare has it open."""
    with locked(out, "compare"):
        n = 1
        while (target := out.with_name(f"{out.name}.old-{n}")).exists():
            n += 1
        out.rename(target)
    return target


class Store:
    """An open folder. `results` holds every cell that is there, by key."""

    def __init__(self, out: Path, head: dict[str, Any]) -> None:
        self.out, self.head = out, head
        self.results: dict[str, Result] = {}
        self.seconds: dict[str, float] = {}
        self.cut = _heal(out / JOURNAL)
        for line in (out / JOURNAL).read_bytes().splitlines():
            self._take(json.loads(line))
        self._journal = (out / JOURNAL).open("ab")

    def _take(self, line: dict[str, Any]) -> None:
        self.results[line["key"]] = line["result"]
        self.seconds[line["key"]] = line["seconds"]

    def add(self, cell: Cell, result: Result, seconds: float) -> None:
        """Append a finished cell; it is in the file when this returns."""
        text = json.dumps({"key": cell.key, "spec": cell.spec, "result": result, "seconds": seconds}, allow_nan=False)
        self._journal.write(text.encode() + b"\n")
        self._journal.flush()
        self._take(json.loads(text))  # what was just computed reads like what a resumed run finds

    def write_head(self, head: dict[str, Any]) -> None:
        write_json(self.out / HEAD, head)
        self.head = head

    def close(self) -> None:
        self._journal.close()


def _heal(journal: Path) -> bool:
    """Make sure that the journal exists and holds whole lines only; whether something had to be taken off."""
    if not journal.exists():
        journal.touch()
        return False
    whole = []
    data = journal.read_bytes()
    for line in data.splitlines(keepends=True):
        try:
            good = line.endswith(b"\n") and {"key", "result", "seconds"} <= json.loads(line).keys()
        except (ValueError, AttributeError):
            good = False
        if good:
            whole.append(line)
    if len(kept := b"".join(whole)) == len(data):
        return False
    part = journal.with_suffix(".part")
    part.write_bytes(kept)
    part.replace(journal)
    return True


@contextmanager
def opened(out: Path, head: dict[str, Any]) -> Iterator[Store]:
    """The folder `out`, which exists, with `head` written to it, for this process alone. `UserError` if another
    compare has it open."""
    with locked(out, "compare"):
        write_json(out / HEAD, head)
        store = Store(out, head)
        try:
            yield store
        finally:
            store.close()


def make_head(code: str, traces: dict[str, Any]) -> dict[str, Any]:
    """experiment.json: traces holds by name `identity`, `facts` and the digests of its halves (`files`)."""
    return {"kind": KIND, "format": FORMAT, "code": code, "traces": traces}


def file_digests(out: Path, name: str) -> dict[str, str]:
    """SHA-256 of a trace's halves, by file name without suffix."""
    return {half: sha256(out / f"{half}.parquet") for half in (f"{name}-train", f"{name}-test")}
