"""Show each stage with its elapsed time, keep its output in a log of its own, and leave no process behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from saga_rl.processes import Child


class Stages:
    """Runs the stages of a demo in turn. `seconds` holds what each took."""

    def __init__(self, folder: Path, console: Console, total: int) -> None:
        self.folder, self.console, self.total = folder, console, total
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[Callable[[str], None]]:
        """Show `what` while the body runs; the body may replace the words by calling what it gets."""
        number, begin = len(self.seconds) + 1, time.monotonic()
        head = f"[{number}/{self.total}] {name}"
        with Progress(SpinnerColumn("line"), TextColumn("{task.description}"), TimeElapsedColumn(),
                      console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            job = progress.add_task(f"{head}: {what}")
            words = [what]

            def say(text: str) -> None:
                words[0] = text
                progress.update(job, description=f"{head}: {text}")

            if not self.console.is_terminal:
                self.console.print(f"{head}: {what}", markup=False, soft_wrap=True)
            yield say
        self.seconds[name] = time.monotonic() - begin
        self.console.print(f"{head}: {words[0]}, {self.seconds[name]:.0f} s", markup=False, soft_wrap=True)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def call(self, name: str, command: Sequence[str]) -> None:
        """Run a command to its end, output to the stage's log. Raises `ProcessFailed`."""
        with Child(name, command, self.log(name)) as child:
            if child.process.wait() != 0:
                raise child.failure(f"ended with status {child.process.returncode}")
