"""The runs that judge: an arm on an arrangement of a part's sessions, in closed loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.io import read_trace
from saga_rl.aeg.trace import Trace
from saga_rl.experiments.cell import Cell, Result, Spec, make_cell
from saga_rl.experiments.closed import policies_of, roomy
from saga_rl.experiments.compare.arrange import arrangement
from saga_rl.experiments.simulated import Timed, code_digest, timed
from saga_rl.policies.learned.checkpoint import digest, load_parts
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile

TRACES = "traces"
FIGURES = ("tct_mean_s", "tct_p95_s", "ttft_mean_s", "ttft_p95_s", "throughput_sessions_per_min")


def code() -> str:
    """The digest of what a run's figures depend on."""
    here = Path(__file__).resolve().parent
    others = [here.parents[1] / "experiments" / "compare" / "arrange.py", here.parent / "judge" / "sessions.py",
              *sorted((here.parent / "search").glob("*.py"))]
    return code_digest([*(here / f"{name}.py" for name in ("cells", "find", "material", "settings", "world")), *others])


def spec_of(part: str, policies: Mapping[str, str], config: Mapping[str, Any], seed: int, sessions: int,
            load: float, infinite: bool = False) -> Spec:
    """config: of `SimConfig`, its profile by name or file. infinite: a pool that never fills, and no tier below it."""
    return {"part": part, "policies": dict(policies), "config": dict(config), "seed": seed, "sessions": sessions,
            "load": load, "infinite": infinite}


def cell_of(spec: Spec, code: str, digests: Mapping[str, str]) -> Cell:
    """digests: of the parts, and of other files that are read, by name."""
    weights = digest(load_parts(spec["policies"]["set"])) if "set" in spec["policies"] else ""
    return make_cell(spec, code, {"trace": digests[spec["part"]], "weights": weights,
                                  "profile": digests.get("profile", "")}, spec["sessions"])


def run_cells(folder: Path, specs: list[Spec]) -> list[Timed]:
    """In a worker: (result, seconds of one core) of each."""
    return [one for spec in specs for one in timed(f"{spec['part']} sessions, arrangement {spec['seed']}",
                                                   partial(_closed, folder, spec))]


@lru_cache(maxsize=3)
def _part(folder: Path, part: str) -> Trace:
    return read_trace(folder / TRACES / f"{part}.parquet")


def _closed(folder: Path, spec: Spec) -> list[Result]:
    given = dict(spec["config"])
    trace = arrangement(_part(folder, spec["part"]), spec["seed"], spec["sessions"], spec["load"] or 1.0)
    config = SimConfig(profile=load_profile(given.pop("profile")), **given)
    if spec["infinite"]:
        config = replace(config, kv_tokens=roomy(trace, config.kv_tokens), cpu_tokens=0)
    run = simulate(trace, config, policies_of(spec["policies"]), spec["seed"], slo=False)
    first = run.steps["first_token_s"] - run.steps["ready_s"]
    return [{**{k: v for k, v in run.metrics.items() if k not in ("wall_s", "tenants")}, "ttft_mean_s": _mean(first),
             "ttft_p95_s": float(np.quantile(first, 0.95)), "sessions": trace.n_sessions, "steps": trace.n_steps}]


def _mean(x: NDArray[np.float64]) -> float:
    return float(x.mean())
