"""A progress bar that a log can read: where there is no terminal, a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

EVERY_S = 10.0


class LoggedProgress(Progress):
    """Rich's bars on a terminal, else their numbers as text.

    note: the field of a task that stands beside its bar. clock: seconds, replaced by tests.
    """

    def __init__(self, console: Console, note: str = "note", clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                         TextColumn(f"{{task.fields[{note}]}}"), console=console)
        self._note, self._clock, self._said = note, clock, clock()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._say()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say()

    def _say(self) -> None:
        if self.console.is_terminal or self._clock() - self._said < EVERY_S:
            return
        self._said = self._clock()
        parts = []
        for task in self.tasks:
            of = "" if task.total is None else f" of {task.total:,.0f}"
            note = str(task.fields.get(self._note) or "")
            parts.append(f"{task.description} {task.completed:,.0f}{of}" + (f" ({note})" if note else ""))
        self.console.print(", ".join(parts), highlight=False, soft_wrap=True)
