"""Episodes under a behaviour policy, with the chance of every logged action."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.learn.data.dataset import COMPONENTS, Episode
from saga_rl.learn.data.rollouts import ROLLOUTS
from saga_rl.learn.data.task import Task, trace_of
from saga_rl.learn.script import file_label

__all__ = ["Task", "collect", "label", "play", "rollout_of"]

_ROLLOUTS: dict[tuple, Any] = {}
MOST_ROLLOUTS = 8


def rollout_of(task: Task) -> Any:
    """This process's rollout for the task, with its behaviour: traces are read and split once, not once an episode."""
    key = (task.decision, task.trace, *task.facts().values())
    if key not in _ROLLOUTS:
        while len(_ROLLOUTS) >= MOST_ROLLOUTS:
            _ROLLOUTS.pop(next(iter(_ROLLOUTS)))
        _ROLLOUTS[key] = ROLLOUTS[task.decision](task, trace_of(task))
    _ROLLOUTS[key].behave(task.behaviour)
    return _ROLLOUTS[key]


def label(spec: str) -> str:
    """A behaviour's name in a dataset: its spec, of a checkpoint's path only the last folder."""
    names = [part.partition(":") for part in spec.split("+learned:")]
    first = f"learned:{Path(names[0][2]).resolve().name}" if names[0][0] == "learned" else "".join(names[0])
    return "+learned:".join([first, *(Path("".join(n)).resolve().name for n in names[1:])])


def collect(task: Task) -> Episode:
    """Play one episode. With chance `epsilon` the action is uniform over the candidates, else the behaviour's own a*:

        propensity(a) = (1 - epsilon) * [a = a*] + epsilon / candidates

    Deterministic from the task. Raises `UserError` as the environments do.
    """
    rollout = rollout_of(task)
    return play(rollout, label(task.behaviour), task.epsilon, task.seed,
                {"trace": rollout.env.settings.trace.meta.name, "file": file_label(Path(task.trace)), **task.facts()})


def play(rollout: Any, behaviour: str, epsilon: float, seed: int, facts: dict[str, Any]) -> Episode:
    """`collect` in a rollout that is there already and knows its behaviour."""
    rng = np.random.default_rng([seed, 1])
    rollout.start(seed)
    rows: dict[str, list] = {k: [] for k in ("obs", "mask", "next_use", "action", "reward", "propensity", *COMPONENTS)}
    while not (rollout.over or rollout.cut):
        offered = np.flatnonzero(rollout.mask)
        greedy = rollout.greedy()
        action = int(rng.choice(offered)) if rng.random() < epsilon else greedy
        rows["obs"].append(rollout.observation)
        rows["mask"].append(rollout.mask)
        rows["next_use"].append(rollout.next_use())
        rows["action"].append(action)
        rows["propensity"].append((1.0 - epsilon) * (action == greedy) + epsilon / len(offered))
        reward, components = rollout.step(action)
        rows["reward"].append(reward)
        for name in COMPONENTS:
            rows[name].append(components.get(name, 0.0))
    columns: dict[str, NDArray] = {k: np.array(rows[k]) for k in ("action", "reward", "propensity", *COMPONENTS)}
    facts = {**facts, "decisions": len(columns["action"]), **rollout.figures()}
    return Episode(np.stack(rows["obs"]), np.stack(rows["mask"]), np.stack(rows["next_use"]),
                   columns["action"].astype(np.int64), columns["reward"].astype(np.float64), columns["propensity"],
                   behaviour, seed, rollout.observation, bool(rollout.over), facts,
                   {name: columns[name] for name in COMPONENTS})
