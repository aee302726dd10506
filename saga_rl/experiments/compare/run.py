"""One experiment from settings to results: prepare the traces, scout, tune, compare. Everything already there is kept.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from saga_rl.aeg.io import write_trace
from saga_rl.aeg.validate import check_fits
from saga_rl.errors import UserError
from saga_rl.experiments import journal, pool
from saga_rl.experiments.cell import Cell, Result
from saga_rl.experiments.compare import cells, sources
from saga_rl.experiments.compare.plan import Keyed, Plan
from saga_rl.experiments.compare.settings import PLAIN_BELOW, Settings, constraints, pool_tokens
from saga_rl.experiments.compare.sources import Source
from saga_rl.experiments.journal import Head, Journal, Kind
from saga_rl.experiments.progress import Shown
from saga_rl.experiments.runner import Runner
from saga_rl.experiments.simulated import Processes
from saga_rl.experiments.tuning import Choice
from saga_rl.provenance import sha256

KIND = Kind("saga-rl compare", "compare")
TRACES = "traces"
"""Folder of the traces' halves below `--out`."""


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


def prepare(found: Sequence[Source], s: Settings, folder: Path, executor: Executor,
            console: Console) -> dict[str, Any]:
    """Load every source in worker processes, write its halves below `folder`, and return `identity` and `facts` by
    name. Raises `UserError` for a trace that cannot be read, or a session that fits no pool that was asked for."""
    sizes = [s.kv_tokens] if s.kv_tokens and {"load", "fairness"} & set(s.parts) else []
    sizes += [int(c) for c in s.capacities if c >= PLAIN_BELOW] if "eviction" in s.parts else []
    fits = min(sizes, default=0)
    head: dict[str, Any] = {}
    with Shown(console, len(found), "reading traces") as shown:
        futures = {x.name: pool.submit(executor, _prepare, x, fits, s, folder) for x in found}
        for name, future in futures.items():
            head[name] = pool.result(future)
            shown.finish(note=name)
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


def run(found: Sequence[Source], s: Settings, out: Path, jobs: pool.Jobs, fresh: bool, console: Console) -> Outcome:
    """The whole experiment in the folder `out`. Raises `UserError`; finished cells are then kept."""
    code = cells.code()
    ours = journal.state_of(out, KIND) == "ours"
    old: Mapping[str, Any] = {}
    if ours and not fresh:
        asked = Head(code, inputs={x.name: {"identity": x.identity()} for x in found})
        old = journal.check_same(out, KIND, asked).inputs
    missing = [x for x in found if x.name not in old or not _there(out, x.name, old[x.name])]
    with (pool.workers(jobs) as executor,
          tempfile.TemporaryDirectory(dir=pool.scratch_parent(jobs, out)) as scratch):
        ready = prepare(missing, s, Path(scratch), executor, console)
        facts = {x.name: (ready.get(x.name) or old[x.name])["facts"] for x in found}
        if "fairness" in s.parts and not any(Plan(s, facts, {}, code).fair(name) for name in facts):
            if s.parts == ("fairness",):
                raise UserError("part fairness", "has no trace with several tenants",
                                "name a trace that has, or leave TRACE out for the generated burstgpt")
            console.print("part fairness: left out, no trace has several tenants", style="yellow")
        if fresh and ours:
            console.print(f"the old folder is now {journal.move_aside(out, KIND)}", markup=False, soft_wrap=True)
        out.mkdir(exist_ok=True)
        with journal.opened(out, KIND, Head(code, inputs=old)) as opened:
            (out / TRACES).mkdir(exist_ok=True)
            for name, entry in ready.items():
                for half in _halves(name):
                    shutil.move(Path(scratch) / half, out / TRACES / half)
                entry["files"] = _digests(out, name)
            traces = {**old, **ready}
            opened.write_head(Head(code, inputs=traces))
            digests = {half: d for name in facts for half, d in traces[name]["files"].items()}
            return _stages(Plan(s, facts, digests, code), opened, executor, console)


def _halves(name: str) -> list[str]:
    return [f"{name}-{half}.parquet" for half in ("train", "test")]


def _digests(out: Path, name: str) -> dict[str, str]:
    """SHA-256 of a trace's halves, by file name without suffix."""
    return {half.removesuffix(".parquet"): sha256(out / TRACES / half) for half in _halves(name)}


def _there(out: Path, name: str, entry: Mapping[str, Any]) -> bool:
    try:
        return _digests(out, name) == entry["files"]
    except OSError:
        return False


def _stages(plan: Plan, opened: Journal, executor: Executor, console: Console) -> Outcome:
    backend = Processes(executor, cells.run_job, opened.out, groups=cells.jobs_of, note=lambda spec: spec["trace"])
    runner = Runner(opened, backend, console)
    used: dict[tuple, Cell] = {}

    def stage(what: str, wanted: Keyed) -> dict[tuple, Result]:
        used.update(wanted)
        return runner.run(what, wanted)

    scouted = stage("scouting", plan.scouts())
    chosen = plan.choose(stage("tuning", plan.tuning(scouted)))
    final = stage("comparing", plan.final(scouted, chosen))
    return Outcome(plan, scouted, chosen, final, used, dict(opened.seconds))
