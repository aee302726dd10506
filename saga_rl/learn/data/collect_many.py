"""Many episodes in processes, in the order of their tasks, and what a card says of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from saga_rl.experiments.pool import Jobs, result, submit, workers
from saga_rl.learn.data.collect import collect
from saga_rl.learn.data.dataset import COMPONENTS, Episode
from saga_rl.learn.data.task import Task

QUANTILES = (0.1, 0.5, 0.9)


def play_all(tasks: Sequence[Task], jobs: Jobs) -> Generator[Episode, None, None]:
    """The tasks' episodes in order, wherever they are played. Closing the iterator ends the processes."""
    if isinstance(jobs, int) and (jobs == 1 or len(tasks) == 1):
        yield from map(collect, tasks)
        return
    if isinstance(jobs, int):
        yield collect(tasks[0])  # compiles the simulator; the pool's processes then load it instead of compiling it too
        tasks = tasks[1:]
    with workers(jobs) as executor:
        waiting = deque(submit(executor, collect, task) for task in tasks)
        while waiting:
            yield result(waiting.popleft())


class Statistics:
    """What each behaviour did, by name."""

    def __init__(self) -> None:
        self.decisions = 0
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def add(self, e: Episode) -> None:
        self.decisions += len(e)
        self._rows.setdefault(e.behaviour, []).append({
            "decisions": len(e), "candidates": int(e.masks.sum()), "low": float(e.propensity.min()),
            "high": float(e.propensity.max()), "return": float(e.rewards.sum()), "cut": not e.terminated,
            **{name: float(np.sum(e.components.get(name, 0.0))) for name in COMPONENTS}})

    def summary(self) -> dict[str, dict[str, Any]]:
        """By behaviour: `episodes`, `cut` of them, `decisions`, `candidates` (summed), `propensity` [least, largest],
        `returns` (10, 50, 90 % quantiles over episodes), and each component summed."""
        out: dict[str, dict[str, Any]] = {}
        for name, rows in self._rows.items():
            returns = np.quantile([r["return"] for r in rows], QUANTILES)
            sums = {k: sum(r[k] for r in rows) for k in ("decisions", "candidates", "cut", *COMPONENTS)}
            out[name] = {"episodes": len(rows), **sums, "returns": [float(x) for x in returns],
                         "propensity": [min(r["low"] for r in rows), max(r["high"] for r in rows)]}
        return out
