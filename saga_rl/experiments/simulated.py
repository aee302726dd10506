"""Cells in the simulator, side by side in worker processes: the backend, and the digest of the code behind figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.experiments import pool
from saga_rl.experiments.cell import Cell, Result, Spec
from saga_rl.experiments.progress import Shown
from saga_rl.source_hash import code_hash

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("aeg", "policies", "sim")
Timed = tuple[Result, float]


class Processes:
    """The backend of simulated cells.

    work: a module-level function that is called in a worker with `arguments` and the specs of a group of cells, and
    gives (result, seconds of one core) of each, as `timed` does. groups: cells that share their preparation, in the
    order in which they are handed out; None: each alone, the costliest first. note: a word on a cell for the progress
    bar. says: a line on a finished cell that stays; "" = none. open_loop: some cells replay in open loop, whose code is
    compiled then, too.
    """

    def __init__(self, executor: Executor, work: Callable[..., list[Timed]], *arguments: Any,
                 groups: Callable[[Sequence[Cell]], list[list[Cell]]] | None = None,
                 note: Callable[[Spec], str] = lambda spec: "",
                 says: Callable[[Result], str] = lambda result: "", open_loop: bool = True) -> None:
        self.executor, self.work, self.arguments = executor, work, arguments
        self.note, self.says, self.open_loop = note, says, open_loop
        self.groups = groups or (lambda cells: [[cell] for cell in sorted(cells, key=lambda c: -c.cost)])
        self._warm = False

    def warm(self) -> None:
        """Compile, or load from disk, what cells run; once."""
        if not self._warm:
            pool.result(pool.submit(self.executor, pool.warm, self.open_loop))
        self._warm = True

    def run(self, cells: Sequence[Cell], shown: Shown) -> Generator[tuple[Cell, Result, float], None, None]:
        """Each cell, its result, and seconds of one core, as they are done. Raises as `pool.result` does."""
        shown.begin("loading the simulator (it is compiled once for each version)")
        self.warm()
        shown.begin("")
        by_future: dict[Future[Any], list[Cell]] = {
            pool.submit(self.executor, self.work, *self.arguments, [cell.spec for cell in group]): group
            for group in self.groups(cells)}
        pending = set(by_future)
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                for cell, (result, seconds) in zip(by_future[future], pool.result(future), strict=True):
                    shown.finish(self.says(result), self.note(cell.spec))
                    yield cell, result, seconds


def timed(where: str, compute: Callable[[], list[Result]]) -> list[Timed]:
    """Each result of `compute`, with its share of the seconds of one core. A `UserError` names the cell: `where`."""
    started = time.process_time()
    try:
        results = compute()
    except UserError as e:
        raise UserError(f"{where}: {e.where}", e.cause, e.mend) from None
    seconds = (time.process_time() - started) / len(results)
    return [(result, seconds) for result in results]


def code_digest(files: Sequence[Path]) -> str:
    """Hex SHA-256 over the syntax trees (not comments or layout) of every source file that makes a simulated figure, of
    `files`, which make those of one experiment, and over the shipped cost profiles."""
    every = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    every += [ROOT / "env" / "episodes.py", ROOT / "experiments" / "closed.py", *files]
    profiles = sorted((ROOT / "sim" / "cost" / "profiles").glob("*.json"))
    return code_hash(*(path.read_text(encoding="utf-8") for path in every),
                     repr([path.read_text(encoding="utf-8") for path in profiles]))
