"""What a person sees while cells run: bars on a terminal, else a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

EVERY_S = 15.0


class Shown:
    """Cells that are done, and the steps of the one that plays where its backend tells them.

    what: names the cells; there: so many of the `total` were done before. clock: seconds, replaced by tests.
    """

    def __init__(self, console: Console, total: int, what: str = "runs", there: int = 0,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.what, self._clock = console, what, clock
        self.total, self.done = total, there
        self._label, self._steps, self._step, self._sessions, self._failed = "", 0, 0, 0, 0
        self._said = self._began = self._started = clock()
        self.bar: Progress | None = None
        if console.is_terminal:
            self.bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                                TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=console, transient=True)
            self._all = self.bar.add_task(what, total=total, completed=there, note="")
            self._one = self.bar.add_task("", total=None, visible=False, note="")

    def __enter__(self) -> Shown:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._said = self._clock()

    def begin(self, label: str, steps: int | None = None) -> None:
        """Something starts: a cell of so many steps, or a server."""
        self._label, self._steps, self._step, self._sessions, self._failed = label, steps or 0, 0, 0, 0
        self._began = self._clock()
        if self.bar is not None:
            self.bar.reset(self._one, description=label, total=steps, visible=bool(label))

    def watch(self, event: str) -> None:
        """What a replay tells: `step`, `session` or `failed`."""
        if event == "failed":
            self._failed += 1
        elif event == "session":
            self._sessions += 1
        else:
            self._step += 1
        self.tick()

    def tick(self) -> None:
        """Show where things are, if it was not shown lately."""
        if self.bar is not None:
            self.bar.update(self._one, completed=self._step)
        elif self._clock() - self._said >= EVERY_S:
            seconds = self._clock() - self._began
            self.say(f"  [{self.done}/{self.total}] {self._label}, {seconds:.0f} s" + (
                f": {self._step} of {self._steps} steps, {self._sessions} sessions over" if self._steps else "")
                + (f", {self._failed} failed" if self._failed else ""))

    def finish(self, text: str = "", note: str = "") -> None:
        """A cell is over. text: a line on it that stays; note: a word that stands beside the bar."""
        self.done += 1
        if self.bar is not None:
            self.bar.update(self._all, advance=1, note=note)
        if text:
            self.say(f"[{self.done}/{self.total}] {text}")
        elif self.bar is None and self._clock() - self._said >= EVERY_S:
            self.say(f"  {self.what}: {self.done:,} of {self.total:,}, {self._clock() - self._started:.0f} s")
