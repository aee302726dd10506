"""What a bench's folder holds: `journal.jsonl`, a line a run and a line a start, and settings in `experiment.json`.

A cell is one arm in one repeat. Other code makes no other cell: a run on servers is a measurement, and says its commit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saga_rl.experiments.bench.arms import Arm
from saga_rl.experiments.cell import Cell, Result
from saga_rl.experiments.journal import Head, Journal, Kind, Line

Run = tuple[str, int]
"""Arm, repeat."""
Runs = dict[Run, dict[str, Any]]


def cell_of(arm: Arm, repeat: int, place: int) -> Cell:
    """The cell of an arm in a repeat. place: in the repeat's order of arms."""
    return Cell({"arm": arm.name, "repeat": repeat, "order": place}, _key(arm.name, repeat))


def _key(arm: str, repeat: int) -> str:
    return f"{repeat}/{arm}"


def _line(cell: Cell, result: Result, seconds: float) -> Line:
    return result


def _entry(line: Line) -> tuple[str, Result, float]:
    return _key(line["arm"], line["repeat"]), line, line.get("real_s", 0.0)


def _before(out: Path) -> Head | None:
    """The head of a folder without `experiment.json`: the journal's first line said what is measured."""
    try:
        with (out / KIND.journal).open(encoding="utf-8") as file:
            lines = [json.loads(text) for text in file if text.endswith("\n")]
        begins = lines[0]["kind"] == "bench"
    except (OSError, ValueError, LookupError, TypeError):
        return None
    weights = {line["arm"]: {"identity": {"sha256": line["weights"]}} for line in lines if "weights" in line}
    return Head(what=lines[0]["what"], inputs=weights) if begins else None


KIND = Kind("saga-rl bench", "bench", "journal.jsonl", inputs=("checkpoints", "checkpoint"), line=_line, entry=_entry,
            before=_before, anew="give the options that it was begun with, --fresh to begin anew there (the old folder "
            "is kept beside it), or another --out")


def runs_of(journal: Journal) -> Runs:
    """The runs that the journal holds, by arm and repeat."""
    return {(run["arm"], run["repeat"]): run for run in journal.results.values()}


def starts_of(journal: Journal) -> list[dict[str, Any]]:
    """What each start of the measurement said of itself: commit, machine, time."""
    return [note for note in journal.notes if note["kind"] == "start"]
