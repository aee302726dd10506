"""Decisions a second of the environments, observations included, one core; beside Stable-Baselines3's vectors.

    python benchmarks/environments.py [--envs B,...] [--threads N] [--seconds S] [--json FILE] [--picture FILE]

**Native**: vectors of `saga_rl/Eviction-v0` through Gymnasium's `step`, infos and masks included, with observations
left in the buffer and copied each step; and the compiled call alone. **SB3**: `DummyVecEnv` and `SubprocVecEnv` (a
process a core) over the single environment, in the same run, on the same workloads. Theirs reset by recording a new
episode, a closed-loop run, where native takes one from its pool; so DummyVecEnv is shown without its resets as well.
**Closed loop**: native vectors of the others (`saga_rl/Placement-v0` and so on), infos included, beside
Gymnasium's `SyncVectorEnv` over the single ones, on the same workload; resets are included in both. **The run itself**:
requests a second of the placement environments' runs when policies place and nobody is asked, reset or shown anything:
what no environment over this simulator can exceed, with one placement a request.

Seconds are processor seconds of one thread, so that neighbours on the machine do not count; for SubprocVecEnv, which
has processes of its own, and for native vectors whose slots `--threads` share, seconds of the clock: trust these on an
idle machine only. Actions are 0 or 1 at random, which at
a decision are always on offer. Best of the rounds. EnvPool's figures are its authors', of other environments on other
machines, and not measured here.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv
from rich.console import Console
from rich.table import Table

import saga_rl.env as ids
from saga_rl.aeg.generators import generate
from saga_rl.env.episodes import resample
from saga_rl.env.single import TaskEnv
from saga_rl.env.vector import TaskVectorEnv
from saga_rl.errors import EXIT_BAD_INPUT, UserError
from saga_rl.files import check_target, write_json
from saga_rl.provenance import provenance
from saga_rl.report.style import PALETTE, dress, new_figure, save
from saga_rl.sim.cluster import Cluster

KV, SESSIONS = 240_000, 30
WORKLOADS = {"swe-bench": 9, "webarena": 12, "burstgpt": 6}
"""Generator and sessions alive at once on a worker of `KV` tokens."""
CLOSED = (ids.PLACEMENT_ID, ids.ORDERING_ID, ids.ADMISSION_ID, ids.JOINT_ID, ids.SCHEDULER_ID)
FEW = 8
"""Environments in a vector that steps them one after another."""
TARGET = 300_000
ENVPOOL = {"source": "github.com/sail-sg/envpool, README (published, not measured here)", "decisions_per_s": {
    "Atari frames, 256 cores of a DGX-A100": 1_000_000, "MuJoCo steps, 256 cores of a DGX-A100": 3_000_000}}


class Timed(TaskEnv):
    """Knows how long its resets took."""

    resets_s = 0.0

    def reset(self, **options: Any) -> Any:
        started = time.process_time()
        out = super().reset(**options)
        self.resets_s += time.process_time() - started
        return out


def rate(step: Callable[[np.ndarray], Any], envs: int, seconds: float, rounds: int = 3,
         clock: Callable[[], float] = time.process_time) -> float:
    """Decisions a second of the clock, best of the rounds."""
    actions = np.random.default_rng(0).integers(0, 2, (1024, envs))
    for k in range(8):
        step(actions[k])
    best = 0.0
    for _ in range(rounds):
        n, started = 0, clock()
        while clock() - started < seconds / rounds:
            for _ in range(8):
                step(actions[n % 1024])
                n += 1
        best = max(best, n * envs / (clock() - started))
    return best


def clock_of(threads: int) -> Callable[[], float]:
    return time.process_time if threads == 1 else time.perf_counter


def native(trace: Any, population: int, envs: int, seconds: float, threads: int) -> dict[str, Any]:
    made = {copy: TaskVectorEnv("eviction", envs, trace, KV, sessions=SESSIONS, population=population, episodes=8,
                                copy=copy, threads=threads) for copy in (False, True)}
    out: dict[str, Any] = {"envs": envs}
    clock = clock_of(threads)
    for copy, env in made.items():
        env.reset(seed=0)
        out["copied_per_s" if copy else "per_s"] = rate(env.step, envs, seconds, clock=clock)
    env = made[False]
    out["compiled_per_s"] = rate(env._runner.step, envs, seconds, clock=clock)
    rows = []
    for k in range(200):
        env.step(np.full(envs, k % 2))
        rows.append(env.action_masks().sum(axis=1).mean())
    out["mean_rows"] = float(np.mean(rows))
    return out


def sb3(trace: Any, population: int, seconds: float, processes: int) -> dict[str, float]:
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    make = partial(Timed, "eviction", trace, KV, sessions=SESSIONS, population=population)
    dummy = DummyVecEnv([make] * FEW)
    dummy.seed(0)
    dummy.reset()
    before, started, n = sum(e.resets_s for e in dummy.envs), time.process_time(), 0  # type: ignore[attr-defined]
    actions = np.random.default_rng(0).integers(0, 2, (1024, FEW))
    while time.process_time() - started < seconds:
        dummy.step(actions[n % 1024])
        n += 1
    took = time.process_time() - started
    resets = sum(e.resets_s for e in dummy.envs) - before  # type: ignore[attr-defined]
    out = {"dummy_per_s": n * FEW / took, "dummy_without_resets_per_s": n * FEW / (took - resets)}
    sub = SubprocVecEnv([make] * processes, start_method="fork")
    sub.seed(0)
    sub.reset()
    out["subproc_per_s"] = rate(sub.step, processes, seconds, 1, time.perf_counter)
    sub.close()
    return out


def closed(name: str, counts: list[int], seconds: float, threads: int) -> dict[str, Any]:
    """A closed-loop environment in SyncVectorEnv and in its native vectors, resets included."""
    place = {ids.PLACEMENT_ID: {"workers": 4, "population": 48},
             ids.SCHEDULER_ID: {"workers": 2, "population": 32}}.get(name, {"population": 16})
    options = {"trace": generate("webarena", 0, sessions=60, max_context=65_536), "kv_tokens": KV, "sessions": SESSIONS,
               **place}
    sync = SyncVectorEnv([partial(gym.make, name, **options)] * FEW)
    sync.reset(seed=0)
    out: dict[str, Any] = {"sync_per_s": rate(sync.step, FEW, seconds, 1), "native": []}
    sync.close()
    for envs in counts:
        env: Any = gym.make_vec(name, envs, episodes=8, copy=False, threads=threads, **options).unwrapped
        env.reset(seed=0)
        clock = clock_of(threads)
        out["native"].append({"envs": envs, "per_s": rate(env.step, envs, seconds, clock=clock),
                              "compiled_per_s": rate(env._runner.step, envs, seconds, clock=clock)})
    return out


def itself(seconds: float) -> float:
    """Requests a second of the run that a placement environment plays, without the environment."""
    env: Any = gym.make(ids.PLACEMENT_ID, trace=generate("webarena", 0, sessions=60, max_context=65_536), kv_tokens=KV,
                        sessions=SESSIONS, workers=4, population=48).unwrapped
    rng, requests, took = np.random.default_rng(0), 0, 0.0
    given = env.settings
    Cluster(given.trace, given.config, given.policies).advance()
    while took < seconds:
        trace = resample(given.trace, rng, SESSIONS)
        cluster, started = Cluster(trace, given.config, given.policies), time.process_time()
        cluster.advance()
        took += time.process_time() - started
        requests += trace.n_steps
    return requests / took


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    rows = []
    for name, population in WORKLOADS.items():
        trace = generate(name, 0, sessions=100, max_context=65_536)
        say(f"{name}: native")
        vectors = [native(trace, population, envs, args.seconds, args.threads) for envs in args.envs]
        say(f"{name}: SB3")
        rows.append({"workload": name, "population": population, "kv_tokens": KV, "native": vectors,
                     "sb3": sb3(trace, population, args.seconds, cores)})
    loops = {}
    for name in CLOSED:
        say(name)
        loops[name] = closed(name, args.envs, args.seconds, args.threads)
    return {"eviction": rows, "closed_loop": loops, "run_itself_per_s": itself(args.seconds), "cores": cores,
            "threads": args.threads,
            "load_before": load, "load_after": os.getloadavg()[0], "target_per_s": TARGET, "envpool": ENVPOOL}


def show(result: dict[str, Any]) -> None:
    table = Table(title="thousand decisions a second, observations included")
    for column in ("workload", "environments", "rows", "native", "copying", "compiled call", "DummyVecEnv",
                   "without resets", "SubprocVecEnv", "native / Dummy"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for r in result["eviction"]:
        theirs = r["sb3"]
        for v in r["native"]:
            best = max(theirs["dummy_without_resets_per_s"], theirs["subproc_per_s"])
            table.add_row(r["workload"], str(v["envs"]), f"{v['mean_rows']:.1f}",
                          *(f"{x / 1000:.1f}" for x in (v["per_s"], v["copied_per_s"], v["compiled_per_s"],
                                                        theirs["dummy_per_s"], theirs["dummy_without_resets_per_s"],
                                                        theirs["subproc_per_s"])), f"{v['per_s'] / best:.0f} x")
    loops = Table(title=f"closed loop, thousand decisions a second, resets included, beside SyncVectorEnv of {FEW}")
    for column in ("environment", "environments", "native", "compiled call", "SyncVectorEnv", "native / Sync"):
        loops.add_column(column, justify="left" if column == "environment" else "right")
    for name, r in result["closed_loop"].items():
        for v in r["native"]:
            loops.add_row(name, str(v["envs"]), *(f"{x / 1000:.1f}" for x in (v["per_s"], v["compiled_per_s"],
                                                                              r["sync_per_s"])),
                          f"{v['per_s'] / r['sync_per_s']:.0f} x")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table, loops)
    console.print(f"threads of native: {result['threads']}, processes of SubprocVecEnv: {result['cores']}, "
                  f"load {result['load_before']:.2f} before, "
                  f"{result['load_after']:.2f} after; the last column is over the faster of SB3's, DummyVecEnv without "
                  "its resets", highlight=False)
    console.print(f"the run itself, nobody asked: {result['run_itself_per_s'] / 1000:.1f} thousand requests a second",
                  highlight=False)
    for what, speed in result["envpool"]["decisions_per_s"].items():
        console.print(f"EnvPool, published, not measured here: {speed / 1e6:.0f} million {what}: {speed / 256:,.0f} "
                      "a core", highlight=False)


def picture(result: dict[str, Any], path: Path) -> None:
    figure = new_figure(8, 3.6)
    axes = figure.subplots()
    bars: list[tuple[str, float, str]] = []
    for r in result["eviction"]:
        best = max(r["native"], key=lambda v: v["per_s"])
        bars += [(f"{r['workload']}: native, {best['envs']}", best["per_s"], PALETTE[0]),
                 (f"{r['workload']}: DummyVecEnv, no resets", r["sb3"]["dummy_without_resets_per_s"], PALETTE[1]),
                 (f"{r['workload']}: SubprocVecEnv", r["sb3"]["subproc_per_s"], PALETTE[4])]
    for y, (_, speed, colour) in enumerate(reversed(bars)):
        axes.barh(y, speed, color=colour)
        axes.text(speed, y, f" {speed:,.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [label for label, *_ in reversed(bars)], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(100, 5e6)
    axes.axvline(result["target_per_s"], color="black", linewidth=0.8)
    dress(axes, "Eviction decisions a second, one core (line: the target)", "decisions a second", "")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--envs", default="16,64,256", help="environments in one native vector, with commas between")
    parser.add_argument("--threads", type=int, default=1, help="that share the environments of a native vector")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--picture", type=Path, help="write a PNG there")
    args = parser.parse_args()
    try:
        args.envs = [int(x) for x in args.envs.split(",")]
    except ValueError:
        parser.error("--envs must be whole numbers with commas between")
    if min(args.envs) < 1 or args.threads < 1 or not 0.1 <= args.seconds <= 600:
        parser.error("--envs and --threads must be at least 1, --seconds between 0.1 and 600")
    try:
        check_target(args.json)
        check_target(args.picture)
        with Console(stderr=True).status("compiling") as status:
            result = measure(args, status.update)
        if args.json:
            write_json(args.json, {**result, "provenance": provenance(seed=0, trace=None)})
        if args.picture:
            picture(result, args.picture)
    except UserError as e:
        print(e, file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    show(result)


if __name__ == "__main__":
    main()
