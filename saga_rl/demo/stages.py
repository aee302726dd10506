"""Show each stage with its elapsed time, keep its output in a log of its own, and leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

TAIL_LINES = 12


class StageFailed(Exception):
    """A stage did not get to its end; the message says which, and where to read why."""


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
        """Run a command to its end, output to the stage's log. Raises `StageFailed`."""
        with Child(name, command, self.log(name)) as child:
            if child.process.wait() != 0:
                raise child.failure(f"ended with status {child.process.returncode}")


class Child:
    """A process in a session of its own, so that it and everything it started can be stopped together."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.name, self.log = name, log
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                            start_new_session=True, env=os.environ | (env or {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop(grace_s=0.0 if self.process.poll() is not None else 10.0)

    def failure(self, cause: str) -> StageFailed:
        tail = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return StageFailed(f"{self.name} {cause}; its log is {self.log}, which ends with:\n" + "\n".join(tail))

    def stop(self, grace_s: float = 40.0) -> None:
        """Ask it to end, and after `grace_s` seconds end whatever is left of its session."""
        if self.process.poll() is None and grace_s:
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
