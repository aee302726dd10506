"""Where runs are done: a journal of finished cells, worker processes, progress. A kill loses what is under way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from saga_rl.errors import UserError
from saga_rl.experiments.compare import pool
from saga_rl.experiments.compare.cells import Cell
from saga_rl.experiments.compare.store import HEAD, Store, opened
from saga_rl.files import LOCK
from saga_rl.learn.judge.points import peak, pressure, sustained
from saga_rl.learn.judge.protocol.cells import Result, Spec, code, key_of, run_cell
from saga_rl.learn.judge.sessions import RECORDED
from saga_rl.learn.script import progress

KIND = "saga-rl protocol"


class Lab:
    """An open folder of runs."""

    def __init__(self, store: Store, executor: ProcessPoolExecutor, data: str, console: Console) -> None:
        self.store, self.executor, self.data, self.console = store, executor, data, console
        self._code = code()
        self._warm = False
        self.runs = 0
        """Cells asked for, also those that were there already."""
        self.seconds = 0.0
        """Seconds of one core that the cells asked for took when they were run."""

    def ask(self, what: str, specs: Sequence[Spec]) -> list[Result]:
        """The result of every spec, in order; those that the journal lacks are run."""
        keys = [key_of(s, self._code, self.data) for s in specs]
        missing = {k: s for k, s in zip(keys, specs, strict=True) if k not in self.store.results}
        if missing:
            self._run(what, missing, len(specs))
        self.runs += len(specs)
        self.seconds += sum(self.store.seconds[k] for k in set(keys))
        return [self.store.results[k] for k in keys]

    def points(self, wanted: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
        """Where each workload is looked at; found on training sessions if that was not done before. wanted: workload ->
        which of `FOUND`."""
        self._load()
        with progress(self.console) as bar:
            job = bar.add_task("points", total=len(wanted), note="")
            futures = {n: pool.submit(self.executor, find_points, n, self.data, list(kinds))
                       for n, kinds in wanted.items()}
            out = {}
            for name, future in futures.items():
                out[name] = pool.result(future)
                bar.update(job, advance=1, note=name)
            bar.update(job, note="")
        return out

    def _load(self) -> None:
        if not self._warm:
            with self.console.status("loading the simulator (it is compiled once for each version)"):
                pool.result(pool.submit(self.executor, pool.warm))
            self._warm = True

    def _run(self, what: str, missing: dict[str, Spec], total: int) -> None:
        self._load()
        with progress(self.console) as bar:
            job = bar.add_task(what, total=total, completed=total - len(missing), note="")
            futures: dict[Future[Any], str] = {pool.submit(self.executor, run_cell, s, self.data): k
                                               for k, s in missing.items()}
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    key = futures[future]
                    result, seconds = pool.result(future)
                    self.store.add(Cell(missing[key], key, 0.0), result, seconds)
                    bar.update(job, advance=1, note=missing[key]["workload"])
            bar.update(job, note="")


FOUND = {"pressure": pressure, "peak": peak, "sustained": sustained}


def find_points(name: str, data: str, kinds: Sequence[str]) -> dict[str, Any]:
    """In a worker: points of a workload, less what was tried for them."""
    folder = data if name in RECORDED else ""
    return {k: {n: x for n, x in FOUND[k](name, folder).items() if n != "tried"} for k in kinds}


@contextmanager
def lab(out: Path, jobs: int, data: str, console: Console) -> Iterator[Lab]:
    """The folder `out`: new, empty, or of an earlier protocol. Raises `UserError` for any other."""
    check_folder(out)
    out.mkdir(exist_ok=True)
    with opened(out, {"kind": KIND, "format": 1}) as store, pool.workers(jobs) as executor:
        if store.cut:
            console.print("the journal ended in the middle of a run, which is done again", style="yellow")
        yield Lab(store, executor, data, console)


def check_folder(out: Path) -> None:
    """`UserError` unless the report may go there."""
    if not out.exists():
        if not out.parent.is_dir():
            raise UserError(out, "cannot be made: its parent is no folder", "name a folder in a folder that exists")
        return
    if not out.is_dir():
        raise UserError(out, "is no folder", "name a new folder")
    if all(p.name == LOCK for p in out.iterdir()):
        return
    try:
        kind = json.loads((out / HEAD).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if kind != KIND:
        raise UserError(out, "holds something else than a protocol's report", "name a new or empty folder")
