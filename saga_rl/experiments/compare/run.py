"""One experiment from settings to results: prepare the traces, scout, tune, compare. Everything already there is kept.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from saga_rl.aeg.io import write_trace
from saga_rl.aeg.validate import check_fits
from saga_rl.errors import UserError
from saga_rl.experiments.compare import pool, sources, store
from saga_rl.experiments.compare.cells import Cell, Result, jobs_of
from saga_rl.experiments.compare.code import code_digest
from saga_rl.experiments.compare.plan import Choice, Keyed, Plan
from saga_rl.experiments.compare.settings import PLAIN_BELOW, Settings, constraints, pool_tokens
from saga_rl.experiments.compare.sources import Source


@dataclass(frozen=True)
class Outcome:
    """Everything that pages and tables are made of. `final` holds (plan key -> result), `cells` every cell used."""

    plan: Plan
    scouted: dict[tuple, Result]
    chosen: dict[tuple, Choice]
    final: dict[tuple, Result]
    cells: dict[tuple, Cell]
    seconds: dict[str, float]
    """Seconds of one core, by cell key."""


def prepare(found: Sequence[Source], s: Settings, folder: Path, executor: ProcessPoolExecutor,
            console: Console) -> dict[str, Any]:
    """Load every source in worker processes, write its halves below `folder`, and return `identity` and `facts` by
    name. Raises `UserError` for a trace that cannot be read, or a session that fits no pool that was asked for."""
    sizes = [s.kv_tokens] if s.kv_tokens and {"load", "fairness"} & set(s.parts) else []
    sizes += [int(c) for c in s.capacities if c >= PLAIN_BELOW] if "eviction" in s.parts else []
    fits = min(sizes, default=0)
    head: dict[str, Any] = {}
    with Progress(TextColumn("reading traces"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                  console=console, transient=True, disable=not console.is_terminal) as bar:
        job = bar.add_task("", total=len(found))
        futures = {x.name: pool.submit(executor, _prepare, x, fits, s, folder) for x in found}
        for name, future in futures.items():
            head[name] = pool.result(future)
            bar.advance(job)
    return head


def _prepare(source: Source, fits: int, s: Settings, folder: Path) -> dict[str, Any]:
    material = sources.load(source, fits)
    longest = material.facts["longest_context_tokens"]
    for half, trace in (("train", material.train), ("test", material.test)):
        if fits:
            check_fits(trace, kv_tokens=fits)
        write_trace(trace, folder / f"{source.name}-{half}.parquet")
    if "fairness" in s.parts and source.kind != "imported" and material.facts["tenants"] > 1:
        for given in s.variants().values():
            constraints(given).floors(material.test.tenants, pool_tokens(longest, s.kv_tokens) // 16)
    return {"identity": source.identity(), "facts": material.facts}


def run(found: Sequence[Source], s: Settings, out: Path, jobs: int, fresh: bool, console: Console) -> Outcome:
    """The whole experiment in the folder `out`. Raises `UserError`; finished cells are then kept."""
    code = code_digest()
    identities = {x.name: x.identity() for x in found}
    state = store.state_of(out)
    if state == "ours" and not fresh:
        store.check_same(out, code, identities)
    old = store.read_head(out)["traces"] if state == "ours" and not fresh else {}
    missing = [x for x in found if x.name not in old or not _there(out, x.name, old[x.name])]
    with pool.workers(jobs) as executor, tempfile.TemporaryDirectory() as scratch:
        ready = prepare(missing, s, Path(scratch), executor, console)
        facts = {x.name: (ready.get(x.name) or old[x.name])["facts"] for x in found}
        if "fairness" in s.parts and not any(Plan(s, facts, {}, code).fair(name) for name in facts):
            if s.parts == ("fairness",):
                raise UserError("part fairness", "has no trace with several tenants",
                                "name a trace that has, or leave TRACE out for the generated burstgpt")
            console.print("part fairness: left out, no trace has several tenants", style="yellow")
        if fresh and state == "ours":
            console.print(f"the old folder is now {store.move_aside(out)}", markup=False, soft_wrap=True)
        out.mkdir(exist_ok=True)
        with store.opened(out, store.make_head(code, old)) as opened:
            (out / "traces").mkdir(exist_ok=True)
            for name, entry in ready.items():
                for half in ("train", "test"):
                    shutil.move(Path(scratch) / f"{name}-{half}.parquet", out / "traces" / f"{name}-{half}.parquet")
                entry["files"] = store.file_digests(out / "traces", name)
            traces = {**old, **ready}
            opened.write_head(store.make_head(code, traces))
            digests = {half: d for name in facts for half, d in traces[name]["files"].items()}
            return _stages(Plan(s, facts, digests, code), opened, executor, console)


def _there(out: Path, name: str, entry: Mapping[str, Any]) -> bool:
    try:
        return store.file_digests(out / "traces", name) == entry["files"]
    except OSError:
        return False


def _stages(plan: Plan, opened: store.Store, executor: ProcessPoolExecutor, console: Console) -> Outcome:
    if opened.cut:
        console.print("the journal ended in the middle of a cell, which is computed again", style="yellow")
    used: dict[tuple, Cell] = {}

    def stage(what: str, cells: Keyed) -> dict[tuple, Result]:
        used.update(cells)
        results = _stage(what, cells, opened, executor, console)
        return {key: results[cell.key] for key, cell in cells.items()}

    scouted = stage("scouting", plan.scouts())
    chosen = plan.choose(stage("tuning", plan.tuning(scouted)))
    final = stage("comparing", plan.final(scouted, chosen))
    return Outcome(plan, scouted, chosen, final, used, dict(opened.seconds))


def _stage(what: str, cells: Keyed, opened: store.Store, executor: ProcessPoolExecutor,
           console: Console) -> dict[str, Result]:
    """Run what is missing of `cells`; results by key, of every cell that the folder holds."""
    wanted = {cell.key: cell for cell in cells.values()}
    missing = [cell for key, cell in wanted.items() if key not in opened.results]
    there = len(wanted) - len(missing)
    if missing:
        with console.status("loading the simulator (it is compiled once for each version)"):
            pool.result(pool.submit(executor, pool.warm))
    if there:
        console.print(f"{what}: {there:,} of {len(wanted):,} cells are there already", markup=False)
    with Progress(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                  TextColumn("{task.fields[note]}"), console=console) as bar:
        job = bar.add_task("", total=len(wanted), completed=there, note="")

        def done(cell: Cell, result: Result, seconds: float) -> None:
            opened.add(cell, result, seconds)
            bar.update(job, advance=1, note=cell.spec["trace"])

        pool.run_all(executor, opened.out, jobs_of(missing), done)
        bar.update(job, note="")
    return opened.results
