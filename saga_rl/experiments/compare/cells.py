"""A cell: one run, described by JSON alone, so that its key says whether its result is there already.

kinds: `pressure` and `sustain` (`scout.py`), `open` (an eviction policy on a fixed reference string), `closed` (four
policies, sessions that react). `run_job` runs in a worker process and takes cells that share their preparation.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from saga_rl.aeg.io import read_trace
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.experiments.compare import scout
from saga_rl.experiments.compare.arrange import arrangement
from saga_rl.experiments.compare.settings import constraints
from saga_rl.policies.base import PolicySet
from saga_rl.policies.presets import from_specs, preset
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile
from saga_rl.sim.openloop.bound import bound

Spec = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """spec: kind, trace, half, seed, sessions, config, and what the kind wants; `cost` orders dispatch, longest first.
    """

    spec: Spec
    key: str
    cost: float


def make_cell(spec: Spec, digests: dict[str, str], code: str, cost: float) -> Cell:
    """digests: of each trace's halves, by `NAME-HALF`. The key is a hash of the spec, the traces read and the code."""
    halves = [spec["half"]] if "half" in spec else ["train", "test"]
    whole = {"spec": spec, "code": code, "traces": [digests[f"{spec['trace']}-{half}"] for half in halves]}
    text = json.dumps(whole, sort_keys=True, allow_nan=False)
    return Cell(spec, hashlib.sha256(text.encode()).hexdigest()[:32], cost)


def jobs_of(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells grouped by what they share (one reference string for several policies), costliest first."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        s = cell.spec
        shared = json.dumps([s["trace"], s["half"], s["seed"], s["sessions"], s["config"]], sort_keys=True)
        groups.setdefault(shared if s["kind"] == "open" else cell.key, []).append(cell)
    return sorted(groups.values(), key=lambda group: -sum(c.cost for c in group))


def run_job(folder: Path, cells: list[Cell]) -> list[tuple[str, Result, float]]:
    """(key, result, seconds of one core) of every cell. A `UserError` names the cell."""
    started = time.process_time()
    first = cells[0].spec
    try:
        if first["kind"] == "open":
            results = _open(folder, cells)
        else:
            results = [{"pressure": _pressure, "sustain": _sustain, "closed": _closed}[first["kind"]](folder, first)]
    except UserError as e:
        raise UserError(f"trace {first['trace']}, {first['kind']} cell of seed {first['seed']}: {e.where}", e.cause,
                        e.mend) from None
    seconds = (time.process_time() - started) / len(cells)
    return [(cell.key, result, seconds) for cell, result in zip(cells, results, strict=True)]


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


def policies_of(given: dict[str, str]) -> PolicySet:
    """Four specs by seam, or a preset or checkpoint under `set`."""
    return preset(given["set"]) if "set" in given else from_specs(given)


def roomy(trace: Trace, tokens: int) -> int:
    """A pool, tokens, that never fills: room for every context of `trace` at once; at least `tokens`."""
    every = int((trace.steps.prompt_tokens + trace.steps.output_tokens).sum()) + 64 * (trace.n_steps + 1)
    return max(every, tokens)


def _open(folder: Path, cells: list[Cell]) -> list[Result]:
    spec = cells[0].spec
    names = [cell.spec["eviction"] for cell in cells]
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
