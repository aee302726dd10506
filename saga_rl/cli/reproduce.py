"""`saga-rl reproduce`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from saga_rl.cli.ray_option import Ray
from saga_rl.errors import EXIT_INTERRUPTED, UserError


def _reproduce(
    tables: Annotated[list[str] | None, typer.Argument(metavar="[TABLE]...", help="Of: headline, completion, engines, "
                                                       "memory, belady, ablation, deadlines, overhead, tool-latency, "
                                                       "throughput, scaling, utilisation; all unless given.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the reproduction: made, or resumed where it left off.")] = ...,  # type: ignore[assignment]
    profile: Annotated[list[str] | None, typer.Option(help="Cost profiles of a worker; the paper's machine, fitted and "
                                                      "assumed, unless given.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Presets and checkpoint folders that stand in SAGA's places "
                                                     "too.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Sets of tasks, 5 unless given; fewer than 3 give no "
                                              "interval.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="160 tasks of each workload, 3 sets of them.")] = False,
    jobs: Annotated[int | None, typer.Option(help="Processes; all cores unless given.")] = None,
    ray: Ray = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew; what the folder holds is moved aside.")] = False,
) -> None:
    """Put the simulator's figures beside those of every table of the SAGA paper (docs/explanation/paper.md)."""
    from saga_rl.experiments.paper.output import write_all
    from saga_rl.experiments.paper.run import OURS, PROFILES, Settings, run
    from saga_rl.experiments.paper.tables import TABLES
    from saga_rl.experiments.place import place
    from saga_rl.report.style import new_figure

    n_jobs = len(os.sched_getaffinity(0)) if jobs is None else jobs
    if n_jobs < 1:
        raise UserError("--jobs", f"is {n_jobs}", "give at least 1")
    s = Settings(_once(tables or TABLES), _once(profile or PROFILES), _once(policy or OURS),
                 seeds if seeds is not None else 3 if quick else 5, quick)
    s.check()
    new_figure(1, 1)  # without matplotlib nothing could be drawn at the end
    err = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with place(n_jobs, ray, out) as chosen:
            outcome = run(s, out, chosen, fresh, err)
    except KeyboardInterrupt:
        err.print(f"interrupted: finished cells are kept in {out}, the same command goes on from there", markup=False,
                  soft_wrap=True)
        sys.exit(EXIT_INTERRUPTED)
    write_all(outcome, out, Console(width=None if sys.stdout.isatty() else 140))


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("reproduce")(_reproduce)
