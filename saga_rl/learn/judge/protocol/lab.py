"""Where runs are done: an open folder, and the points of the workloads. A kill loses what is under way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from saga_rl.experiments import pool
from saga_rl.experiments.cell import Result, Spec
from saga_rl.experiments.journal import Head, Journal, Kind, opened, state_of
from saga_rl.experiments.progress import Shown
from saga_rl.experiments.runner import Runner
from saga_rl.experiments.simulated import Processes
from saga_rl.learn.judge.points import peak, pressure, sustained
from saga_rl.learn.judge.protocol.cells import cell_of, code, run_cells
from saga_rl.learn.judge.sessions import RECORDED

KIND = Kind("saga-rl protocol", "protocol")


class Lab:
    """An open folder of runs. code: digest of what their figures depend on."""

    def __init__(self, journal: Journal, backend: Processes, code: str, data: str, console: Console) -> None:
        self.runner, self.backend = Runner(journal, backend, console), backend
        self.code, self.data, self.console = code, data, console
        self.runs = 0
        """Cells asked for, also those that were there already."""
        self.seconds = 0.0
        """Seconds of one core that the cells asked for took when they were run."""

    def ask(self, what: str, specs: Sequence[Spec]) -> list[Result]:
        """The result of every spec, in order; those that the journal lacks are run."""
        cells = [cell_of(s, self.code, self.data) for s in specs]
        found = self.runner.run(what, dict(enumerate(cells)))
        self.runs += len(specs)
        self.seconds += sum(self.runner.journal.seconds[k] for k in {cell.key for cell in cells})
        return list(found.values())

    def points(self, wanted: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
        """Where each workload is looked at; found on training sessions if that was not done before. wanted: workload ->
        which of `FOUND`."""
        with Shown(self.console, len(wanted), "points") as shown:
            self.backend.warm()
            futures = {n: pool.submit(self.backend.executor, find_points, n, self.data, list(kinds))
                       for n, kinds in wanted.items()}
            out = {}
            for name, future in futures.items():
                out[name] = pool.result(future)
                shown.finish(note=name)
        return out


FOUND = {"pressure": pressure, "peak": peak, "sustained": sustained}


def find_points(name: str, data: str, kinds: Sequence[str]) -> dict[str, Any]:
    """In a worker: points of a workload, less what was tried for them."""
    folder = data if name in RECORDED else ""
    return {k: {n: x for n, x in FOUND[k](name, folder).items() if n != "tried"} for k in kinds}


@contextmanager
def lab(out: Path, jobs: pool.Jobs, data: str, console: Console) -> Iterator[Lab]:
    """The folder `out`: new, empty, or of an earlier protocol, whose runs under other code are run anew. Raises
    `UserError` for any other."""
    state_of(out, KIND)
    out.mkdir(exist_ok=True)
    digest = code()
    with opened(out, KIND, Head(digest)) as journal, pool.workers(jobs) as executor:
        backend = Processes(executor, run_cells, data, note=lambda spec: spec["workload"])
        yield Lab(journal, backend, digest, data, console)
