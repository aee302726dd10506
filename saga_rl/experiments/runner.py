"""The runner: whatever is missing of a set of cells is run by a backend and filed in the journal, all else is there."""

from __future__ import annotations

import time
from collections.abc import Generator, Hashable, Mapping, Sequence
from contextlib import closing
from typing import Protocol, TypeVar

from rich.console import Console

from saga_rl.experiments.cell import Cell, Result
from saga_rl.experiments.journal import Journal
from saga_rl.experiments.progress import Shown

K = TypeVar("K", bound=Hashable)


class Backend(Protocol):
    """What runs cells: processes that simulate (`simulated.Processes`), or servers (`bench.measure.Served`)."""

    def run(self, cells: Sequence[Cell], shown: Shown) -> Generator[tuple[Cell, Result, float], None, None]:
        """A generator of each cell, its result and its seconds, in any order, as they are done. It tells `shown` of
        every cell that is over, and whatever it started ends with it."""


class Runner:
    """An open journal and a backend. Says once what the journal lost."""

    def __init__(self, journal: Journal, backend: Backend, console: Console) -> None:
        self.journal, self.backend, self.console = journal, backend, console
        for sentence in journal.troubles():
            console.print(sentence, style="yellow", markup=False, soft_wrap=True, highlight=False)

    def run(self, what: str, cells: Mapping[K, Cell]) -> dict[K, Result]:
        """The result of every cell, by the key that it is given under; those that the journal lacks are run.

        what: names them where progress is shown. Raises what the backend raises; finished cells are then kept.
        """
        wanted = {cell.key: cell for cell in cells.values()}
        missing = [cell for key, cell in wanted.items() if key not in self.journal.results]
        there = len(wanted) - len(missing)
        if there:
            self.console.print(f"{what}: {there:,} of {len(wanted):,} cells are there already", markup=False,
                               highlight=False)
        if missing:
            began = time.monotonic()
            with (Shown(self.console, len(wanted), what, there) as shown,
                  closing(self.backend.run(missing, shown)) as done):
                for cell, result, seconds in done:
                    self.journal.add(cell, result, seconds)
            self.console.print(f"{what}: {len(missing):,} cells run, {time.monotonic() - began:,.0f} s", markup=False,
                               highlight=False)
        return {key: self.journal.results[cell.key] for key, cell in cells.items()}
