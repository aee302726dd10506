"""The cells of a compare, and what one of them gives.

kinds: `pressure` and `sustain` (`scout.py`), `open` (an eviction policy on a fixed reference string), `closed` (four
policies, sessions that react). A spec holds kind, trace, half, seed, sessions, config, and what the kind wants.
`run_job` runs in a worker process and takes cells that share their preparation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from saga_rl.aeg.io import read_trace
from saga_rl.aeg.trace import Trace
from saga_rl.experiments.cell import Cell, Result, Spec
from saga_rl.experiments.closed import policies_of, roomy
from saga_rl.experiments.compare import scout
from saga_rl.experiments.compare.arrange import arrangement
from saga_rl.experiments.compare.settings import constraints
from saga_rl.experiments.simulated import Timed, code_digest, timed
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile
from saga_rl.sim.openloop.bound import bound


def jobs_of(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells grouped by what they share (one reference string for several policies), costliest first."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        s = cell.spec
        shared = json.dumps([s["trace"], s["half"], s["seed"], s["sessions"], s["config"]], sort_keys=True)
        groups.setdefault(shared if s["kind"] == "open" else cell.key, []).append(cell)
    return sorted(groups.values(), key=lambda group: -sum(c.cost for c in group))


def code() -> str:
    """The digest of what a cell's figures depend on. What only plans, counts or draws is not among it: it may change,
    and the cells stay good."""
    here = Path(__file__).resolve().parent
    return code_digest([here / f"{name}.py" for name in ("arrange", "cells", "scout", "sources", "settings")])


def run_job(folder: Path, specs: list[Spec]) -> list[Timed]:
    """(result, seconds of one core) of every cell. A `UserError` names the cell."""
    first = specs[0]
    one = {"pressure": _pressure, "sustain": _sustain, "closed": _closed}.get(first["kind"])
    return timed(f"trace {first['trace']}, {first['kind']} cell of seed {first['seed']}",
                 lambda: _open(folder, specs) if one is None else [one(folder, first)])


@lru_cache(maxsize=4)
def _half(folder: Path, name: str, half: str) -> Trace:
    return read_trace(folder / "traces" / f"{name}-{half}.parquet")


@lru_cache(maxsize=8)
def _arranged(folder: Path, name: str, half: str, seed: int, sessions: int, speed: float) -> Trace:
    return arrangement(_half(folder, name, half), seed, sessions, speed)


def arranged(folder: Path, spec: Spec, seed: int | None = None, speed: float = 1.0) -> Trace:
    """The arrangement that a cell asks for."""
    return _arranged(folder, spec["trace"], spec["half"], spec["seed"] if seed is None else seed, spec["sessions"],
                     speed)


def config_of(given: dict[str, Any]) -> SimConfig:
    """`SimConfig` from its JSON."""
    rest = dict(given)
    profile = load_profile(rest.pop("profile"))
    rest["constraints"] = constraints(rest.pop("constraints", {}))
    return SimConfig(profile=profile, **rest)


def _open(folder: Path, specs: list[Spec]) -> list[Result]:
    spec = specs[0]
    names = [each["eviction"] for each in specs]
    figures = bound(arranged(folder, spec), config_of(spec["config"]), names)
    shared = {k: figures[k] for k in ("capacity_tokens", "belady_recomputed_tokens", "first_time_tokens",
                                      "low_pressure")}
    return [shared | {"recomputed_tokens": figures["policies"][name]["recomputed_tokens"]} for name in names]


def _closed(folder: Path, spec: Spec) -> Result:
    trace = arranged(folder, spec, speed=spec["speed"])
    given = dict(spec["config"])
    if spec.get("infinite"):
        given["kv_tokens"] = roomy(trace, given["kv_tokens"])
    figures = simulate(trace, config_of(given), policies_of(spec["policies"]), spec["seed"], slo=spec["slo"]).metrics
    out = {k: v for k, v in figures.items() if k != "wall_s"}
    if out["sessions_done"] != trace.n_sessions or not math.isfinite(out["tct_mean_s"]):
        raise RuntimeError(f"{trace.n_sessions - out['sessions_done']} sessions were never done: {spec}")
    return out


def _pressure(folder: Path, spec: Spec) -> Result:
    traces = [arranged(folder, spec, seed) for seed in spec["seeds"]]
    return scout.pressure(traces, config_of(spec["config"]), spec["least_tokens"])


def _sustain(folder: Path, spec: Spec) -> Result:
    config = config_of(spec["config"])

    def at(speed: float) -> list[Trace]:
        return [arranged(folder, spec, seed, speed) for seed in spec["seeds"]]

    return scout.sustained(at, config, lambda trace: roomy(trace, config.kv_tokens))
