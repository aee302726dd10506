"""Scores of known policies on the named tasks (`saga_rl.env.tasks`), to put a policy of one's own beside.

    python benchmarks/reference_table.py [--tasks ID,...] [--policies NAME,...] [--ppo DIR] [--seeds N] [--part PART]
        [--out DIR] [--quick]

Every seed is another arrangement of the part's sessions (test unless said otherwise), the same for all policies.
**Time**: mean completion time, s, closed loop, and its ratio to LRU's: the geometric mean over seeds with a 95 %
bootstrap interval. **Again**: tokens computed again in open loop under the policy's eviction, over Bélády's, sums over
seeds. Policies: presets, checkpoint folders, `random` (uniform over what is on offer, in the environment: no tokens),
`clairvoyant` (the preset saga+, but eviction and admission know when each session comes back: hindsight, no bound).
--ppo: the folder that `benchmarks/ppo_curve.py` wrote; its policy of each task stands beside. Recorded tasks want
SAGA_RL_DATA and are left out, and named, without it. --out: `table.md` and a JSON file a task there, written after
each seed; the same command goes on behind the last seed that is there. --quick: one seed of one task.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console

import saga_rl.env  # noqa: F401  (registers the tasks)
from saga_rl.aeg.trace import Trace
from saga_rl.env.single import TaskEnv
from saga_rl.env.tasks import DATA, NAMED, short_name
from saga_rl.errors import EXIT_BAD_INPUT, UserError, unknown_name
from saga_rl.experiments.intervals import paired_ratio
from saga_rl.files import atomic, write_json
from saga_rl.policies.base import PolicySet
from saga_rl.policies.presets import PRESETS, from_specs, preset
from saga_rl.policies.registry import make
from saga_rl.provenance import provenance
from saga_rl.report.tables import markdown, ratio_text, terminal
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.openloop.record import record_reference
from saga_rl.sim.openloop.replay import play
from saga_rl.sim.openloop.script import prepare

RANDOM, CLAIRVOYANT, PPO, BELADY, BASE = "random", "clairvoyant", "ppo", "belady", "lru"
ROOT = Path(__file__).resolve().parents[1]
POLICIES = [RANDOM, BASE, "saga", "likely", "saga+", "auto", CLAIRVOYANT, *(str(ROOT / "checkpoints" / c) for c in (
    "eviction", "joint", "joint-hidden"))]
QUICK = "saga_rl/Burst-P1-v0"
Row = dict[str, Any]


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


def again(trace: Trace, config: SimConfig, names: list[str]) -> dict[str, int]:
    """Tokens computed again under Bélády and under each policy's eviction."""
    prepared = prepare(record_reference(trace, config), config.kv_tokens)
    out = {}
    for name in [BELADY, *names]:
        policy = make("eviction", BELADY) if name == BELADY else policies_of(name).eviction
        if name == BELADY or not policy.oracle:
            out[name] = play(prepared, policy, end_hint=config.end_hint, expiry_s=config.expiry_s).recomputed_tokens
    return out


def measure(task: str, args: argparse.Namespace, say: Any) -> dict[str, Any]:
    """All figures of one task; after each seed they are written, where there is an --out."""
    settings = gym.make(task, part=args.part).unwrapped.settings  # type: ignore[attr-defined]
    names = list(args.policies)
    if args.ppo and (args.ppo / short_name(task)).is_dir():
        names.append(str(args.ppo / short_name(task)))
    label = {name: PPO if args.ppo and Path(name).parent == args.ppo else name.removeprefix(f"{ROOT}/")
             for name in names}
    path = args.out / f"{short_name(task)}.json" if args.out else None
    found = kept(path, task, args.part, list(label.values())) or {
        "task": task, "part": args.part, "seeds": 0, "kv_tokens": settings.config.kv_tokens, "tct_s": {},
        "recomputed_tokens": {}, "provenance": provenance(seed=0, trace=None)}
    times, tokens = found["tct_s"], found["recomputed_tokens"]
    for seed in range(found["seeds"], args.seeds):
        trace = settings.arranged(np.random.default_rng(seed))
        for name in names:
            say(f"{task}, seed {seed}: {label[name]}")
            times.setdefault(label[name], []).append(score(trace, settings.config, name, seed))
        for name, n in again(trace, settings.config, [n for n in names if n != RANDOM]).items():
            tokens.setdefault(label.get(name, name), []).append(n)
        found["seeds"] = seed + 1
        if path is not None:
            write_json(path, found)
    return found


def rows_of(found: dict[str, Any]) -> list[Row]:
    """A row a policy: mean time, its ratio to LRU's, tokens over Bélády's; None = there is none."""
    times, tokens = found["tct_s"], found["recomputed_tokens"]
    least, out = sum(tokens[BELADY]), []
    for name in [*times, BELADY]:
        mine, base = times.get(name), times.get(BASE)
        ratio = paired_ratio(np.array(mine), np.array(base)) if mine and base and name != BASE else None
        out.append({"task": short_name(found["task"]), "policy": name, "tct_s": float(np.mean(mine)) if mine else None,
                    "of_lru": ratio, "again": sum(tokens[name]) / least if least and name in tokens else None})
    return out


def tables(found: list[dict[str, Any]]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(what, header, rows): time, ratio to LRU, tokens over Bélády's; a row a policy, a column a task."""
    rows = {(r["policy"], r["task"]): r for f in found for r in rows_of(f)}
    tasks = [short_name(f["task"]) for f in found]
    names = list(dict.fromkeys(name for name, _ in rows))

    def text(row: Row | None, key: str) -> str:
        value = None if row is None else row[key]
        if row is not None and key == "of_lru" and row["policy"] == BASE:
            return "1"
        return "" if value is None else ratio_text(value) if key == "of_lru" else (
            f"{value:.1f}" if key == "tct_s" else f"{value:.2f}")

    return [(what, ["policy", *tasks], [[name, *(text(rows.get((name, t)), key) for t in tasks)] for name in names
                                        if any(text(rows.get((name, t)), key) for t in tasks)])
            for key, what in (("tct_s", "mean completion time, s"), ("of_lru", "completion time over LRU's"),
                              ("again", "tokens computed again over Bélády's, open loop"))]


def kept(path: Path | None, task: str, part: str, labels: list[str]) -> dict[str, Any] | None:
    """The figures of a task that an earlier call left. Raises `UserError` if they are of something else."""
    if path is None or not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if (found["task"], found["part"], list(found["tct_s"])) == (task, part, labels):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(path, "is no result of the same task, part and policies", "move it away, or name another --out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="", help="ids with commas between; all that can be played unless given")
    parser.add_argument("--policies", default=",".join(POLICIES), help="presets, checkpoints, random, clairvoyant")
    parser.add_argument("--ppo", type=Path, help="folder of benchmarks/ppo_curve.py")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--part", default="test", help="of the sessions: train, validation or test")
    parser.add_argument("--quick", action="store_true", help=f"one seed of {QUICK}")
    parser.add_argument("--out", type=Path, help="folder of figures and tables: made, or resumed")
    args = parser.parse_args()
    try:
        found, left_out = run(args)
    except UserError as e:
        print(e, file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    left = f"left out, as {DATA} is not set: {', '.join(left_out)}" if left_out else None
    console = Console(width=None if sys.stdout.isatty() else 160)
    for what, header, rows in tables(found):
        console.print(terminal(header, rows, f"{what}; {args.part} sessions, {args.seeds} seeds", caption=left))
    if args.out:
        with atomic(args.out / "table.md") as tmp:
            tmp.write_text("\n".join(f"{what}:\n\n{markdown(header, rows)}\n" for what, header, rows in tables(found)))


def run(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """Check the arguments, then measure what is not there. Raises `UserError`."""
    if args.quick:
        args.tasks, args.seeds = args.tasks or QUICK, 1
    if args.seeds < 1:
        raise UserError("--seeds", f"is {args.seeds}", "give at least 1")
    left_out = [] if os.environ.get(DATA) else [t for t in NAMED if "importer" in NAMED[t]]
    wanted = args.tasks.split(",") if args.tasks else [t for t in NAMED if t not in left_out]
    for task in wanted:
        if task not in NAMED:
            raise unknown_name("task", task, NAMED)
    args.policies = args.policies.split(",")
    for name in args.policies:
        if name != RANDOM:
            policies_of(name)
    if args.ppo and not args.ppo.is_dir():
        raise UserError(args.ppo, "is no folder", "name the folder that benchmarks/ppo_curve.py wrote")
    if args.out:
        if args.out.exists() and not args.out.is_dir():
            raise UserError(args.out, "is a file", "name a folder")
        args.out.mkdir(parents=True, exist_ok=True)
    found = []
    with Console(stderr=True).status("compiling") as status:
        for task in wanted:
            found.append(measure(task, args, status.update))
    return found, left_out


if __name__ == "__main__":
    main()
