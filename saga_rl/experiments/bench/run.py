"""A whole bench: plan, journal, runs, report; a folder is measured in by one process at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from saga_rl.experiments.bench.measure import measure
from saga_rl.experiments.bench.output import report as show
from saga_rl.experiments.bench.plan import described, make
from saga_rl.experiments.bench.record import KIND
from saga_rl.experiments.bench.settings import Settings
from saga_rl.experiments.journal import Journal, check_same, move_aside, opened, state_of
from saga_rl.experiments.pool import Jobs
from saga_rl.report.style import new_figure


def run(s: Settings, out: Path, at_once: Jobs | None = None, plan_only: bool = False, report_only: bool = False,
        fresh: bool = False) -> None:
    """Measure what is missing and show it. fresh: what the folder holds is moved aside first. Raises `UserError`; what
    was measured by then is kept."""
    err = Console(stderr=True)
    ours = state_of(out, KIND) == "ours"
    new_figure(1, 1)  # without matplotlib nothing could be drawn at the end
    with err.status("reading sessions"):
        plan = make(s)
    head = plan.head()
    if ours and not fresh:
        then = check_same(out, KIND, head)
        head = replace(head, inputs={**then.inputs, **head.inputs})
    for sentence in described(plan):
        err.print(sentence, markup=False, highlight=False, soft_wrap=True)
    if plan_only:
        return
    if report_only:
        journal = Journal(out, KIND)
        for sentence in journal.troubles():
            err.print(sentence, style="yellow", markup=False, soft_wrap=True, highlight=False)
        show(plan, journal, out, Console())
        return
    if ours and fresh:
        err.print(f"the old folder is now {move_aside(out, KIND)}", markup=False, soft_wrap=True)
    out.mkdir(exist_ok=True)
    with opened(out, KIND, head) as journal:
        measure(plan, journal, out, err, at_once)
        show(plan, journal, out, Console())
