"""How fast the closed-loop simulator is, how its time grows with sessions, and what a large cluster costs in memory.

    python benchmarks/simulator.py [--parts speed growth large] [--out DIR]

speed: 500 swe-bench sessions at 8 a minute on 16 workers (the SAGA paper's 64-GPU run), every preset, against the same
engine taking every iteration singly, in the same process. growth: 500 to 16,000 sessions, closed population, with a
plot of time over n log n. large: 100,000 sessions on 1,024 workers in a process of its own, with its peak memory.
Prints tables, writes `simulator.json` and `simulator.svg`. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from saga_rl.aeg.generators import generate
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError, run_user_command
from saga_rl.files import check_target, write_json
from saga_rl.policies.presets import preset, preset_names
from saga_rl.provenance import provenance
from saga_rl.sim.cluster import Cluster
from saga_rl.sim.config import SimConfig
from saga_rl.sim.engine import state as st

STEPS_PER_S, SECONDS, GIB = 200_000, 1.0, 4.0
"""Targets: LLM steps a second, seconds for the 64-GPU run, peak memory of the large cluster."""
GROWTH = (500, 1_000, 2_000, 4_000, 8_000, 16_000)
PARTS = ("speed", "growth", "large")


def timed(trace: Trace, config: SimConfig, name: str, repeats: int) -> tuple[float, Cluster]:
    """(least seconds of a run, set-up and compilation left out; the last run)."""
    best = math.inf
    for _ in range(repeats):
        cluster = Cluster(trace, config, preset(name))
        started = time.perf_counter()
        cluster.advance()
        best = min(best, time.perf_counter() - started)
    return best, cluster


def speed(console: Console, repeats: int) -> list[dict[str, Any]]:
    trace = generate("swe-bench", 1, sessions=500)
    config = SimConfig(workers=16)
    table = Table(title=f"{trace.n_sessions} swe-bench sessions, {trace.n_steps:,} steps, 16 workers, one core; "
                        f"targets {STEPS_PER_S:,} steps/s, {SECONDS:g} s")
    for column in ("preset", "seconds", "steps / s", "of target", "iterations / s", "singly, s", "ratio",
                   "x real time"):
        table.add_column(column, justify="left" if column == "preset" else "right")
    rows = []
    with console.status("compiling") as status:
        for name in preset_names():
            timed(trace, config, name, 1)
            status.update(f"{name}: best of {repeats}")
            seconds, cluster = timed(trace, config, name, repeats)
            singly, _ = timed(trace, replace(config, single_steps=True), name, 1)
            run = cluster.world.run
            span, steps = float(run.done_s.max() - run.begin_s.min()), trace.n_steps / seconds
            rows.append({"preset": name, "seconds": seconds, "steps_per_s": steps, "of_target": steps / STEPS_PER_S,
                         "iterations": int(run.count[st.ITERATIONS]), "singly_s": singly,
                         "ratio_to_singly": singly / seconds,
                         "real_time": span / seconds})
            table.add_row(name, f"{seconds:.3f}", f"{steps:,.0f}", f"{steps / STEPS_PER_S:.2f}",
                          f"{run.count[st.ITERATIONS] / seconds:,.0f}", f"{singly:.2f}", f"{singly / seconds:.1f}",
                          f"{span / seconds:,.0f}")
    console.print(table)
    return rows


def growth(console: Console, repeats: int) -> list[dict[str, Any]]:
    config, rows = SimConfig(workers=16, population=200), []
    table = Table(title="Growth: 16 workers, 200 swe-bench sessions at once, stock policies")
    for column in ("sessions", "steps", "seconds", "ns / (n log n)"):
        table.add_column(column, justify="right")
    with console.status("growth") as status:
        for n in GROWTH:
            status.update(f"{n:,} sessions")
            trace = generate("swe-bench", 1, sessions=n)
            seconds, _ = timed(trace, config, "lru", repeats)
            per = 1e9 * seconds / (n * math.log2(n))
            rows.append({"sessions": n, "steps": trace.n_steps, "seconds": seconds, "ns_per_n_log_n": per})
            table.add_row(f"{n:,}", f"{trace.n_steps:,}", f"{seconds:.2f}", f"{per:,.0f}")
    console.print(table)
    return rows


def large(sessions: int, workers: int) -> None:
    """What the child process of part `large` does: one line of figures on standard output."""
    trace = generate("swe-bench", 1, sessions=sessions, rate_per_min=0.5 * workers)
    started = time.perf_counter()
    cluster = Cluster(trace, SimConfig(workers=workers), preset("lru"))
    made = time.perf_counter()
    cluster.advance()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
    done = int(cluster.world.run.count[st.SESSIONS_DONE])
    print(trace.n_steps, made - started, time.perf_counter() - made, peak, done)


def draw(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    n = [r["sessions"] for r in result["growth"]]
    axes.loglog(n, [r["seconds"] for r in result["growth"]], "o-", label="measured")
    first = result["growth"][0]
    scale = first["seconds"] / (first["sessions"] * math.log2(first["sessions"]))
    axes.loglog(n, [scale * k * math.log2(k) for k in n], "--", color="grey", label="n log n")
    axes.set_xlabel("sessions")
    axes.set_ylabel("seconds, one core")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large-child", nargs=2, type=int, metavar=("SESSIONS", "WORKERS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.large_child:
        large(*args.large_child)
        return
    if args.repeats < 1:
        raise UserError("--repeats", f"is {args.repeats}", "give at least 1")
    args.out.mkdir(parents=True, exist_ok=True)
    check_target(args.out / "simulator.json")
    console = Console()
    result: dict[str, Any] = {"provenance": provenance(seed=1, trace=None)}
    if "speed" in args.parts:
        result["speed"] = speed(console, args.repeats)
    if "growth" in args.parts:
        result["growth"] = growth(console, min(args.repeats, 2))
        draw(result, args.out / "simulator.svg")
    if "large" in args.parts:
        with console.status("100,000 sessions on 1,024 workers"):
            out = subprocess.run([sys.executable, __file__, "--large-child", "100000", "1024"], check=True, text=True,
                                 stdout=subprocess.PIPE).stdout.split()
        steps, make_s, run_s, peak, done = int(out[0]), *map(float, out[1:4]), int(out[4])
        result["large"] = {"steps": steps, "make_s": make_s, "run_s": run_s, "peak_gib": peak, "sessions_done": done}
        console.print(f"1,024 workers, 100,000 sessions, {steps:,} steps: {make_s:.0f} s to set up, {run_s:.0f} s to "
                      f"run ({steps / run_s:,.0f} steps/s), peak memory {peak:.2f} GiB (target {GIB:g}), {done:,} done")
    write_json(args.out / "simulator.json", result)


if __name__ == "__main__":
    run_user_command(main)
