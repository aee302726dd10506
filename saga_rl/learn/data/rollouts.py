"""What a data collector plays: decisions of one kind, one after another, with the candidates as rows.

`ROLLOUTS[decision]` makes the rollout of a task. A rollout is an environment with what a collector needs besides: the
behaviour's own choice, labels, and the components of what followed (`saga_rl.learn.data.dataset.COMPONENTS`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.env import IDS, SINGLE, VECTOR
from saga_rl.env.single import TaskEnv
from saga_rl.env.text import Spec, plain
from saga_rl.errors import UserError
from saga_rl.learn.data.dataset import COMPONENTS
from saga_rl.learn.data.task import Task
from saga_rl.policies.base import Decision, Policy
from saga_rl.policies.features import EV, LEARNED_ADMISSION, LEARNED_ORDERING, PL
from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES
from saga_rl.policies.registry import make

BELADY = "belady"


class Rollout(Protocol):
    """`start`, then `step` until `over` (the episode ended) or `cut` (it was stopped)."""

    over: bool
    cut: bool

    def start(self, seed: int) -> None: ...

    @property
    def observation(self) -> NDArray[np.float32]:
        """(R, F)"""
        ...

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(R,) rows that may be chosen."""
        ...

    def greedy(self) -> int:
        """The row that the behaviour itself would choose."""
        ...

    def next_use(self) -> NDArray[np.float64]:
        """(R,) Belady's label, infinity = never; only eviction has any. NaN: the row holds more than it can use, which
        a learned policy is not asked about (`policies.eviction.parts.dead`)."""
        ...

    def step(self, row: int) -> tuple[float, dict[str, float]]:
        """Choose; the reward and the components of what followed until the next decision."""
        ...

    def figures(self) -> dict[str, Any]:
        """Of the episode, for its facts."""
        ...


NO_LIMIT = 2**31 - 1


def spec_of(task: Task) -> EnvSpec:
    """Describe the environment in which the task was played, for `gymnasium.make`. Where rows stand in the order of the
    behaviour, it is that behaviour's. It names a limit of steps, which loaders such as d3rlpy's ask for; an episode
    that was not cut stays far below it."""
    given = task.options() | task.source()
    if task.decision in ("ordering", "admission", "joint"):
        specs = joint_specs(task.behaviour) if task.decision == "joint" else {
            cast(Decision, task.decision): task.behaviour}
        given |= {str(decision): spec for decision, spec in specs.items()}
    options = plain({"task": task.decision, **{k: v for k, v in given.items() if v}, "shuffle": task.shuffle})
    return Spec(IDS[task.decision], SINGLE, vector_entry_point=VECTOR, kwargs=options,
                max_episode_steps=task.max_decisions or NO_LIMIT)


class EnvRollout:
    """A rollout over a Gymnasium environment of this package."""

    def __init__(self, env: TaskEnv) -> None:
        self.env = env
        self.over = self.cut = False
        self.observation: NDArray[np.float32] = np.zeros(0, np.float32)
        self._info: dict[str, Any] = {}
        self._view: Any = None

    def start(self, seed: int) -> None:
        self.observation, self._info = self.env.reset(seed=seed)
        self.over = self.cut = False
        self._view = self.env.view

    @property
    def mask(self) -> NDArray[np.bool_]:
        return self._info["action_mask"].astype(bool)

    def next_use(self) -> NDArray[np.float64]:
        return np.full(len(self.mask), np.inf)

    def step(self, row: int) -> tuple[float, dict[str, float]]:
        self.observation, reward, self.over, self.cut, self._info = self.env.step(np.int64(row))
        return float(reward), {name: self._info["components"][name] for name in COMPONENTS}

    def figures(self) -> dict[str, Any]:
        return {"recomputed_tokens": self._info["recomputed_tokens"], "sessions_done": self._info["sessions_done"],
                "fairness_gap_tokens": float(self._view.service_gap_tokens)}


class EvictionRollout(EnvRollout):
    """Open loop; `belady` is a behaviour, too."""

    def __init__(self, task: Task, trace: Trace) -> None:
        super().__init__(TaskEnv("eviction", trace, **task.options()))
        self.policy: Policy | None = None

    def behave(self, spec: str) -> None:
        self.policy = None if spec == BELADY else make("eviction", spec)

    def greedy(self) -> int:
        return int(self._view.belady_action() if self.policy is None else self._view.policy_action(self.policy))

    def next_use(self) -> NDArray[np.float64]:
        out, rows = np.full(len(self.observation), np.inf), self._view.victims
        out[:len(rows)] = np.where(rows[:, EV.tokens] > rows[:, EV.useful], np.nan, self._view.uses)
        return out

    def figures(self) -> dict[str, Any]:
        return {"recomputed_tokens": self._info["recomputed_tokens"]}


class PlacementRollout(EnvRollout):
    """Closed loop. The behaviour places, and steals if it does; `task.policies` makes the other decisions."""

    def __init__(self, task: Task, trace: Trace) -> None:
        super().__init__(TaskEnv("placement", trace, **task.options()))
        self.policy: Policy
        self._scratch = np.zeros(1)

    def behave(self, spec: str) -> None:
        self.policy = make("placement", spec)
        self._scratch = np.zeros(max(self.policy.scratch, 1))
        self.env.settings.policies = replace(self.env.settings.policies, placement=self.policy)

    def greedy(self) -> int:
        """Highest score; ties: where the fewest chains live, then the lowest number, as the simulator breaks them."""
        rows = self._view.places
        scores = [self.policy.score(row, self.policy.params, self._scratch) for row in rows]
        return int(np.lexsort((np.arange(len(rows)), rows[:, PL.sessions], np.negative(scores)))[0])


class QueueRollout(EnvRollout):
    """Closed loop: who enters from a worker's queue. The behaviour is an ordering policy, an admission policy, or both
    (`ORDERING+ADMISSION`); its own choice is row 0, or to hold in the last row where its admission says so."""

    def __init__(self, decision: str, task: Task, trace: Trace) -> None:
        super().__init__(TaskEnv(decision, trace, **task.options()))
        self._decision = decision

    def behave(self, spec: str) -> None:
        specs: dict[Decision, str] = joint_specs(spec) if self._decision == "joint" else {
            cast(Decision, self._decision): spec}
        decisions = {decision: make(decision, part) for decision, part in specs.items()}
        self.env.settings.policies = replace(self.env.settings.policies, **decisions)

    def greedy(self) -> int:
        return 0 if self._decision == "ordering" or self._view.lets_in(0) else len(self.observation) - 1


def joint_specs(spec: str) -> dict[Decision, str]:
    """`ORDERING+ADMISSION` by decision. Raises `UserError` if it is not of that form."""
    order, plus, admit = spec.partition("+")
    if not plus:
        raise UserError(f"behaviour {spec!r}", "names one policy, a joint one has two",
                        "write ORDERING+ADMISSION, such as session-fcfs+reserve-older")
    return {"ordering": order, "admission": admit}


ROLLOUTS: dict[str, Callable[[Task, Trace], Any]] = {
    "eviction": EvictionRollout, "placement": PlacementRollout,
    **{decision: partial(QueueRollout, decision) for decision in ("ordering", "admission", "joint")}}
"""By decision. Each rollout has `behave(spec)` besides: whose choice `greedy` is from then on."""
FEATURES = {**LEARNED_FEATURES, "joint": LEARNED_ORDERING + LEARNED_ADMISSION}
"""Columns of a row, by decision."""


def check_behaviour(decision: str, spec: str) -> None:
    """`UserError` unless `spec` names what can play `decision`."""
    if decision == "eviction" and spec == BELADY:
        return
    for part, policy in (joint_specs(spec) if decision == "joint" else {decision: spec}).items():
        made = make(cast(Decision, part), policy)
        if made.oracle:
            raise UserError(f"behaviour {spec!r}", "must know the future", "name a policy that can be served")


def rows_of(decision: str, max_rows: int, workers: int) -> int:
    """Rows of an observation."""
    return workers if decision == "placement" else 2 if decision == "admission" else max_rows
