"""What each tier of AEG knowledge costs in task completion time (SAGA section 2), in the simulator.

    python benchmarks/aeg/tiers.py [--data DIR] [--seeds 5] [--population N] [--pressure 2] [--only NAME] [--out DIR]

One worker, a closed population of sessions whose live KV exceeds the pool `--pressure` times. Arms:

- hints: the client says which tool a step called and which step is a chain's last;
- inferred: tools are seen in answers; an end is presumed after 300 s of silence;
- request level: neither tools nor ends are known, so there are no statistics by tool;
- cold: as inferred, but WA-LRU takes every agent type for new, for ever;
- 60 s, terminations: as inferred, but `saga+` presumes an end after 60 s, or holds memory for older sessions by the
  chance that they have not ended (`reserve-older:likely=1`).

Mean TCT relative to "hints", paired over seeds: the same sessions in the same order. Real traces are scaled in length
(the factor is stated). Writes `tiers.json` and `tiers.svg`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from workloads import GENERATED, REAL, workloads

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import capacities_for, resample, sim_config
from saga_rl.errors import UserError, run_user_command, unknown_name
from saga_rl.experiments.intervals import paired_ratio, sound
from saga_rl.files import check_target, write_json
from saga_rl.policies.base import PolicySet
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.provenance import provenance
from saga_rl.report.style import INK, PALETTE, dress, new_figure, save
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig

SCALE = 0.25
POPULATION = {"weka": 40}
"""Sessions at once, else 12. Weka's mostly wait for a person: fewer would fit the pool that its longest one needs."""
SESSIONS = 5
"""So many times the population in all."""
PRESETS = ("saga", "saga literal", "saga+")
"""Literal: SAGA's eviction as written, whole sessions dropped when their TTL ends."""


def arms(name: str, config: SimConfig) -> dict[str, tuple[PolicySet, SimConfig]]:
    """The tiers under preset `name`; only WA-LRU knows a cold start of its own."""
    policies = preset(name.split()[0])
    if name == "saga literal":
        policies = replace(policies, eviction=make("eviction", "wa-lru-literal"))
    unhinted = replace(config, end_hint=False)
    out = {"hints": (policies, config), "inferred": (policies, unhinted),
           "request level": (policies, replace(unhinted, tool_names=False))}
    eviction = policies.eviction.name
    if eviction.startswith("wa-lru"):
        out["cold"] = (replace(policies, eviction=make("eviction", f"{eviction}:cold_tasks=1e6")), unhinted)
    if policies.admission.name == "reserve-older":
        soon = replace(policies, eviction=make("eviction", f"{eviction}:expiry_s=60"))
        out["60 s"] = (soon, replace(unhinted, expiry_s=60.0))
        out["terminations"] = (replace(policies, admission=make("admission", "reserve-older:likely=1")), unhinted)
    return out


def measure(name: str, trace: Trace, args: argparse.Namespace, say: Any) -> dict[str, Any]:
    """Mean and P95 TCT of every arm over the seeds, and their paired ratios to "hints" where that did not collapse."""
    population = args.population or POPULATION.get(name, 12)
    sample = resample(trace, np.random.default_rng(0), SESSIONS * population)
    base = sim_config(1 << 20, population=population)
    kv = capacities_for(sample, base, [args.pressure])[0]
    config = replace(base, kv_tokens=kv)
    tct: dict[str, dict[str, list[float]]] = {p: {} for p in PRESETS}
    roof: list[float] = []
    for seed in range(args.seeds):
        arranged = resample(sample, np.random.default_rng(1000 + seed))
        total = int((arranged.steps.prompt_tokens + arranged.steps.output_tokens).sum())
        roomy = replace(config, kv_tokens=total + config.block_tokens * (arranged.n_steps + 1))
        roof.append(simulate(arranged, roomy, preset("lru"), seed=seed).metrics["tct_mean_s"])
        for p in PRESETS:
            for arm, (policies, known) in arms(p, config).items():
                say(f"{name}: {p}, {arm}, seed {seed}")
                metrics = simulate(arranged, known, policies, seed=seed).metrics
                tct[p].setdefault(arm, []).append(metrics["tct_mean_s"])
    top = np.array(roof)
    result: dict[str, Any] = {"workload": name, "kv_tokens": kv, "population": population,
                              "sessions": sample.n_sessions, "steps": sample.n_steps,
                              "infinite_memory_tct_mean_s": roof, "presets": {}}
    for p, by_arm in tct.items():
        good = sound(by_arm["hints"], roof)
        reference = np.array(by_arm["hints"])[good]
        result["presets"][p] = {arm: {
            "tct_mean_s": values, "vs_infinite": float(np.exp(np.log(np.array(values) / top).mean())),
            "collapsed": int((~sound(values, roof)).sum()),
            "vs_hints": None if arm == "hints" else paired_ratio(np.array(values)[good], reference),
        } for arm, values in by_arm.items()}
    return result


def show(results: list[dict[str, Any]]) -> Table:
    table = Table(title="mean TCT, relative to the tier with hints (95 % interval over seeds)", title_justify="left")
    for column in ("workload", "preset", "arm", "TCT, s", "/ infinite memory", "/ hints", "interval", "collapsed"):
        table.add_column(column, justify="left" if column in ("workload", "preset", "arm") else "right")
    for r in results:
        for p, by_arm in r["presets"].items():
            for arm, row in by_arm.items():
                ratio = row["vs_hints"]
                table.add_row(r["workload"], p, arm, f"{np.mean(row['tct_mean_s']):,.0f}", f"{row['vs_infinite']:.2f}",
                              f"{ratio['ratio']:.3f}" if ratio else "1" if arm == "hints" else "-",
                              f"{ratio['low']:.3f} to {ratio['high']:.3f}" if ratio else "", str(row["collapsed"]))
    return table


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Ratios to the tier with hints, a panel a preset."""
    figure = new_figure(11.0, 5.0)
    for axes, p in zip(figure.subplots(1, len(PRESETS), sharey=True), PRESETS, strict=True):
        axes.axvline(1.0, color=INK, linewidth=1.0)
        names = [a for a in results[0]["presets"][p] if a != "hints"]
        for k, arm in enumerate(names):
            axes.plot([], [], "o-", color=PALETTE[k], markersize=5, label=arm)
            for i, r in enumerate(results):
                ratio = r["presets"][p][arm]["vs_hints"]
                if ratio:
                    y = i + 0.17 * (k - (len(names) - 1) / 2)
                    axes.plot([ratio["low"], ratio["high"]], [y, y], color=PALETTE[k], linewidth=1.5)
                    axes.plot(ratio["ratio"], y, "o", color=PALETTE[k], markersize=5)
        dress(axes, p, "mean TCT / TCT with hints", "")
        axes.set_yticks(range(len(results)), [r["workload"] for r in results])
        axes.set_ylim(len(results) - 0.4, -0.6)
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of real traces: adds katas and weka")
    parser.add_argument("--seeds", type=int, default=5, help="arrangements (5)")
    parser.add_argument("--population", type=int, default=0, help="sessions at once (0: 12, of weka 40)")
    parser.add_argument("--pressure", type=float, default=2.0, help="live KV over the pool (2)")
    parser.add_argument("--only", help="one workload")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    args = parser.parse_args()
    if args.seeds < 1 or args.population < 0:
        raise UserError("--seeds, --population", f"are {args.seeds}, {args.population}", "give 1 seed or more, and 0 "
                        "or more sessions")
    if args.only and args.only not in (*GENERATED, *(REAL if args.data else ())):
        raise unknown_name("workload", args.only, (*GENERATED, *(REAL if args.data else ())))
    if not args.pressure > 0:
        raise UserError("--pressure", f"is {args.pressure}", "give a number > 0")
    args.out.mkdir(parents=True, exist_ok=True)
    check_target(args.out / "tiers.json")
    results = []
    with Console(stderr=True).status("compiling") as status:
        for name, trace in workloads(args.data, SCALE):
            if args.only in (None, name):
                results.append(measure(name, trace, args, status.update))
    write_json(args.out / "tiers.json", {"pressure": args.pressure, "scale_real": SCALE,
                                         "workloads": results, "provenance": provenance(seed=0, trace=None)})
    draw(results, args.out / "tiers.svg")
    Console(width=None if sys.stdout.isatty() else 140).print(show(results))


if __name__ == "__main__":
    run_user_command(main)
