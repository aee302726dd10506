"""A whole bench: plan, journal, runs, report; a folder is measured in by one process at a time."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from saga_rl.errors import UserError
from saga_rl.experiments.bench.journal import Journal
from saga_rl.experiments.bench.measure import measure
from saga_rl.experiments.bench.output import report as show
from saga_rl.experiments.bench.plan import described, make
from saga_rl.experiments.bench.settings import Settings
from saga_rl.files import locked
from saga_rl.report.style import new_figure

JOURNAL = "journal.jsonl"


def run(s: Settings, out: Path, at_once: int | None = None, plan_only: bool = False, report_only: bool = False) -> None:
    """Measure what is missing and show it. Raises `UserError`; what was measured by then is kept."""
    err = Console(stderr=True)
    _check_out(out)
    new_figure(1, 1)  # without matplotlib nothing could be drawn at the end
    with err.status("reading sessions"):
        plan = make(s)
    journal = Journal(out / JOURNAL, plan.identity(), plan.weights)
    for sentence in described(plan):
        err.print(sentence, markup=False, highlight=False, soft_wrap=True)
    if plan_only:
        return
    if not report_only:
        out.mkdir(exist_ok=True)
        with locked(out, "bench"):
            measure(plan, journal, out, err, at_once)
    show(plan, journal, out, Console())


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(out, "is no folder", "name a new folder, or one of an earlier bench")
    place = out if out.is_dir() else out.resolve().parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(out, f"cannot be made: {place} is no folder that can be written to",
                        "name a folder in a folder that exists")
