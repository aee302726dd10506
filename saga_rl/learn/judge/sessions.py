"""The sessions of named workloads: where they come from, which part a session is of, and their arrangements.

The same arguments give the same arrangement, so every policy meets the same sessions (common random numbers).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.generators import generate, shift, swe_bench
from saga_rl.aeg.generators.agents import ANY_TOOL, AgentType, Params, Source, agents_at, uniform
from saga_rl.aeg.importers import import_trace
from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.aeg.split import split
from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import arrange
from saga_rl.env.tasks import PARTS, SEED
from saga_rl.errors import UserError, unknown_name
from saga_rl.experiments.compare.sources import COLLECTIONS
from saga_rl.provenance import sha256
from saga_rl.source_hash import code_hash

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


@dataclass(frozen=True)
class Sessions:
    """The sessions of the workload `name`. hidden: clients do not say that a session ends. data: the folder of recorded
    collections, where it is one."""

    name: str
    hidden: bool = False
    data: str = ""

    @property
    def definition(self) -> Definition:
        return (DEFINED | RECORDED)[self.name]

    @property
    def identity(self) -> dict[str, Any]:
        """What its sessions are determined by, besides the code."""
        out = asdict(self.definition) | {"name": self.name, "seed": SEED, "parts": PARTS}
        return out | {"sha256": sha256(Path(self.data) / self.definition.file) if self.data else None}

    def split(self, part: str) -> Trace:
        """The sessions of `train`, `validation` or `test`: no group of sessions lies in two of them."""
        if part not in PARTS:
            raise unknown_name("part of a workload", part, PARTS)
        return _parts(self.name, self.data)[part]


def cache_folder() -> Path:
    """Beside the compiled code's."""
    base = os.environ.get("SAGA_RL_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "saga-rl" / "workloads"


def imported(name: str, data: str) -> Trace:
    """The recorded collection `name` of the folder `data`, kept as a trace file after the first import."""
    made = RECORDED[name]
    source = Path(data) / made.file
    aeg = Path(__file__).resolve().parents[2] / "aeg"
    importers = [p.read_text(encoding="utf-8") for p in sorted(aeg.rglob("*.py"))]
    kept = cache_folder() / f"{name}-{sha256(source)[:12]}-{code_hash(*importers)[:12]}.parquet"
    if kept.exists():
        return read_trace(kept)
    trace = import_trace(made.source, source, **made.params)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_trace(trace, kept)
    return trace


@lru_cache(maxsize=24)
def arranged(w: Sessions, part: str, seed: int, sessions: int, per_min: float) -> Trace:
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
        rows, there = _subset(trace, rng, np.array([trace.agent_types.index(names[k]) for k in what]))
        return arrange(trace, rows, at[there])
    at = np.cumsum(rng.exponential(1.0 / rate, n))
    if kind == "drift":
        types = np.array([trace.agent_types.index(t) for t in (swe_bench.AGENT.name, FOREIGN.name)])
        rows, there = _subset(trace, rng, types[(2 * np.arange(n)) // n])
        return arrange(trace, rows, at[there])
    return arrange(trace, rng.permutation(trace.n_sessions)[:n], at)


def _subset(trace: Trace, rng: np.random.Generator, wanted: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
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
