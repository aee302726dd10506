"""Fine-tune a policy by reinforcement learning: MaskablePPO on any of the environments.

The actor is the checkpoint's own network, so the result has the same form. `--env joint` trains order and admission
together, `--env scheduler` all four decisions; both write a folder with one checkpoint for each.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from typer import Argument, Option

from saga_rl.errors import UserError, unknown_name
from saga_rl.learn.script import capacities, check_range, file_label, progress
from saga_rl.learn.tracking import WandbRun
from saga_rl.provenance import provenance, sha256

if TYPE_CHECKING:
    from saga_rl.learn.online.actors import Start

POOL = 64
"""Episodes that native environments of a trace and capacity play round and round."""
QUEUE = ("ordering", "admission", "joint", "scheduler")


def main(
    checkpoint: Annotated[Path, Argument(help="Checkpoint folder to start from (joint: a folder with one for ordering "
                                              "and one for admission; scheduler: with one for each decision), or "
                                              "`fresh`: new weights.")],
    traces: Annotated[list[Path], Argument(help="Trace files (training split).")],
    out: Annotated[Path, Option(help="Checkpoint folder to write; an older checkpoint there is replaced.")],
    env: Annotated[str, Option(help="eviction, placement, ordering, admission, joint or scheduler.")] = "eviction",
    kv_tokens: Annotated[str, Option(help="KV capacities of a worker, tokens, with commas between.")] = "",
    pressure: Annotated[str, Option(help="Instead: demand of the live sessions over capacity, e.g. 1.5,3.")] = "",
    population: Annotated[int, Option(help="Closed population: sessions alive at once; 0 = the trace's arrivals.")] = 0,
    sessions: Annotated[int, Option(help="Sessions of one episode; 0 = all of the trace.")] = 0,
    workers: Annotated[int, Option(help="Workers; 0 = 4 for placement, 2 for scheduler, 1 for the "
                                          "others.")] = 0,
    policies: Annotated[str, Option(help="Preset of the decisions that are not trained; empty = the "
                                         "checkpoint's own, or auto.")] = "",
    reward: Annotated[str, Option(help="Ordering, admission, joint, scheduler: tct, recomputed or dense.")] = "tct",
    p95_weight: Annotated[float, Option(help="The same, with tct: weight of the slowest sessions.")] = 0.0,
    fairness_weight: Annotated[float, Option(help="The same: cost of a token of service gap.")] = 0.0,
    steps: Annotated[int, Option(help="Decisions to learn from, all environments together.")] = 20_000,
    rollout: Annotated[int, Option(help="Decisions of each environment between updates.")] = 512,
    lr: Annotated[float, Option(help="Learning rate.")] = 1e-4,
    gamma: Annotated[float, Option(help="Discount a decision; what is computed again lies many ahead.")] = 0.995,
    entropy: Annotated[float, Option(help="Weight of the entropy bonus.")] = 0.0,
    envs: Annotated[int, Option(help="Native environments of each trace and capacity, stepped in compiled code, over "
                                     f"{POOL} arrangements of its sessions; 0 = one in Python, always a new one.")] = 0,
    max_rows: Annotated[int, Option(help="Candidates offered at a decision, at most.")] = 32,
    profile: Annotated[str | None, Option(help="Cost profile of the simulator.")] = None,
    ends: Annotated[bool, Option(help="Clients announce the end of a session.")] = False,
    seed: Annotated[int, Option(help="Everything follows from it.")] = 0,
    wandb: Annotated[str, Option(help="disabled, offline (written beside --out) or online.")] = "offline",
    project: Annotated[str, Option(help="W&B project.")] = "saga-rl",
) -> None:
    """Fine-tune a checkpoint with MaskablePPO."""
    from saga_rl.env.settings import KINDS
    from saga_rl.learn.online.actors import load_start, save_actor

    if env not in KINDS:
        raise unknown_name("environment", env, KINDS)
    for option, value, low, high in (("--steps", steps, 1, 1e9), ("--rollout", rollout, 2, 1e6), ("--lr", lr, 1e-9, 1),
                                     ("--gamma", gamma, 0, 1), ("--entropy", entropy, 0, 10), ("--seed", seed, 0, 2e9),
                                     ("--population", population, 0, 1e6), ("--sessions", sessions, 0, 1e9),
                                     ("--workers", workers, 0, 1e4), ("--envs", envs, 0, 1e5)):
        check_range(option, value, low, high)
    start = load_start(checkpoint, env, policies)
    if not out.parent.is_dir():
        raise UserError(out, f"its folder {out.parent} does not exist", "create it or name another place")
    places = [(path, kv) for path in traces
              for kv in capacities(path, kv_tokens, pressure, population, profile, ends)]
    shape: dict[str, Any] = {"sessions": sessions, "population": population, "profile": profile,
                             "config": {"end_hint": ends}}
    if env in ("eviction", *QUEUE):
        shape["max_rows"] = 2 if env == "admission" else max_rows
    if env != "eviction":
        shape |= {"workers": workers or {"placement": 4, "scheduler": 2}.get(env, 1), "policies": start.policies}
    if env in QUEUE:
        shape |= {"reward": reward, "p95_weight": p95_weight, "fairness_weight": fairness_weight}
    vec = vector_of(env, places, shape, envs, seed)
    settings: dict[str, Any] = {"learning_rate": lr, "gamma": gamma, "ent_coef": entropy, "n_steps": rollout}
    tracked = {**settings, **shape, "env": env, "envs": envs, "steps": steps, "start": checkpoint.name}
    with WandbRun(wandb, project, out, tracked, "finetune") as tracker:
        actor, figures = learn(start, vec, settings, steps, seed, tracker)
        meta = {"algorithm": f"MaskablePPO, {steps} decisions on saga_rl/{env.capitalize()}-v0, from {start.label}",
                "config": {**settings, **shape, "envs": envs}, "figures": figures,
                "figures_of": "rollouts on the training traces",
                "source": provenance(seed=seed, trace=None),
                "data": {"traces": ", ".join(f"{file_label(p)} (sha256 {sha256(p)[:12]})" for p in traces),
                         "KV capacities": ", ".join(str(kv) for _, kv in places), "began as": start.label}}
        written = save_actor(out, actor, start, meta)
        tracker.summary(figures)
        for folder in written:
            tracker.artifact("checkpoint", folder.name, folder, {"sha256": sha256(folder / "policy.safetensors")})
    Console().print(f"{out}: mean reward a decision {figures['reward_first']:.4f} in the first update, "
                    f"{figures['reward_last']:.4f} in the last", highlight=False)


def vector_of(env: str, places: list[tuple[Path, int]], shape: dict[str, Any], native: int, seed: int) -> Any:
    """An environment of Stable-Baselines3 for each (trace, capacity), or `native` compiled ones of each."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    from saga_rl.env.single import TaskEnv
    from saga_rl.env.vector import TaskVectorEnv
    from saga_rl.learn.online.sb3_vector import NativeVec

    if not native:
        return DummyVecEnv([partial(_same, TaskEnv(env, path, kv, **shape)) for path, kv in places])
    return NativeVec([TaskVectorEnv(env, native, path, kv, **shape, episodes=POOL, pool_seed=seed,
                                    autoreset_mode="SameStep") for path, kv in places])


def learn(start: Start, vec: Any, settings: dict[str, Any], steps: int, seed: int,
          tracker: WandbRun) -> tuple[Any, dict[str, float]]:
    """The fine-tuned actor, and the mean reward a decision in the first and last rollout."""
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.callbacks import BaseCallback

    from saga_rl.learn.offline.train import deterministic
    from saga_rl.learn.online.actors import actor_of
    from saga_rl.learn.online.sb3 import RowPolicy

    deterministic(seed)
    rewards: list[float] = []

    class Watch(BaseCallback):
        def __init__(self, bar: Any, job: Any) -> None:
            super().__init__()
            self.bar, self.job = bar, job

        def _on_step(self) -> bool:
            self.bar.update(self.job, completed=min(self.num_timesteps, steps))
            return True

        def _on_rollout_end(self) -> None:
            rewards.append(float(self.model.rollout_buffer.rewards.mean()))  # type: ignore[attr-defined]
            tracker.log({"reward_per_decision": rewards[-1]}, self.num_timesteps)
            self.bar.update(self.job, note=f"reward a decision {rewards[-1]:.4f}")

    actor = actor_of(start)
    rollout = settings["n_steps"] * vec.num_envs
    model = MaskablePPO(RowPolicy, vec, seed=seed, device="cpu", batch_size=max(2, min(256, rollout)),
                        policy_kwargs={"row_net": actor}, **settings)
    with progress() as bar:
        model.learn(steps, callback=Watch(bar, bar.add_task("fine-tuning", total=steps, note="")))
    return model.policy.actor, {"reward_first": rewards[0], "reward_last": rewards[-1]}


def _same(env: Any) -> Any:
    return env
