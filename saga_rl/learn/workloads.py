"""Named workloads: one set of sessions, split for training, validation and test, for whoever trains or evaluates.

`workload(NAME).episode(PART, SEED, ...)` gives a trace and a simulator configuration. The same arguments give the same
arrangement, so every policy meets the same sessions (common random numbers). Points, on training sessions (`points`):

- P1: closed population, so many sessions a worker, at a capacity where LRU computes again 1.8-3.5 x what Belady does;
- P2: open arrivals at .95 of what stock sustains; P3: mixes that change every 30 minutes at .8 and .9 of peak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.generators import generate, shift, swe_bench
from saga_rl.aeg.generators.agents import ANY_TOOL, AgentType, Params, Source, agents_at, uniform
from saga_rl.aeg.split import split
from saga_rl.aeg.trace import Trace
from saga_rl.compare.sources import COLLECTIONS
from saga_rl.env.episodes import arrange
from saga_rl.errors import UserError, unknown_name
from saga_rl.sim.config import SimConfig

PARTS = {"train": 0.5, "validation": 0.2, "test": 0.3}
POINTS = ("P1", "P2", "P3")
SEED = 5
"""Of what is generated, and of the split."""
ROUNDS = 4
"""An episode of a closed population runs so many sessions for each that is alive at once."""
HITL = 0.1
FOREIGN = AgentType("foreign", mean_steps=16, min_steps=4, max_steps=60, system_tokens=6144,
                    new_tokens=uniform(200, 9000), output_tokens=uniform(200, 900), mix={"web": 0.3, "database": 0.7},
                    ends=ANY_TOOL)
"""No generator that anybody trains on makes it."""


@dataclass(frozen=True)
class Definition:
    """Where the sessions come from: a generator's parameters, or a file below a data folder with its importer.

    population: sessions alive at once on a worker at P1. kind: `drawn` (any order), `phases` (`generators/shift.py`),
    `drift` (first `swe` sessions, then `foreign` ones) or `consecutive` (block ids say what sessions share)."""

    source: str
    population: int
    sessions: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "drawn"
    file: str = ""


def _made() -> dict[str, Definition]:
    hitl = {"hitl_share": HITL}
    return {
        "swe": Definition("swe-bench", 9, 2400), "web": Definition("webarena", 10, 3200),
        "burst": Definition("burstgpt", 12, 1600),
        "swe-hitl": Definition("swe-bench", 12, 2400, hitl), "web-hitl": Definition("webarena", 12, 3200, hitl),
        "hetero": Definition("hetero", 16, 3200), "hetero-hitl": Definition("hetero", 16, 3200, hitl),
        "coding": Definition("coding", 12, 1200),
        "shift": Definition("shift", 12, 4000, kind="phases"),
        "shift-hitl": Definition("shift", 12, 4000, hitl, kind="phases"),
        "drift": Definition("drift", 12, 1600, kind="drift")}


DEFINED = _made()
RECORDED = {name: Definition(importer, 16, n, options, "consecutive" if importer == "mooncake" else "drawn", file)
            for file, name, importer, n, options in COLLECTIONS}


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
class Workload:
    """See `workload`, which checks what it is made of."""

    name: str
    hidden: bool = False
    data: str = ""

    @property
    def definition(self) -> Definition:
        return (DEFINED | RECORDED)[self.name]

    @property
    def identity(self) -> dict[str, Any]:
        """What its sessions are determined by, besides the code."""
        from saga_rl.provenance import sha256

        out = asdict(self.definition) | {"name": self.name, "seed": SEED, "parts": PARTS}
        return out | {"sha256": sha256(Path(self.data) / self.definition.file) if self.data else None}

    def split(self, part: str) -> Trace:
        """The sessions of `train`, `validation` or `test`: no group of sessions lies in two of them."""
        if part not in PARTS:
            raise unknown_name("part of a workload", part, PARTS)
        return _parts(self.name, self.data)[part]

    def config(self, point: str = "P1", workers: int = 1) -> SimConfig:
        """`workers` workers of the capacity of P1; a closed population at P1, the trace's arrivals elsewhere."""
        from saga_rl.learn.points import pressure

        if point not in POINTS:
            raise unknown_name("point", point, POINTS)
        closed = self.definition.population * workers if point == "P1" else 0
        return SimConfig(workers=workers, kv_tokens=pressure(self.name, self.data)["kv_tokens"], population=closed,
                         end_hint=not self.hidden)

    def episode(self, part: str, seed: int, sessions: int = 0, point: str = "P1", workers: int = 1,
                load: float = 1.0) -> tuple[Trace, SimConfig]:
        """Arrangement `seed` of a part's sessions, and the configuration of the point.

        sessions: how many (0: `ROUNDS` x the population of all workers, or one round of phases; never more than the
        part holds). load: arrivals come so many times as fast as the point says (P2, P3). Raises `UserError` for P3 of
        a workload without phases.
        """
        from saga_rl.learn.points import peak, sustained

        config = self.config(point, workers)
        per_min = 0.0
        if point == "P2":
            per_min = 0.95 * sustained(self.name, self.data)["per_worker_per_min"]
        elif point == "P3":
            if self.definition.kind != "phases":
                raise UserError(f"workload {self.name!r}", "has no phases, so no point P3",
                                "choose shift or shift-hitl")
            per_min = peak(self.name, self.data)["per_worker_per_min"]
        return arranged(self, part, seed, sessions or self.default_sessions(point, workers, per_min),
                        per_min * workers * load), config

    def default_sessions(self, point: str, workers: int, per_min: float) -> int:
        if point == "P3":
            return int(per_min * workers * 0.85 * shift.DEFAULTS.period_s * shift.DEFAULTS.phases / 60)
        return ROUNDS * self.definition.population * workers


@lru_cache(maxsize=24)
def arranged(w: Workload, part: str, seed: int, sessions: int, per_min: float) -> Trace:
    """`sessions` of a part's sessions, as many as there are, arriving at `per_min` a minute (0: one a second).

    Drawn sessions arrive as a Poisson stream. Where block ids say what sessions share, consecutive ones are taken,
    their recorded gaps stretched to that rate. Phases and drift keep their order; what a phase asks for is drawn anew;
    without a rate one round of phases holds all sessions.
    """
    trace = w.split(part)
    rng = np.random.default_rng([SEED, seed])
    n = min(sessions, trace.n_sessions)
    rate = (per_min or 60.0) / 60.0
    kind = w.definition.kind
    if kind == "consecutive":
        first = int(rng.integers(0, trace.n_sessions - n + 1))
        rows = np.arange(first, first + n)
        at = trace.sessions.arrival_s[rows] - trace.sessions.arrival_s[first]
        return arrange(trace, rows, at * ((n - 1) / rate / at[-1]) if n > 1 and at[-1] > 0 else at)
    if kind == "phases":
        phases = shift.DEFAULTS.phases
        period = shift.DEFAULTS.period_s if per_min else n / (rate * float(np.mean(shift.LEVELS)) * phases)
        at, what = shift.arrivals(rng, n, rate, period, phases)
        names = [s.agent.name for s in shift.sources()]
        rows, there = _take(trace, rng, np.array([trace.agent_types.index(names[k]) for k in what]))
        return arrange(trace, rows, at[there])
    at = np.cumsum(rng.exponential(1.0 / rate, n))
    if kind == "drift":
        types = np.array([trace.agent_types.index(t) for t in (swe_bench.AGENT.name, FOREIGN.name)])
        rows, there = _take(trace, rng, types[(2 * np.arange(n)) // n])
        return arrange(trace, rows, at[there])
    return arrange(trace, rng.permutation(trace.n_sessions)[:n], at)


def _take(trace: Trace, rng: np.random.Generator, wanted: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """A different random session for each wanted agent type, and for which of `wanted` there was one."""
    rows = np.full(len(wanted), -1)
    for kind in np.unique(wanted):
        places = np.flatnonzero(wanted == kind)
        drawn = rng.permutation(np.flatnonzero(trace.sessions.agent_type == kind))[:len(places)]
        rows[places[:len(drawn)]] = drawn
    there = np.flatnonzero(rows >= 0)
    return rows[there], there


@lru_cache(maxsize=16)
def _parts(name: str, data: str) -> dict[str, Trace]:
    made = (DEFINED | RECORDED)[name]
    if made.file:
        from saga_rl.learn.points import imported

        trace = imported(name, data)
    elif made.kind == "drift":
        trace = _drift(made.sessions)
    else:
        trace = generate(made.source, SEED, sessions=made.sessions, **made.params)
    return parts_of(trace)


def parts_of(trace: Trace) -> dict[str, Trace]:
    """By group; by time where block ids say what sessions share, less later sessions of a group that an earlier part
    holds."""
    if not trace.meta.hash_block_tokens:
        return split(trace, PARTS, SEED)
    cuts = np.round(np.cumsum([0.0, *PARTS.values()]) * trace.n_sessions).astype(int)
    seen: set[str] = set()
    out = {}
    for part, low, high in zip(PARTS, cuts, cuts[1:], strict=False):
        keep = [i for i in range(low, high) if trace.sessions.group[i] not in seen]
        if not keep:
            raise UserError(f"part {part}", "would be empty: its groups of sessions begin in an earlier part",
                            "give a longer trace")
        seen |= {trace.sessions.group[i] for i in keep}
        out[part] = trace.select(keep, f"{trace.meta.name}-{part}")
    return out


def _drift(sessions: int) -> Trace:
    rng = np.random.default_rng(SEED)
    made = [Source("swe", swe_bench.AGENT, 0.5), Source("foreign", FOREIGN, 0.5)]
    what = (2 * np.arange(sessions) // sessions).astype(np.int64)
    return agents_at("drift", SEED, Params(sessions), made, np.arange(sessions, dtype=np.float64), what, rng)
