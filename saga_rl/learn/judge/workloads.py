"""Named workloads: one set of sessions, split for training, validation and test, for whoever trains or evaluates.

`workload(NAME).episode(PART, SEED, ...)` gives a trace and a simulator configuration. The same arguments give the same
arrangement, so every policy meets the same sessions (common random numbers). Points, on training sessions (`points`):

- P1: closed population, so many sessions a worker, at a capacity where LRU computes again 1.8-3.5 x what Belady does;
- P2: open arrivals at .95 of what stock sustains; P3: mixes that change every 30 minutes at .8 and .9 of peak.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saga_rl.aeg.generators import shift
from saga_rl.aeg.trace import Trace
from saga_rl.env.tasks import ROUNDS
from saga_rl.errors import UserError, unknown_name
from saga_rl.learn.judge import points
from saga_rl.learn.judge.sessions import DEFINED, RECORDED, Sessions, arranged
from saga_rl.sim.config import SimConfig


def workload_names(data: Path | None = None) -> list[str]:
    """Every name; of the recorded ones those that the folder `data` holds."""
    return [*DEFINED, *(n for n, d in RECORDED.items() if data is not None and (data / d.file).exists())]


def workload(name: str, hidden: bool = False, data: Path | str | None = None) -> Workload:
    """The workload `name`. hidden: clients do not say that a session ends. data: the folder of recorded collections.

    Raises `UserError` for an unknown name, and for a recorded one without its file.
    """
    folder = None if data is None else Path(data)
    if name in RECORDED and name not in workload_names(folder):
        raise UserError(f"workload {name!r}", "is a recorded collection whose file is not there",
                        f"name the data folder that holds {RECORDED[name].file}")
    if name not in DEFINED and name not in RECORDED:
        raise unknown_name("workload", name, [*DEFINED, *RECORDED])
    return Workload(name, hidden, str(folder) if name in RECORDED else "")


@dataclass(frozen=True)
class Workload(Sessions):
    """See `workload`, which checks what it is made of."""

    def config(self, point: str = "P1", workers: int = 1) -> SimConfig:
        """`workers` workers of the capacity of P1; a closed population at P1, the trace's arrivals elsewhere."""
        return points.config_at(self, point, workers)

    def episode(self, part: str, seed: int, sessions: int = 0, point: str = "P1", workers: int = 1,
                load: float = 1.0) -> tuple[Trace, SimConfig]:
        """Arrangement `seed` of a part's sessions, and the configuration of the point.

        sessions: how many (0: `ROUNDS` x the population of all workers, or one round of phases; never more than the
        part holds). load: arrivals come so many times as fast as the point says (P2, P3). Raises `UserError` for P3 of
        a workload without phases.
        """
        config = self.config(point, workers)
        per_min = 0.0
        if point == "P2":
            per_min = 0.95 * points.sustained(self.name, self.data)["per_worker_per_min"]
        elif point == "P3":
            if self.definition.kind != "phases":
                raise UserError(f"workload {self.name!r}", "has no phases, so no point P3",
                                "choose shift or shift-hitl")
            per_min = points.peak(self.name, self.data)["per_worker_per_min"]
        return arranged(self, part, seed, sessions or self.default_sessions(point, workers, per_min),
                        per_min * workers * load), config

    def default_sessions(self, point: str, workers: int, per_min: float) -> int:
        if point == "P3":
            return int(per_min * workers * 0.85 * shift.DEFAULTS.period_s * shift.DEFAULTS.phases / 60)
        return ROUNDS * self.definition.population * workers
