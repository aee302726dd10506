"""The cells of the protocol, and what one of them gives. `run_cells` runs in a worker process.

`open`: evictions on one reference string. `closed`: four policies, sessions that react. `sustain`: the largest load at
which mean completion time is at most `SUSTAINED` x that of infinite memory at the same load.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from saga_rl.aeg.trace import Trace
from saga_rl.experiments.cell import Cell, Result, Spec, make_cell
from saga_rl.experiments.closed import policies_of, roomy
from saga_rl.experiments.compare.settings import STOCK, SUSTAINED
from saga_rl.experiments.simulated import Timed, code_digest, timed
from saga_rl.learn.judge.points import peak
from saga_rl.learn.judge.sessions import arranged
from saga_rl.learn.judge.workloads import Workload, workload
from saga_rl.provenance import sha256
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.openloop.bound import bound

LOADS = tuple(0.2 * 1.2**k for k in range(13))
"""Of the peak: where the largest sustained load is looked for, upwards."""
HALVINGS = 4


def code() -> str:
    """The digest of everything that a cell's figures depend on."""
    here = Path(__file__).resolve()
    compare = [here.parents[3] / "experiments" / "compare" / f"{name}.py" for name in ("scout", "settings", "sources")]
    return code_digest([here, *(here.parents[1] / f"{x}.py" for x in ("sessions", "workloads", "points")), *compare])


def weights(spec: Spec) -> dict[str, str]:
    """Digests of every checkpoint that an arm or a list of evictions names, and of of the learned ones that they name."""
    from saga_rl.policies.learned.checkpoint import load_parts

    todo = [str(x) for x in (*spec.get("arm", {}).values(), *spec.get("evictions", ()))]
    found: dict[str, str] = {}
    while todo:
        name = todo.pop().removeprefix("learned:")
        if not name or not Path(name).is_dir():
            continue
        for part in load_parts(name).values():
            key = str(Path(part.folder).resolve())
            if key not in found:
                found[key] = sha256(Path(part.folder) / "policy.json")
                todo += [str(Path(part.folder) / c.removeprefix("learned:")) for c in part.others.values()
                         if c.startswith("learned:")]
    return dict(sorted(found.items()))


def cell_of(spec: Spec, code_of_all: str, data: str) -> Cell:
    """The cell of `spec`; it depends on the workload's sessions and on the weights that it names, too."""
    source = dict(workload(spec["workload"], data=data or None).identity)
    return make_cell(spec, code_of_all, [source, list(weights(spec).values())])


def run_cells(data: str, specs: list[Spec]) -> list[Timed]:
    """(result, seconds of one core) of the one cell in `specs`. A `UserError` names the cell."""
    (spec,) = specs
    run = {"open": _open, "closed": _closed, "sustain": _sustain}[spec["kind"]]
    return timed(f"{spec['workload']}, {spec['kind']} run of seed {spec['seed']}", lambda: [run(
        workload(spec["workload"], spec.get("hidden", False), data or None), spec)])


def _open(w: Workload, spec: Spec) -> Result:
    trace, config = w.episode(spec["part"], spec["seed"], spec["sessions"])
    figures = bound(trace, config, spec["evictions"])
    return {"belady": figures["belady_recomputed_tokens"], "first_time": figures["first_time_tokens"],
            "recomputed": {k: v["recomputed_tokens"] for k, v in figures["policies"].items()}}


def _setting(w: Workload, spec: Spec) -> tuple[Trace, SimConfig]:
    trace, config = w.episode(spec["part"], spec["seed"], spec["sessions"], spec["point"], spec["workers"],
                              spec.get("load", 1.0))
    if "expiry_s" in spec["arm"]:
        config = replace(config, expiry_s=spec["arm"]["expiry_s"])
    if spec["arm"].get("ends_told"):
        config = replace(config, end_hint=True)
    if spec["arm"].get("infinite"):
        config = replace(config, kv_tokens=roomy(trace, config.kv_tokens))
    if "population" in spec and config.population:
        config = replace(config, population=max(1, round(config.population * spec["population"])))
    return trace, config


def specs_of(arm: dict[str, Any]) -> dict[str, str]:
    """An arm less what concerns the configuration."""
    return {k: v for k, v in arm.items() if k not in ("expiry_s", "ends_told", "infinite")}


def _closed(w: Workload, spec: Spec) -> Result:
    trace, config = _setting(w, spec)
    run = simulate(trace, config, policies_of(specs_of(spec["arm"])), spec["seed"], slo=False)
    if not np.isfinite(run.tct_s).all():
        raise RuntimeError(f"{int((~np.isfinite(run.tct_s)).sum())} sessions were never done: {spec}")
    half = trace.n_sessions // 2
    keep = ("tct_mean_s", "tct_p95_s", "throughput_sessions_per_min", "recomputed_tokens", "preemptions", "migrations")
    return {k: run.metrics[k] for k in keep} | {"first_half_s": float(run.tct_s[:half].mean()),
                                                "second_half_s": float(run.tct_s[half:].mean())}


def _sustain(w: Workload, spec: Spec) -> Result:
    top = peak(w.name, w.data)["per_worker_per_min"] * spec["workers"]
    config = w.config("P2", spec["workers"])
    policies, stock = policies_of(specs_of(spec["arm"])), policies_of({"set": STOCK})

    def holds(load: float) -> bool:
        trace = arranged(w, spec["part"], spec["seed"], spec["sessions"], load * top)
        ours, free = (simulate(trace, c, p, slo=False).metrics["tct_mean_s"] for c, p in (
            (config, policies), (replace(config, kv_tokens=roomy(trace, config.kv_tokens)), stock)))
        return ours <= SUSTAINED * free

    low, high = 0.0, None
    for load in LOADS:
        if not holds(load):
            high = load
            break
        low = load
    if high is None or low == 0.0:
        return {"of_peak": low or LOADS[0], "limited": high is not None, "at_all": low > 0.0, "peak_per_min": top}
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return {"of_peak": low, "limited": True, "at_all": True, "peak_per_min": top}
