"""Episodes of `saga_rl/Eviction-v0` under a behaviour policy, with the chance of every logged action."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saga_rl.env.eviction import EvictionEnv
from saga_rl.learn.dataset import Episode
from saga_rl.policies.registry import make


@dataclass(frozen=True)
class Task:
    """One episode to collect."""

    trace: str
    """File."""
    kv_tokens: int
    behaviour: str
    """Spec of an eviction policy, or `belady`."""
    epsilon: float
    seed: int
    max_rows: int = 32
    sessions: int = 0
    population: int = 0
    max_decisions: int = 0
    record: str = "lru"
    profile: str | None = None


_ENVS: dict[tuple, EvictionEnv] = {}


def _env(task: Task) -> EvictionEnv:
    """This process's environment for the task: traces are read once, not once an episode."""
    key = (task.trace, task.kv_tokens, task.max_rows, task.sessions, task.population, task.max_decisions, task.record,
           task.profile)
    if key not in _ENVS:
        _ENVS[key] = EvictionEnv(task.trace, task.kv_tokens, task.max_rows, sessions=task.sessions,
                                 population=task.population, max_decisions=task.max_decisions, record=task.record,
                                 profile=task.profile)
    return _ENVS[key]


def collect(task: Task) -> Episode:
    """Play one episode. With chance `epsilon` the action is uniform over the candidates, else the behaviour's own a*:

        propensity(a) = (1 - epsilon) * [a = a*] + epsilon / candidates

    Deterministic from the task. Raises `UserError` as the environment does.
    """
    return run_episode(_env(task), task.behaviour, task.epsilon, task.seed,
                       {"trace": _env(task).trace.meta.name, "kv_tokens": task.kv_tokens, "epsilon": task.epsilon,
                        "record": task.record})


def run_episode(env: EvictionEnv, behaviour: str, epsilon: float, seed: int, facts: dict) -> Episode:
    """`collect` in an environment that is there already."""
    policy = None if behaviour == "belady" else make("eviction", behaviour)
    rng = np.random.default_rng([seed, 1])
    obs, info = env.reset(seed=seed)
    rows: dict[str, list] = {k: [] for k in ("obs", "mask", "next_use", "action", "reward", "propensity")}
    over = cut = False
    while not (over or cut):
        n = env.stepper.n_rows
        greedy = env.stepper.belady_action() if policy is None else env.stepper.policy_action(policy)
        action = int(rng.integers(n)) if rng.random() < epsilon else int(greedy)
        rows["obs"].append(obs)
        rows["mask"].append(info["action_mask"])
        rows["next_use"].append(_labels(env.stepper.next_use, n))
        rows["action"].append(action)
        rows["propensity"].append((1.0 - epsilon) * (action == greedy) + epsilon / n)
        obs, reward, over, cut, info = env.step(np.int64(action))
        rows["reward"].append(reward)
    facts = {**facts, "decisions": info["decisions"], "recomputed_tokens": info["recomputed_tokens"]}
    return Episode(np.stack(rows["obs"]), np.stack(rows["mask"]), np.stack(rows["next_use"]),
                   np.array(rows["action"], np.int64), np.array(rows["reward"]), np.array(rows["propensity"]),
                   behaviour, seed, obs, over, facts)


def _labels(next_use: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    out = np.full(len(next_use), np.inf)
    out[:n] = next_use[:n]
    return out
