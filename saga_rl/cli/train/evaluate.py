"""Evaluate a checkpoint on held-out sessions: against Belady (open loop) and presets (closed loop, paired seeds).

Losses are printed as plainly as gains. `--out` receives `evaluation.json`, `.md` and `.png`. `protocol.py` evaluates
all policies on all workloads.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from saga_rl.errors import UserError
from saga_rl.files import atomic, write_json
from saga_rl.learn.script import capacities, check_range, progress
from saga_rl.learn.tracking import WandbRun
from saga_rl.provenance import provenance
from saga_rl.report.tables import or_dash, ratio_text, terminal

HEURISTICS = {"lru": "lru", "lru-protect": "lru-protect", "wa-lru": "wa-lru", "wa-lru-literal": "wa-lru-literal"}


def main(
    checkpoint: Annotated[Path, Argument(help="Checkpoint folder (eviction).")],
    trace_file: Annotated[Path, Argument(metavar="TRACE", help="Trace file: sessions that training never saw.")],
    out: Annotated[Path, Option(help="Folder for evaluation.json, .md and .png; made if absent.")],
    kv_tokens: Annotated[str, Option(help="KV capacities of a worker, tokens, with commas between.")] = "",
    pressure: Annotated[str, Option(help="Instead: demand of the live sessions over capacity, e.g. 1.5,3.")] = "",
    workers: Annotated[int, Option(help="Workers of the closed-loop cluster.")] = 1,
    population: Annotated[int, Option(help="Closed population: sessions alive at once; 0 = the trace's arrivals.")] = 0,
    seeds: Annotated[int, Option(help="Arrangements for the closed loop.")] = 10,
    open_seeds: Annotated[int, Option(help="Arrangements for the open loop.")] = 2,
    seed: Annotated[int, Option(help="The first arrangement's seed.")] = 1000,
    profile: Annotated[str | None, Option(help="Cost profile of the simulator.")] = None,
    ends: Annotated[bool, Option(help="Clients announce the end of a session.")] = False,
    wandb: Annotated[str, Option(help="disabled, offline or online: log the results as an artifact.")] = "disabled",
    project: Annotated[str, Option(help="W&B project.")] = "saga-rl",
) -> None:
    """Evaluate one eviction checkpoint on held-out sessions of one trace; protocol.py is the whole protocol."""
    from saga_rl.aeg.io import read_trace
    from saga_rl.aeg.quality import doubts, quality
    from saga_rl.env.episodes import sim_config
    from saga_rl.experiments.compare.settings import STOCK
    from saga_rl.experiments.intervals import COLLAPSE
    from saga_rl.learn.cards import evaluation_card
    from saga_rl.learn.judge.evaluation import closed_loop, open_loop
    from saga_rl.learn.judge.picture import evaluation_picture
    from saga_rl.policies.learned.checkpoint import load_checkpoint
    from saga_rl.policies.presets import preset, preset_names
    from saga_rl.policies.registry import make
    from saga_rl.sim.openloop.bound import LOW_PRESSURE

    for option, value in (("--workers", workers), ("--seeds", seeds), ("--open-seeds", open_seeds)):
        check_range(option, value, 1)
    check_range("--population", population, 0)
    check_range("--seed", seed, 0)
    loaded = load_checkpoint(checkpoint)
    if loaded.decision != "eviction":
        raise UserError(checkpoint, f"is a checkpoint of {loaded.decision}", "name one of eviction")
    trace = read_trace(trace_file)
    sizes = capacities(trace_file, kv_tokens, pressure, population, profile, ends)
    make_folder(out)
    learned = loaded.policies()
    arms = {name: preset(name) for name in (STOCK, *(n for n in preset_names() if n != STOCK))}
    arms |= {"companions": replace(learned, eviction=make("eviction", "wa-lru")), "learned": learned}
    config = sim_config(max(sizes), workers, population, profile, ends)
    specs = HEURISTICS | {"learned": f"learned:{checkpoint}"}
    with progress() as bar:
        job = bar.add_task("evaluating", total=len(sizes) * (open_seeds + seeds * len(arms)), note="compiling")

        def tick(note: str) -> None:
            bar.update(job, advance=1, note=note)

        opened = open_loop(trace, config, sizes, specs, range(seed, seed + open_seeds), tick)
        configs = [sim_config(kv, workers, population, profile, ends) for kv in sizes]
        closed = [closed_loop(trace, c, arms, range(seed, seed + seeds), tick) for c in configs]
    result = {"kind": "simulated", "checkpoint": {"name": checkpoint.name, "sha256": loaded.sha256},
              "rules": {"low_pressure_share": LOW_PRESSURE, "collapse_factor": COLLAPSE},
              "open_loop": opened, "closed_loop": closed, "trace_quality": quality(trace),
              "provenance": provenance(seed=seed, trace=trace_file)}
    write_json(out / "evaluation.json", result)
    evaluation_picture(result, out / "evaluation.png")
    with atomic(out / "evaluation.md") as tmp:
        tmp.write_text(evaluation_card(result, trace.meta.name))
    console = Console()
    report(result, console if console.is_terminal else Console(width=120))
    if doubt := doubts(trace):
        console.print(f"{trace.meta.name}: {doubt}", style="yellow", markup=False, soft_wrap=True)
    facts = {"checkpoint": checkpoint.name, "trace": trace.meta.name}
    with WandbRun(wandb, project, out, facts, "evaluate") as tracker:
        tracker.artifact("evaluation", f"{checkpoint.name}-on-{trace.meta.name}", out, {"sha256": loaded.sha256})


def make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(out, f"cannot be made ({e.strerror})", "name another folder") from None


def report(result: dict[str, Any], console: Console) -> None:
    """Both tables, and a sentence for every difference that the learned policy shows."""
    from saga_rl.sim.openloop.bound import LOW_PRESSURE

    labels = list(result["open_loop"][0]["policies"])
    console.print(terminal(("KV tokens", *labels), [
        [f"{row['capacity_tokens']:,}" + (" *" if row["low_pressure"] else ""),
         *(or_dash(p["ratio"], "{:.3f}") for p in row["policies"].values())] for row in result["open_loop"]],
        "open loop: tokens computed again, over Belady (1 = the bound)"))
    if any(row["low_pressure"] for row in result["open_loop"]):
        console.print(f"* Belady computes again under {LOW_PRESSURE:.1%} of first-time tokens: too little to compare")
    for run in result["closed_loop"]:
        console.print(closed_table(run))
    for line in verdicts(result):
        console.print(line, markup=False)


def closed_table(run: dict[str, Any]) -> Table:
    return terminal(("policy", "mean TCT, s", "P95 TCT, s", "mean / lru", "P95 / lru", "/ infinite", "collapsed"), [
        [label, f"{_mean(arm['tct_mean_s']):.1f}", f"{_mean(arm['tct_p95_s']):.1f}",
         ratio_text(arm.get("mean_vs_stock"), 3), ratio_text(arm.get("p95_vs_stock"), 3), f"{arm['vs_infinite']:.2f}",
         f"{arm['collapsed']} of {len(run['seeds'])}"] for label, arm in run["arms"].items()],
        f"closed loop, simulated: {run['workers']} worker(s) x {run['kv_tokens']:,} KV tokens, "
        f"{len(run['seeds'])} paired seeds, 95 % intervals")


def verdicts(result: dict[str, Any]) -> list[str]:
    """What the learned policy gains and loses against each other arm, a line for each capacity and figure."""
    lines = []
    for run in result["closed_loop"]:
        for key, what in (("mean_vs", "mean TCT"), ("p95_vs", "P95 TCT")):
            parts = [f"{other}: no ratio, too few pairs in which it did not collapse" if ratio is None else
                     f"{other}: {ratio['verdict']}, x{ratio_text(ratio, 3)}" for other, ratio in run[key].items()]
            lines.append(f"learned at {run['kv_tokens']:,}, {what} against " + "; ".join(parts))
    return lines


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
