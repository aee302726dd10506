"""`saga-rl compare`."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from saga_rl.cli.ray_option import Ray
from saga_rl.errors import EXIT_INTERRUPTED
from saga_rl.experiments.compare.settings import PARTS, Settings

if TYPE_CHECKING:
    from saga_rl.experiments.compare import sources

D = Settings()


def _list(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{x:g}" for x in numbers)


def _only(decision: str, more: str = "") -> Any:
    return typer.Option(help=f"Compare only these {decision} policies{more} (repeat, or commas between). A wrong name "
                        "lists all.")


def _compare(
    ctx: typer.Context,
    traces: Annotated[list[Path] | None, typer.Argument(metavar="[TRACE]...", help="Trace files; generated workloads "
                                                        "unless given.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the experiment: made, or resumed where it left off.")] = ...,  # type: ignore[assignment]
    data: Annotated[Path | None, typer.Option(help="Folder of recorded traces (weka, katas, mooncake): those too.")]
    = None,
    part: Annotated[list[str] | None, typer.Option(help=f"Only these of: {', '.join(PARTS)}.")] = None,
    eviction: Annotated[list[str] | None, _only("eviction", ", or learned:FOLDER")] = None,
    placement: Annotated[list[str] | None, _only("placement")] = None,
    ordering: Annotated[list[str] | None, _only("ordering")] = None,
    admission: Annotated[list[str] | None, _only("admission")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Compare only these presets (lru, saga, saga+, likely, auto) "
                                                     "or checkpoint folders.")] = None,
    product: Annotated[bool, typer.Option(help="Every placement x ordering x admission, not one at a time.")] = False,
    capacities: Annotated[str, typer.Option(help="KV capacities: multiples (below 100) of P1, where LRU computes "
                                            "2.5 x Belady again, or tokens.")] = _list(D.capacities),
    loads: Annotated[str, typer.Option(help="Arrival rates over the one that stock sustains.")] = _list(D.loads),
    seeds: Annotated[int, typer.Option(help="Arrangements; fewer than 3 give no interval.")] = D.seeds,
    tune: Annotated[int, typer.Option(help="Settings tried of each tunable policy on training sessions, 0 = none.")]
    = D.tune,
    workers: Annotated[int, typer.Option(help="Workers of the load and fairness parts.")] = D.workers,
    kv_tokens: Annotated[int, typer.Option(help="KV pool of one of them, tokens; 0 = 240,000, or 1.1 x the trace's "
                                           "longest context.")] = D.kv_tokens,
    population: Annotated[int, typer.Option(help="Sessions at once in the eviction part.")] = D.population,
    gap: Annotated[float, typer.Option(help="Fairness: service gap, tokens.")] = D.gap_tokens,
    floor: Annotated[float, typer.Option(help="Fairness: KV floor of every tenant, share of a pool.")] = D.floor,
    afs_preempt_s: Annotated[float, typer.Option(help="Fairness: waiting seconds before AFS preempts.")]
    = D.afs_preempt_s,
    profile: Annotated[str, typer.Option(help="Cost profile of the simulator.")] = D.profile,
    ends: Annotated[bool, typer.Option(help="Clients say which step is their last.")] = D.ends,
    jobs: Annotated[int | None, typer.Option(help="Processes; all cores unless given.")] = None,
    ray: Ray = "",
    fresh: Annotated[bool, typer.Option(help="Begin anew; what the folder holds is moved aside.")] = False,
) -> None:
    """Compare all policies on the same sessions, paired: tables, pictures, one page (docs/how-to/compare.md)."""
    from saga_rl.experiments.compare import checks, sources

    given = ["--" + p.replace("_", "-") for p in ctx.params
             if getattr(ctx.get_parameter_source(p), "name", "") == "COMMANDLINE"]
    asked = Settings(presets=checks.specs(policy or ()), capacities=checks.numbers("--capacities", capacities, 0.0),
                     loads=checks.numbers("--loads", loads, 0.0), seeds=seeds, tune=tune, workers=workers,
                     kv_tokens=kv_tokens, population=population, product=product, gap_tokens=gap, floor=floor,
                     afs_preempt_s=afs_preempt_s, profile=profile, ends=ends)
    asked = checks.with_specs(asked, {"eviction": eviction or (), "placement": placement or (),
                                      "ordering": ordering or (), "admission": admission or ()})
    s = replace(asked, parts=checks.check_parts(part or (), given))
    n_jobs = len(os.sched_getaffinity(0)) if jobs is None else jobs
    checks.check_jobs(n_jobs)
    checks.check_settings(s)
    checks.check_data(data, traces or ())
    found = sources.file_sources(traces) if traces else sources.default_sources() + (
        sources.data_sources(data) if data is not None else [])
    run_and_show(found, s, out, n_jobs, fresh, ray)


def run_and_show(found: list[sources.Source], s: Settings, out: Path, jobs: int, fresh: bool,
                 ray: str = "") -> None:
    """The experiment, then its files and tables. Ctrl-C and SIGTERM end it with status 130, cells kept."""
    from saga_rl.experiments.compare.output import write_all
    from saga_rl.experiments.compare.run import run
    from saga_rl.experiments.place import place
    from saga_rl.report.style import new_figure

    new_figure(1, 1)  # without matplotlib nothing could be drawn at the end
    err = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with place(jobs, ray, out) as chosen:
            outcome = run(found, s, out, chosen, fresh, err)
    except KeyboardInterrupt:
        err.print(f"interrupted: finished cells are kept in {out}, the same command goes on from there", markup=False,
                  soft_wrap=True)
        sys.exit(EXIT_INTERRUPTED)
    write_all(outcome, out, Console())


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("compare")(_compare)
