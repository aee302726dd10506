"""Episodes under a behaviour policy, with the chance of every logged action."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.learn.data.dataset import COMPONENTS, Episode
from saga_rl.learn.data.games import GAMES
from saga_rl.learn.data.task import Task, trace_of
from saga_rl.learn.script import file_label

__all__ = ["Task", "collect", "game_of", "label", "play"]

_GAMES: dict[tuple, Any] = {}
MOST_GAMES = 8


def game_of(task: Task) -> Any:
    """This process's game for the task, with its behaviour: traces are read and split once, not once an episode."""
    key = (task.decision, task.trace, *task.facts().values())
    if key not in _GAMES:
        while len(_GAMES) >= MOST_GAMES:
            _GAMES.pop(next(iter(_GAMES)))
        _GAMES[key] = GAMES[task.decision](task, trace_of(task))
    _GAMES[key].behave(task.behaviour)
    return _GAMES[key]


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
    game = game_of(task)
    return play(game, label(task.behaviour), task.epsilon, task.seed,
                {"trace": game.env.settings.trace.meta.name, "file": file_label(Path(task.trace)), **task.facts()})


def play(game: Any, behaviour: str, epsilon: float, seed: int, facts: dict[str, Any]) -> Episode:
    """`collect` in a game that is there already and knows its behaviour."""
    rng = np.random.default_rng([seed, 1])
    game.start(seed)
    rows: dict[str, list] = {k: [] for k in ("obs", "mask", "next_use", "action", "reward", "propensity", *COMPONENTS)}
    while not (game.over or game.cut):
        offered = np.flatnonzero(game.mask)
        greedy = game.greedy()
        action = int(rng.choice(offered)) if rng.random() < epsilon else greedy
        rows["obs"].append(game.observation)
        rows["mask"].append(game.mask)
        rows["next_use"].append(game.next_use())
        rows["action"].append(action)
        rows["propensity"].append((1.0 - epsilon) * (action == greedy) + epsilon / len(offered))
        reward, components = game.step(action)
        rows["reward"].append(reward)
        for name in COMPONENTS:
            rows[name].append(components.get(name, 0.0))
    columns: dict[str, NDArray] = {k: np.array(rows[k]) for k in ("action", "reward", "propensity", *COMPONENTS)}
    facts = {**facts, "decisions": len(columns["action"]), **game.figures()}
    return Episode(np.stack(rows["obs"]), np.stack(rows["mask"]), np.stack(rows["next_use"]),
                   columns["action"].astype(np.int64), columns["reward"].astype(np.float64), columns["propensity"],
                   behaviour, seed, game.observation, bool(game.over), facts,
                   {name: columns[name] for name in COMPONENTS})
