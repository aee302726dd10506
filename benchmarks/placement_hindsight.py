"""What placement could gain: an assignment of sessions to workers, found by search over the very run it is judged on.

    python benchmarks/placement_hindsight.py [--workloads swe,web] [--points P1,P2] [--workers W] [--seeds N]
        [--rounds N] [--envs N] [--placement SPEC,...] [--json FILE]

Every session stays where its first request went, so a run follows from one worker a session. The search begins with
what `least-sessions` does, moves one or two sessions at a time, runs the whole simulation for each of `--envs` tries
(native environments, `saga_rl/Placement-v0`), and keeps what lowers the mean log of the completion times. It knows
the future of every session, and profits from chance as no policy can; it is no strict bound, since it never moves a
session half-way. Figures: mean completion time over that of SAGA's placement (theta=100, stealing), the other decisions
those of `saga+`, on test sessions; geometric mean over seeds, with each seed's value. Simulated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from saga_rl.aeg.trace import Trace
from saga_rl.env.single import TaskEnv
from saga_rl.env.vector import TaskVectorEnv
from saga_rl.errors import EXIT_BAD_INPUT, UserError
from saga_rl.files import check_target, write_json
from saga_rl.learn.judge.workloads import workload
from saga_rl.policies.features import P_HOME, P_NEW
from saga_rl.policies.presets import PRESETS, from_specs
from saga_rl.policies.registry import make
from saga_rl.provenance import provenance
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig

BESIDE = "saga+"
REST = PRESETS[BESIDE]
BASE = "saga:theta=100,steal=1"
FIRST_SEED = 1000


def run(trace: Trace, config: SimConfig, where: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], float]:
    """The assignment (by order of first requests) and the mean completion time, s; None: that of `least-sessions`."""
    env = TaskEnv("placement", trace, config=config, policies=BESIDE, shuffle=False)
    start, scratch = make("placement", "least-sessions"), np.zeros(1)
    env.reset(seed=0)
    view, used, over = env.view, [], False
    while not over:
        worker = int(np.argmax([start.score(row, start.params, scratch) for row in view.places]))
        if view.places[0, P_NEW] > 0:
            worker = worker if where is None else int(where[len(used)])
            used.append(worker)
        _, _, over, _, _ = env.step(np.int64(worker))
    return np.array(used), float(view.metrics()["tct_mean_s"])


def log_tcts(env: TaskVectorEnv, tries: NDArray[np.int64]) -> NDArray[np.float64]:
    """(B,) sum of log completion times of each assignment (B, sessions), one run each."""
    obs, _ = env.reset(seed=0)
    each, going = np.arange(len(tries)), np.ones(len(tries), bool)
    total, at = np.zeros(len(tries)), np.zeros(len(tries), int)
    while going.any():
        new = obs[:, 0, P_NEW] > 0
        action = np.where(new, tries[each, np.minimum(at, tries.shape[1] - 1)], obs[:, :, P_HOME].argmax(axis=1))
        at += new & going
        obs, reward, over, _, _ = env.step(action)
        total -= np.where(going, reward, 0.0)
        going &= ~over
    return total


def found(trace: Trace, config: SimConfig, rounds: int, envs: int, seed: int, say: Any) -> NDArray[np.int64]:
    """The best assignment that the search came to."""
    rng = np.random.default_rng(seed)
    best, _ = run(trace, config, None)
    env = TaskVectorEnv("placement", envs, trace, config=config, shuffle=False, policies=BESIDE, copy=False,
                        autoreset_mode="Disabled")
    least = np.inf
    for k in range(rounds):
        tries = np.repeat(best[None], envs, axis=0)
        for mine in tries[1:] if least < np.inf else tries[:0]:
            at = rng.choice(len(best), rng.integers(1, 3), replace=False)
            mine[at] = rng.integers(0, config.workers, len(at))
        costs = log_tcts(env, tries)
        if costs.min() < least:
            least, best = float(costs.min()), tries[int(costs.argmin())].copy()
        say(f"round {k + 1} of {rounds}: mean log {least / len(best):.4f}")
    return best


def _tct(trace: Trace, config: SimConfig, placement: str) -> float:
    return float(simulate(trace, config, from_specs(REST | {"placement": placement}), slo=False).metrics["tct_mean_s"])


def measure(args: argparse.Namespace, say: Any) -> list[dict[str, Any]]:
    out = []
    for name in args.workloads.split(","):
        for point in args.points.split(","):
            mine: dict[str, list[float]] = {}
            for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
                w = workload(name)
                n = args.sessions * w.definition.population * args.workers
                trace, config = w.episode("test", seed, n, point, args.workers)
                base = _tct(trace, config, BASE)
                for spec in args.placement.split(","):
                    mine.setdefault(spec, []).append(_tct(trace, config, spec) / base)
                best = found(trace, config, args.rounds, args.envs, seed,
                             lambda text, at=(name, point, seed): say(f"{at[0]}, {at[1]}, seed {at[2]}: {text}"))
                mine.setdefault("found in hindsight", []).append(run(trace, config, best)[1] / base)
            out += [{"workload": name, "point": point, "placement": k, "ratio": float(np.exp(np.log(v).mean())),
                     "seeds": v} for k, v in mine.items()]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default="swe,web")
    parser.add_argument("--points", default="P1,P2")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--sessions", type=int, default=2, help="of a run, for each that is alive at once at P1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--envs", type=int, default=32, help="tries a round")
    parser.add_argument("--placement", default="least-sessions", help="beside it")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    try:
        check_target(args.json)
        if min(args.workers - 1, args.sessions, args.seeds, args.rounds, args.envs - 1) < 1:
            raise UserError("options", "leave nothing to search", "at least 2 workers and tries, and 1 of the rest")
        with Console(stderr=True).status("compiling") as status:
            rows = measure(args, status.update)
        if args.json:
            write_json(args.json, {"rows": rows, "base": BASE, "provenance": provenance(seed=FIRST_SEED, trace=None)})
    except UserError as e:
        print(e, file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    table = Table(title=f"mean completion time over {BASE}, {args.workers} workers")
    for column in ("workload", "point", "placement", "ratio", "by seed"):
        table.add_column(column)
    for r in rows:
        table.add_row(r["workload"], r["point"], r["placement"], f"{r['ratio']:.3f}",
                      " ".join(f"{x:.3f}" for x in r["seeds"]))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
