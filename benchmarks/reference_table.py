"""Scores of known policies on the named tasks (`saga_rl.env.tasks`), to put a policy of one's own beside.

    python benchmarks/reference_table.py [--tasks ID,...] [--policies NAME,...] [--seeds N] [--part PART] [--quick]
        [--json FILE]

Every seed is another arrangement of the part's sessions (test unless said otherwise), the same for all policies.
**Time**: mean completion time, s, closed loop. **Again**: tokens computed again in open loop under the policy's
eviction, over Bélády's. Policies: presets, checkpoint folders, `random` (uniform over what is on offer, in the
environment: no tokens), `clairvoyant` (the preset saga+, but eviction and admission know when each session comes back:
hindsight, no bound). Means over seeds. Recorded tasks want SAGA_RL_DATA and are left out, and named, without it.
--quick: one seed of one task.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

import saga_rl.env  # noqa: F401  (registers the tasks)
from saga_rl.aeg.trace import Trace
from saga_rl.env.single import TaskEnv
from saga_rl.env.tasks import DATA, NAMED
from saga_rl.errors import EXIT_BAD_INPUT, UserError, unknown_name
from saga_rl.files import check_target, write_json
from saga_rl.policies.base import PolicySet
from saga_rl.policies.presets import PRESETS, from_specs, preset
from saga_rl.policies.registry import make
from saga_rl.provenance import provenance
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.openloop.record import record_reference
from saga_rl.sim.openloop.replay import play
from saga_rl.sim.openloop.script import prepare

RANDOM, CLAIRVOYANT = "random", "clairvoyant"
ROOT = Path(__file__).resolve().parents[1]
POLICIES = [RANDOM, "lru", "saga", "likely", CLAIRVOYANT, *(str(ROOT / "checkpoints" / c) for c in (
    "eviction", "joint", "joint-hidden"))]
QUICK = "saga_rl/Burst-P1-v0"
BELADY = "belady"


def policies_of(name: str) -> PolicySet:
    """What `name` stands for. Raises `UserError`."""
    if name == CLAIRVOYANT:
        return from_specs(PRESETS["saga+"] | {"eviction": "clairvoyant", "admission": "reserve-clairvoyant"})
    return preset(name)


def by_chance(trace: Trace, config: SimConfig, seed: int) -> float:
    """The mean completion time, s, of choosing at random."""
    env = TaskEnv("scheduler", trace, config=config, shuffle=False)
    rng, over = np.random.default_rng(seed), False
    env.reset(seed=seed)
    while not over:
        _, _, over, _, _ = env.step(np.int64(rng.choice(np.flatnonzero(env.action_masks()))))
    return float(env.view.metrics()["tct_mean_s"])


def score(trace: Trace, config: SimConfig, name: str, seed: int) -> float:
    """The mean completion time under the policy, s."""
    if name == RANDOM:
        return by_chance(trace, config, seed)
    return float(simulate(trace, config, policies_of(name), slo=False).metrics["tct_mean_s"])


def again(trace: Trace, config: SimConfig, names: list[str]) -> dict[str, float]:
    """Tokens computed again under each policy's eviction, over Bélády's."""
    prepared = prepare(record_reference(trace, config), config.kv_tokens)

    def tokens(policy: Any) -> int:
        return play(prepared, policy, end_hint=config.end_hint, expiry_s=config.expiry_s).recomputed_tokens

    least = tokens(make("eviction", BELADY))
    out = {BELADY: 1.0}
    for name in names:
        policy = policies_of(name).eviction
        if least and not policy.oracle:
            out[name] = tokens(policy) / least
    return out


def measure(args: argparse.Namespace, say: Any) -> list[dict[str, Any]]:
    rows = []
    for task in args.tasks:
        settings = gym.make(task, part=args.part).unwrapped.settings  # type: ignore[attr-defined]
        times: dict[str, list[float]] = {}
        ratios: dict[str, list[float]] = {}
        for seed in range(args.seeds):
            trace = settings.arranged(np.random.default_rng(seed))
            for name in args.policies:
                say(f"{task}, seed {seed}: {Path(name).name}")
                times.setdefault(name, []).append(score(trace, settings.config, name, seed))
            for name, ratio in again(trace, settings.config, [n for n in args.policies if n != RANDOM]).items():
                ratios.setdefault(name, []).append(ratio)
        for name in [*args.policies, BELADY]:
            found = {"tct_s": times.get(name), "again": ratios.get(name)}
            rows.append({"task": task, "policy": Path(name).name, "kv_tokens": settings.config.kv_tokens, **found,
                         **{f"mean_{k}": float(np.mean(v)) if v else None for k, v in found.items()}})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="", help="ids with commas between; all that can be played unless given")
    parser.add_argument("--policies", default=",".join(POLICIES), help="presets, checkpoints, random, clairvoyant")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--part", default="test", help="of the sessions: train, validation or test")
    parser.add_argument("--quick", action="store_true", help=f"one seed of {QUICK}")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    try:
        check_target(args.json)
        if args.quick:
            args.tasks, args.seeds = args.tasks or QUICK, 1
        if args.seeds < 1:
            raise UserError("--seeds", f"is {args.seeds}", "give at least 1")
        left_out = [] if os.environ.get(DATA) else [t for t in NAMED if "importer" in NAMED[t]]
        args.tasks = args.tasks.split(",") if args.tasks else [t for t in NAMED if t not in left_out]
        for task in args.tasks:
            if task not in NAMED:
                raise unknown_name("task", task, NAMED)
        args.policies = args.policies.split(",")
        for name in args.policies:
            if name != RANDOM:
                policies_of(name)
        with Console(stderr=True).status("compiling") as status:
            rows = measure(args, status.update)
        if args.json:
            write_json(args.json, {"rows": rows, "part": args.part, "seeds": args.seeds, "left_out": left_out,
                                   "provenance": provenance(seed=0, trace=None)})
    except UserError as e:
        print(e, file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    left = f"left out, as {DATA} is not set: {', '.join(left_out)}" if left_out else None
    table = Table(title=f"named tasks, {args.part} sessions, {args.seeds} seeds", caption=left)
    for column in ("task", "policy", "mean completion time, s", "tokens computed again / Bélády's"):
        table.add_column(column, justify="left" if column in ("task", "policy") else "right")
    for r in rows:
        table.add_row(r["task"], r["policy"], *("" if r[k] is None else f"{r[k]:.{d}f}"
                                                for k, d in (("mean_tct_s", 1), ("mean_again", 2))))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
