"""The command: fit on one trace, measure another at every level, simulate it, compare."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fidelity_kit.compare import compare, figures, measured, simulated, slowed, spread, step_by_step, sticky_shares
from fidelity_kit.engine import EngineOptions
from fidelity_kit.fit import begins, errors, fit_profile, iterations
from fidelity_kit.log import EngineLog
from fidelity_kit.pair import Pair, cores
from fidelity_kit.settings import NOMINAL, Setup, shorter
from fidelity_kit.show import comparison_table, fit_table, picture
from saga_rl.errors import EXIT_BAD_INPUT, UserError
from saga_rl.files import atomic, write_json
from saga_rl.provenance import provenance
from saga_rl.replay.tiny_model import build_tiny_model

NEAR = tuple(np.linspace(0.99, 1.01, 21).tolist())
"""Factors on all times of the profile: what an error of 1 % does to the simulated figures."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fidelity.py", description=__doc__)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.7, 1.4, 2.5], metavar="X",
                        help="demand for KV over what the engines hold (0.7 1.4 2.5)")
    parser.add_argument("--repeats", type=int, default=3, help="measured runs at every level (3)")
    parser.add_argument("--workload", default=Setup.workload, help=f"generator of the traces ({Setup.workload})")
    parser.add_argument("--seed", type=int, default=Setup.seed, help="of the measured trace; the profile is fitted on "
                        "the trace of the next seed (0)")
    parser.add_argument("--sessions", type=int, default=Setup.sessions, help=f"in a trace ({Setup.sessions})")
    parser.add_argument("--fit-seconds", type=float, default=Setup.fit_s,
                        help=f"of the other trace, at every level ({Setup.fit_s:g})")
    parser.add_argument("--out", type=Path, help="write fidelity.json, fidelity.svg and iterations.npz into this "
                        "folder")
    args = parser.parse_args(argv)
    for name, good, mend in (("levels", all(0 < x < float("inf") for x in args.levels), "give numbers > 0"),
                             ("repeats", args.repeats >= 1, "give 1 or more"),
                             ("seed", args.seed >= 0, "give 0 or more"),
                             ("sessions", args.sessions >= 4, "give 4 or more"),
                             ("fit-seconds", args.fit_seconds > 0, "give a number > 0")):
        if not good:
            raise UserError(f"--{name}", f"is {getattr(args, name.replace('-', '_'))}", mend)
    if args.out is not None and not (
            args.out.is_dir() or (not args.out.exists() and args.out.resolve().parent.is_dir())):
        raise UserError(args.out, "is no folder, and none can be made there", "name another folder")
    return args


def run(args: argparse.Namespace, say: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything that is printed, and the iterations behind it: by run (n, 7) `COMPOSITION`, seconds, begin.
    `say(text, done)`: progress."""
    setup = shorter(Setup(workload=args.workload, seed=args.seed, fit_seed=args.seed + 1), args.sessions,
                    args.fit_seconds)
    say("preparing the traces", 0)
    source = provenance(seed=setup.seed, trace=None)  # now: the tree may move while the engines run
    trace, other = setup.trace(setup.seed), setup.trace(setup.fit_seed)
    demand = setup.demand(trace)
    pools = [setup.pool_tokens(demand, level) for level in args.levels]
    longest = max(int((t.steps.prompt_tokens + t.steps.output_tokens).max()) for t in (trace, other))
    for level, pool in zip(args.levels, pools, strict=True):
        if pool < longest + setup.block_tokens:
            raise UserError("--levels", f"{level:g} leaves {pool} KV tokens, and a context has {longest}",
                            "lower it, or ask for more --sessions")
    shares = [sticky_shares(t, setup.config(NOMINAL, 1 << 24)) for t in (trace, other)]
    mine, load = cores(), os.getloadavg()[0]
    fit_logs: list[EngineLog] = []
    logs: list[list[list[EngineLog]]] = []
    virtual: list[list[EngineLog]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny_model(folder, max_len=setup.max_model_len)
        for level, pool in zip(args.levels, pools, strict=True):
            options = [EngineOptions(core, str(model), pool // setup.block_tokens, setup.block_tokens,
                                     setup.max_num_seqs, setup.max_batched_tokens, setup.max_model_len)
                       for core in mine]
            say(f"{level:g}x: starting two engines", 0)
            with Pair(options) as pair:
                say(f"{level:g}x: the other trace, for the fit", 1)
                fit_logs += pair.run(other, shares[1], setup.fit_s)
                logs.append([])
                for k in range(args.repeats):
                    say(f"{level:g}x: run {k + 1} of {args.repeats}", 1)
                    logs[-1].append(pair.run(trace, shares[0]))
                say(f"{level:g}x: virtual clock", 1)
                virtual.append(pair.run(trace, shares[0], clock=NOMINAL))
                say(f"{level:g}x: done", 1)
    say("fitting and simulating", 0)
    rows, seconds = iterations(fit_logs)
    fit = fit_profile(rows, seconds, setup.max_batched_tokens)
    levels = []
    for level, pool, runs, exact in zip(args.levels, pools, logs, virtual, strict=True):
        config, blocks = setup.config(fit.profile, pool), pool // setup.block_tokens
        ours = figures(trace, simulated(trace, shares[0], config))
        near = [figures(trace, simulated(trace, shares[0], setup.config(slowed(fit.profile, f), pool))) for f in NEAR]
        both = [(figures(trace, r), same) for r, same in (
            measured(trace, one, blocks, setup.block_tokens) for one in runs)]
        clocked, _ = measured(trace, exact, blocks, setup.block_tokens)
        busy = [iterations(one) for one in runs]
        free = sticky_shares(trace, config)
        levels.append({
            "level": level, "kv_tokens": pool, "demand_tokens": demand,
            "comparison": compare(ours, [f for f, _ in both]), "sensitivity": spread(near),
            "virtual_clock": step_by_step(simulated(trace, shares[0], setup.config(NOMINAL, pool)), clocked),
            "runs": [{"figures": f, "same_order": asdict(r), "iterations": len(s),
                      "busy_s": [float(np.diff(log.spans, axis=1).sum()) for log in one],
                      "cpu_s": [log.cpu_s for log in one], "profile_error": errors(fit.profile, c, s)["all"]}
                     for (f, r), one, (c, s) in zip(both, runs, busy, strict=True)],
            "profile_errors": errors(fit.profile, *(np.concatenate(x) for x in zip(*busy, strict=True))),
            "sessions_placed_elsewhere": trace.n_sessions - sum(
                len(set(a) & set(b)) for a, b in zip(free, shares[0], strict=True)),
            "demand_with_fitted_profile": setup.demand(trace, fit.profile)})
    named = {"fit": fit_logs} | {f"{level:g}x-{k + 1}": one for level, runs in zip(args.levels, logs, strict=True)
                                 for k, one in enumerate(runs)}
    return {"setup": asdict(setup), "steps": trace.n_steps, "levels": levels, "repeats": args.repeats,
            "fit": {"regions": fit.regions, "residual_share": fit.residual_share, "explained": fit.explained,
                    "profile": asdict(fit.profile)},
            "machine": {"processor": _processor(), "cores": len(mine), "gpu": None, "load_before": load,
                        "load_after": os.getloadavg()[0]},
            "provenance": source}, {
                name: np.column_stack([*iterations(one), begins(one)]) for name, one in named.items()}


def _processor() -> str:
    try:
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def report(result: dict[str, Any], console: Console) -> None:
    """Print the tables and what to make of them."""
    console.print(fit_table("the profile on the trace that it was fitted to", result["fit"]["regions"]))
    console.print(f"it explains {result['fit']['explained']:.1%} of the variance of iteration times; "
                  f"sum of |residuals|: {result['fit']['residual_share']:.1%} of the time", highlight=False)
    for level in result["levels"]:
        console.print(fit_table(f"the profile on the measured runs at {level['level']:g}x", level["profile_errors"]))
    console.print(comparison_table(result["levels"]))
    for level in result["levels"]:
        same = [r["same_order"] for r in level["runs"]]
        hits = [r["figures"]["hit_tokens"] for r in level["runs"]]
        exact = level["virtual_clock"]
        agree = "One run says nothing of vLLM's own spread." if len(hits) == 1 else (
            f"vLLM's runs {'agree' if len(set(hits)) == 1 else 'differ'} in tokens hit among themselves.")
        console.print(
            f"{level['level']:g}x: {level['kv_tokens']:,} KV tokens an engine, demand {level['demand_tokens']:,} for "
            f"both. In vLLM's own order of events the simulator's cache finds other hits for "
            f"{sum(s['differing'] for s in same)} of {sum(s['starts'] for s in same):,} scheduled requests. "
            f"{agree} Under a "
            f"virtual clock {exact['other_hits']} of {exact['steps']:,} steps hit other tokens, {exact['other_times']} "
            f"have other times, preemptions {exact['preemptions'][0]} and {exact['preemptions'][1]}.",
            highlight=False, soft_wrap=True)


def main(argv: list[str] | None = None) -> None:
    started = time.monotonic()
    try:
        args = parse(argv)
        stages = len(args.levels) * (args.repeats + 3)
        bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), transient=True,
                       console=Console(stderr=True), refresh_per_second=1)
        with bar:
            task = bar.add_task("", total=stages)
            result, timed = run(args, lambda text, done: bar.update(task, description=text, advance=done))
    except UserError as e:
        print(e, file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    result["wall_s"] = time.monotonic() - started
    if args.out is not None:
        args.out.mkdir(exist_ok=True)
        write_json(args.out / "fidelity.json", result)
        with atomic(args.out / "iterations.npz") as tmp, tmp.open("wb") as file:
            np.savez_compressed(file, **timed)
        picture(result["levels"], args.out / "fidelity.svg")
    report(result, Console(width=None if sys.stdout.isatty() else 190))
