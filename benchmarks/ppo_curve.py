"""Train MaskablePPO from fresh weights on named tasks, all decisions, and draw what it costs and brings.

    python benchmarks/ppo_curve.py --out DIR [--tasks ID,...] [--steps N] [--points N] [--envs N] [--seeds N]

For each task: DIR/NAME with a checkpoint for each decision (a whole policy: `saga-rl simulate --policy DIR/NAME`),
DIR/NAME.json with the curve, DIR/NAME.svg with its picture. A point of the curve is the mean completion time, s, of the
policy so far in closed loop (`simulate`) over `seeds` arrangements of validation sessions, beside the seconds that
learning took up to there (judging not counted). `benchmarks/reference_table.py --ppo DIR` judges the last ones on test
sessions.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from sb3_contrib import MaskablePPO

import saga_rl.env  # noqa: F401  (registers the tasks)
from saga_rl.env.tasks import NAMED, short_name
from saga_rl.errors import EXIT_BAD_INPUT, UserError, unknown_name
from saga_rl.files import atomic, write_json
from saga_rl.learn.offline.train import deterministic
from saga_rl.learn.online.actors import FRESH, actor_of, load_start, save_actor
from saga_rl.learn.online.sb3 import RowPolicy
from saga_rl.learn.online.sb3_vector import NativeVec
from saga_rl.policies.presets import preset
from saga_rl.provenance import provenance
from saga_rl.sim.cluster import simulate

BESIDE = ("lru", "likely")
"""Presets whose time is drawn as a line."""
POOL = 64
SETTINGS: dict[str, Any] = {"learning_rate": 3e-4, "gamma": 0.995, "ent_coef": 0.0, "n_steps": 256, "batch_size": 512,
                            "n_epochs": 4}


def judge(task: str, policies: list[str], seeds: int, part: str = "validation") -> dict[str, float]:
    """Mean completion time, s, of each policy over `seeds` arrangements of the part's sessions."""
    settings = gym.make(task, part=part).unwrapped.settings  # type: ignore[attr-defined]
    traces = [settings.arranged(np.random.default_rng(seed)) for seed in range(seeds)]
    return {name: float(np.mean([simulate(t, settings.config, preset(name), slo=False).metrics["tct_mean_s"]
                                 for t in traces])) for name in policies}


def train(task: str, args: argparse.Namespace, say: Any) -> dict[str, Any]:
    """Train on one task; write its files and return the curve."""
    deterministic(0)
    start = load_start(Path(FRESH), "scheduler", "")
    vec = NativeVec([gym.make_vec(task, args.envs, episodes=POOL, autoreset_mode="SameStep")])  # type: ignore[list-item]
    model = MaskablePPO(RowPolicy, vec, seed=0, device="cpu", policy_kwargs={"row_net": actor_of(start)}, **SETTINGS)
    folder, took, curve = args.out / short_name(task), 0.0, []
    beside = judge(task, list(BESIDE), args.seeds)
    found: dict[str, Any] = {}
    for point in range(args.points + 1):
        if point:
            say(f"{task}: learning, {point} of {args.points}")
            began = time.perf_counter()
            model.learn(args.steps // args.points, reset_num_timesteps=False)
            took += time.perf_counter() - began
        meta = {"algorithm": f"MaskablePPO, {model.num_timesteps} decisions on {task}, from {start.label}",
                "config": {**SETTINGS, "envs": args.envs}, "figures": {}, "figures_of": "training",
                "source": provenance(seed=0, trace=None), "data": {"task": task}}
        save_actor(folder, model.policy.actor, start, meta)
        say(f"{task}: judging, {point} of {args.points}")
        curve.append({"decisions": model.num_timesteps, "learning_s": round(took, 1),
                      "tct_s": judge(task, [str(folder)], args.seeds)[str(folder)]})
        found = {"task": task, "curve": curve, "beside": beside, "part": "validation", "seeds": args.seeds,
                 "settings": {**SETTINGS, "envs": args.envs, "pool": POOL}, "load_average": os.getloadavg()[1],
                 "cores": os.cpu_count(), "provenance": provenance(seed=0, trace=None)}
        write_json(args.out / f"{short_name(task)}.json", found)  # what is there so far, should it be stopped
        picture(found, args.out / f"{short_name(task)}.svg")
    return found


def picture(found: dict[str, Any], path: Path) -> None:
    """Draw completion time by decisions learned from; below the axis stands how long learning took."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curve = found["curve"]
    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    ax.plot([p["decisions"] / 1000 for p in curve], [p["tct_s"] for p in curve], "o-", label="PPO")
    for k, (name, seconds) in enumerate(found["beside"].items()):
        ax.axhline(seconds, color="k", lw=0.8, ls=("--", ":")[k % 2], label=name)
    ax.set_xlabel(f"decisions learned from, thousands ({curve[-1]['learning_s']:.0f} s of learning in all)")
    ax.set_ylabel(f"mean completion time, s\n({found['seeds']} arrangements of validation sessions)")
    ax.set_title(found["task"])
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    with atomic(path) as tmp:
        fig.savefig(tmp, format="svg", metadata={"Date": None})
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, curves and pictures")
    parser.add_argument("--tasks", default="saga_rl/Burst-P1-v0", help="ids with commas between")
    parser.add_argument("--steps", type=int, default=200_000, help="decisions to learn from on each task")
    parser.add_argument("--points", type=int, default=8, help="of the curve, behind the first")
    parser.add_argument("--envs", type=int, default=16, help="environments stepped at once")
    parser.add_argument("--seeds", type=int, default=3, help="arrangements that a point is judged on")
    args = parser.parse_args()
    try:
        for option in ("steps", "points", "envs", "seeds"):
            if getattr(args, option) < 1:
                raise UserError(f"--{option}", f"is {getattr(args, option)}", "give at least 1")
        for task in args.tasks.split(","):
            if task not in NAMED:
                raise unknown_name("task", task, NAMED)
        if args.out.exists() and not args.out.is_dir():
            raise UserError(args.out, "is a file", "name a folder")
        args.out.mkdir(parents=True, exist_ok=True)
        console = Console(stderr=True)
        with console.status("compiling") as status:
            for task in args.tasks.split(","):
                found = train(task, args, status.update)
                console.print(f"{task}: {found['curve'][0]['tct_s']:.1f} s fresh, {found['curve'][-1]['tct_s']:.1f} s "
                              f"after {found['curve'][-1]['decisions']} decisions, " + ", ".join(
                                  f"{k} {v:.1f} s" for k, v in found["beside"].items()), highlight=False)
    except UserError as e:
        print(e, file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None


if __name__ == "__main__":
    main()
