"""The runs: one workload under one arm on the paper's cluster, or one worker's reference string under Bélády."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from saga_rl.aeg.generators import generate
from saga_rl.aeg.scale import scale_lengths
from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import arrange
from saga_rl.experiments.cell import Cell, Result, Spec, make_cell
from saga_rl.experiments.closed import policies_of
from saga_rl.experiments.paper.arms import ARMS, arm_of
from saga_rl.experiments.paper.served import as_served, play_engines
from saga_rl.experiments.paper.values import RATE_PER_MIN, TASKS
from saga_rl.experiments.simulated import Timed, code_digest, timed
from saga_rl.policies.learned.checkpoint import digest as weights_of
from saga_rl.policies.learned.checkpoint import load_parts
from saga_rl.runtime.routing.router import Router
from saga_rl.runtime.sessions.hints import Hints
from saga_rl.sim.cluster import SimResult, simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile
from saga_rl.sim.openloop.bound import bound

EVICTIONS = {"LRU": "lru", "prefix LRU": "lru-protect", "WA-LRU": "wa-lru", "WA-LRU as written": "wa-lru-literal",
             "bayes-tables (auto, likely)": "bayes-tables"}
"""Rows of the paper's comparison with Bélády, by the policy that stands for each."""
CLASSES = ("heavy", "medium", "light")
DECISIONS = 4000
BURST_TASKS = 2400


def cell(spec: Spec, code: str) -> Cell:
    """The cell of `spec`; of a checkpoint its weights are part of the key."""
    name = str(spec.get("arm", ""))
    weights = weights_of(load_parts(name)) if name and name not in ARMS and Path(name).is_dir() else ""
    return make_cell(spec, code, weights, float(spec.get("tasks", 0)))


def code() -> str:
    """The digest of all code that a figure depends on."""
    here = Path(__file__).parent
    runtime = [path for room in ("routing", "engine", "sessions", "emulate")
               for path in sorted((here.parents[1] / "runtime" / room).rglob("*.py"))]
    return code_digest([here / "cells.py", here / "arms.py", here / "served.py", *runtime])


def run_cells(specs: list[Spec]) -> list[Timed]:
    """In a worker: (figures, seconds of one core) of the one spec in `specs`."""
    (spec,) = specs
    return timed(f"{spec['what']}, {spec.get('workload', '')}", lambda: [RUNS[spec["what"]](spec)])


def sessions_of(spec: Mapping[str, Any]) -> Trace:
    """The workload of `spec`: tasks, rate a minute, seed; with `cv` tools of that coefficient of variation, with
    `scale` lengths and tools' times so many times theirs."""
    name = str(spec["workload"])
    trace = generate(name, int(spec["seed"]), sessions=int(spec.get("tasks") or TASKS.get(name, BURST_TASKS)),
                     rate_per_min=float(spec.get("rate") or RATE_PER_MIN))
    if spec.get("scale"):
        trace = scale_lengths(trace, float(spec["scale"]), time_factor=float(spec["scale"]))
    return with_spread(trace, float(spec["cv"]), int(spec["seed"])) if spec.get("cv") else trace


def with_spread(trace: Trace, cv: float, seed: int) -> Trace:
    """The trace with log-normal tool times of coefficient of variation `cv`, each tool's mean kept."""
    steps, rng = trace.steps, np.random.default_rng(seed)
    sigma = np.sqrt(np.log1p(cv ** 2))
    tool_s = steps.tool_s.copy()
    for tool in np.unique(steps.tool):
        mine = np.flatnonzero((steps.tool == tool) & (tool_s > 0))
        if len(mine):
            drawn = rng.lognormal(-sigma ** 2 / 2, sigma, len(mine))
            tool_s[mine] = tool_s[mine].mean() * drawn
    return replace(trace, steps=replace(steps, tool_s=tool_s))


def config_of(spec: Mapping[str, Any]) -> SimConfig:
    """The paper's cluster: its profile's pool (times `scale`), ends announced (its agents give the graph), `workers`
    workers with `alive` sessions on each, or the trace's arrivals; `served`: as engines in service see it."""
    profile, workers = load_profile(str(spec["profile"])), int(spec["workers"])
    arm = arm_of(str(spec.get("arm", "vllm")))
    own = dict(arm.config)
    if spec.get("afs_preempt_s"):
        own["constraints"] = replace(SimConfig().constraints, afs_preempt_s=float(spec["afs_preempt_s"]))
    pool = int((spec.get("kv_tokens") or profile.kv_tokens) * float(spec.get("scale", 1.0)))
    config = SimConfig(workers=workers, kv_tokens=pool, profile=profile,
                       end_hint=True, population=int(spec.get("alive", 0)) * workers,
                       cpu_tokens=int(arm.pools * profile.kv_tokens), **own)
    return as_served(config) if spec.get("served") else config


def closed(spec: Spec) -> Result:
    """Completion times, useful memory, throughput, tasks in time by class, and how busy workers were."""
    trace, config, arm = sessions_of(spec), config_of(spec), arm_of(str(spec["arm"]))
    result = simulate(trace, config, policies_of(arm.specs), slo=bool(spec.get("slo")))
    m = result.metrics
    kept = ("tct_mean_s", "tct_p95_s", "useful_kv_share", "hit_share", "throughput_sessions_per_min", "steals",
            "recomputed_tokens", "migrations", "moved_tokens", "prefetched_tokens", "slo_attainment")
    out: Result = {k: m[k] for k in kept} | {"busy": busy_shares(result, config.workers)}
    if spec.get("slo"):
        for kind in CLASSES:
            rows = [r for r in m["tenants"] if str(r["tenant"]).startswith(kind)]
            done = sum(r["sessions"] * r["slo_attainment"] for r in rows)
            out[f"in_time_{kind}"] = done / sum(r["sessions"] for r in rows)
    return out


def played(spec: Spec) -> Result:
    """Completion times on vLLM's real schedulers in virtual time."""
    return play_engines(sessions_of(spec), config_of(spec), arm_of(str(spec["arm"])))


def busy_shares(result: SimResult, workers: int) -> list[float]:
    """[least, most]: share of the run in which a worker ran anything, by the steps that it served."""
    steps = result.steps
    done = np.isfinite(steps["done_s"])
    span = np.nanmax(steps["done_s"]) - np.nanmin(steps["ready_s"])
    shares = []
    for w in range(workers):
        mine = done & (steps["worker"] == w)
        begin, end = steps["scheduled_s"][mine], steps["done_s"][mine]
        order = np.argsort(begin)
        if not len(begin):
            shares.append(0.0)
            continue
        begin, until = begin[order], np.maximum.accumulate(end[order])
        pauses = np.maximum(begin[1:] - until[:-1], 0.0).sum()
        shares.append(float(until[-1] - begin[0] - pauses) / float(span))
    return [min(shares), max(shares)]


def against_belady(spec: Spec) -> Result:
    """Tokens computed again over Bélády's on one worker's reference string, `alive` sessions at once."""
    trace, alive = sessions_of(spec), int(spec["alive"])
    n = min(8 * alive, trace.n_sessions)
    one = arrange(trace, np.arange(n), np.zeros(n))
    found = bound(one, config_of({**spec, "workers": 1}), list(EVICTIONS.values()))
    return {"ratio": {label: found["policies"][name]["ratio"] for label, name in EVICTIONS.items()},
            "low_pressure": found["low_pressure"]}


def overhead(spec: Spec) -> Result:
    """Milliseconds of one placement among `workers` engines by the router that serves (wall time of this machine)."""
    policies, workers = policies_of(arm_of("saga").specs), int(spec["workers"])
    rng = np.random.default_rng(int(spec["seed"]))
    router, now, flying, took = Router(policies.placement, workers, 256, 1_000_000), 0.0, [], []
    for k in range(DECISIONS):
        now += 0.01
        hints, tokens = Hints(session=f"s{rng.integers(DECISIONS // 4)}"), int(rng.integers(100, 8000))
        started = time.perf_counter()
        router.book(f"r{k}", hints, tokens, router.choose(hints, tokens, now), now)
        took.append(1e3 * (time.perf_counter() - started))
        flying.append(f"r{k}")
        if len(flying) > 4 * workers:
            router.output(flying.pop(0), 100, True, now)
    return {"mean_ms": float(np.mean(took[DECISIONS // 4:]))}


RUNS = {"closed": closed, "played": played, "belady": against_belady, "overhead": overhead}
