"""Evaluate learned policies on test sessions by the whole protocol: every target beside its figure, one report.

`evaluate.py` takes one eviction checkpoint and one trace; this takes all policies and all workloads. Interrupt it at
any time: the same command goes on where it stopped.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Option

from saga_rl.cli.ray_option import Ray
from saga_rl.errors import EXIT_INTERRUPTED, UserError
from saga_rl.learn.script import check_range, stop, words
from saga_rl.learn.tracking import WandbRun
from saga_rl.provenance import provenance
from saga_rl.report.tables import terminal

SHIPPED = Path("checkpoints")


def main(
    out: Annotated[Path, Option(help="Folder for protocol.json, .md, .png and the journal of runs; made if absent.")],
    eviction: Annotated[str, Option(help="Eviction checkpoint, or a spec; default: checkpoints/eviction.")] = "",
    placement: Annotated[str, Option(help="Placement checkpoint, or a spec; default: none, and no row of it.")] = "",
    joint: Annotated[str, Option(help="Admission checkpoint (it names the rest), a folder of several, or a preset; "
                                 "default: checkpoints/joint.")] = "",
    hidden: Annotated[str, Option(help="The same, where nobody announces ends; default: --joint, or of what is shipped "
                                  "checkpoints/joint-hidden.")] = "",
    transfer: Annotated[str, Option(help="More checkpoints for the transfer matrix, with commas between.")] = "",
    own: Annotated[str, Option(help="What training/search.py found on a recorded collection's own training sessions, "
                               "ends hidden: NAME=FOLDER, with commas between.")] = "",
    data: Annotated[str, Option(help="Folder of recorded collections (weka, katas, mooncake).")] = "",
    only: Annotated[str, Option(help="Rows, with commas between: " + "eviction, stock, shift, hidden, "
                               "sustain, placement, throughput, transfer, drift" + ".")] = "",
    workloads: Annotated[str, Option(help="Only these workloads, with commas between.")] = "",
    seeds: Annotated[int, Option(help="Arrangements of test sessions (5 or more for a report).")] = 5,
    budget: Annotated[int, Option(help="Settings tried of each closed-loop baseline.")] = 18,
    workers: Annotated[int, Option(help="Workers; rows stock and placement take --many-workers.")] = 4,
    many_workers: Annotated[int, Option(help="Workers of rows stock and placement.")] = 16,
    jobs: Annotated[int, Option(help="Processes; 0 = one a core.")] = 0,
    ray: Ray = "",
    quick: Annotated[bool, Option("--quick", help="A smoke test: 3 arrangements, few sessions and settings, 2 workers "
                                  "throughout. Its figures are not to be quoted.")] = False,
    wandb: Annotated[str, Option(help="disabled, offline or online: log the report as an artifact.")] = "disabled",
    project: Annotated[str, Option(help="W&B project.")] = "saga-rl",
) -> None:
    """Evaluate learned policies by the whole protocol."""
    from saga_rl.experiments.place import place
    from saga_rl.learn.judge.protocol.lab import lab
    from saga_rl.learn.judge.protocol.report import evaluate, known_workload, recorded, write
    from saga_rl.learn.judge.protocol.settings import ROWS, Settings, check

    for option, value in (("--seeds", seeds), ("--budget", budget), ("--workers", workers),
                          ("--many-workers", many_workers)):
        check_range(option, value, 1)
    check_range("--jobs", jobs, 0)
    console = Console(stderr=True)
    shipped = {name: given or shipped_folder(name, console) for name, given in (
        ("eviction", eviction), ("joint", joint))}
    if data and not Path(data).is_dir():
        raise UserError(data, "is no folder", "name the folder of recorded collections after --data")
    unannounced = SHIPPED / "joint-hidden"
    hidden = hidden or (str(unannounced) if not joint and unannounced.is_dir() else "")
    s = Settings(shipped["eviction"], placement, shipped["joint"], hidden, tuple(words(transfer)),
                 tuple(map(pair, words(own))), tuple(words(only)) or ROWS, seeds=seeds, budget=budget, workers=workers,
                 many_workers=many_workers, data=data, recorded=recorded(data),
                 only=tuple(known_workload(n, data) for n in words(workloads)))
    if quick:
        s = replace(s, seeds=3, budget=2, tune=1, rounds=1, workers=2, many_workers=2,
                    recorded=s.recorded if only or workloads else ())
    check(s)
    try:
        with (place(jobs or os.cpu_count() or 1, ray, out) as chosen, lab(out, chosen, data, console) as opened):
            result = evaluate(opened, s)
            seconds = opened.seconds
    except KeyboardInterrupt:
        stop("interrupted: finished runs are kept, the same command goes on", EXIT_INTERRUPTED)
    result |= {"quick": quick, "provenance": provenance(seed=s.test_seeds[0], trace=None)}
    write(result, out)
    shown = Console()
    report(result, shown if shown.is_terminal else Console(width=150))
    shown.print(f"{result['runs']:,} runs, {seconds:,.0f} s of one core; {out / 'protocol.md'}", markup=False)
    with WandbRun(wandb, project, out, {"joint": s.joint, "eviction": s.eviction}, "protocol") as tracker:
        tracker.artifact("evaluation", "protocol", out, {"rows": ",".join(s.rows)})


def pair(text: str) -> tuple[str, str]:
    """NAME=FOLDER in two. Raises `UserError`."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise UserError(f"--own {text!r}", "is not of the form NAME=FOLDER", "write e.g. weka=runs/own-weka")
    return name, folder


def shipped_folder(name: str, console: Console) -> str:
    """The shipped checkpoint's folder, or nothing, said aloud, where there is none."""
    if (SHIPPED / name).is_dir():
        return str(SHIPPED / name)
    console.print(f"no {SHIPPED / name} here: its rows are left out (name a checkpoint with --{name})",
                  style="yellow", markup=False)
    return ""


def report(result: dict, console: Console) -> None:
    """A table a row."""
    from saga_rl.learn.judge.protocol.report import HEADER, MAKERS, cells

    for row, found in result["rows"].items():
        if not found:
            continue
        console.print(terminal(HEADER, [cells(f) for f in found], MAKERS[row][0], ("", "collapsed", "note"),
                               min_width=78), markup=False)
    if result["quick"]:
        console.print("--quick: a smoke test; no figure of it is to be quoted")
