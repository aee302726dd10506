"""What a data collector plays: one decision after another of one seam, with the candidates as rows.

`GAMES[seam]` makes the game of a task. A game is an environment with what a collector needs besides: the behaviour's
own choice, labels, and the components of what followed (`saga_rl.learn.data.dataset.COMPONENTS`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.env.eviction import EvictionEnv
from saga_rl.env.placement import PlacementEnv
from saga_rl.env.queue import AdmissionEnv, JointEnv, OrderingEnv
from saga_rl.errors import UserError
from saga_rl.learn.data.task import Task
from saga_rl.policies.base import Policy, Seam
from saga_rl.policies.features import E_TOKENS, E_USEFUL, LEARNED_ADMISSION, LEARNED_ORDERING, P_SESSIONS
from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES
from saga_rl.policies.registry import make
from saga_rl.sim.engine import state as st

BELADY = "belady"


class Game(Protocol):
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


class EnvGame:
    """A game over a Gymnasium environment of this package."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.over = self.cut = False
        self.observation: NDArray[np.float32] = np.zeros(0, np.float32)
        self._info: dict[str, Any] = {}

    def start(self, seed: int) -> None:
        self.observation, self._info = self.env.reset(seed=seed)
        self.over = self.cut = False

    @property
    def mask(self) -> NDArray[np.bool_]:
        return self._info["action_mask"]

    def next_use(self) -> NDArray[np.float64]:
        return np.full(len(self.mask), np.inf)

    def _step(self, row: int) -> float:
        self.observation, reward, self.over, self.cut, self._info = self.env.step(np.int64(row))
        return float(reward)


class EvictionGame(EnvGame):
    """Open loop; `belady` is a behaviour, too."""

    def __init__(self, task: Task, trace: Trace) -> None:
        super().__init__(EvictionEnv(
            trace, task.kv_tokens, task.max_rows, sessions=task.sessions, population=task.population,
            max_decisions=task.max_decisions, record=task.record, profile=task.profile, shuffle=task.shuffle))
        self.policy: Policy | None = None

    def behave(self, spec: str) -> None:
        self.policy = None if spec == BELADY else make("eviction", spec)

    def greedy(self) -> int:
        stepper = self.env.stepper
        return int(stepper.belady_action() if self.policy is None else stepper.policy_action(self.policy))

    def next_use(self) -> NDArray[np.float64]:
        stepper = self.env.stepper
        n, out = stepper.n_rows, np.full(self.env.max_rows, np.inf)
        rows = stepper.rows[:n]
        out[:n] = np.where(rows[:, E_TOKENS] > rows[:, E_USEFUL], np.nan, stepper.next_use[:n])
        return out

    def step(self, row: int) -> tuple[float, dict[str, float]]:
        before = self._info["recomputed_tokens"]
        reward = self._step(row)
        return reward, {"recomputed_tokens": float(self._info["recomputed_tokens"] - before)}

    def figures(self) -> dict[str, Any]:
        return {"recomputed_tokens": self._info["recomputed_tokens"]}


class PlacementGame(EnvGame):
    """Closed loop. The behaviour places, and steals if it does; the other seams are decided by `task.policies`."""

    def __init__(self, task: Task, trace: Trace) -> None:
        super().__init__(PlacementEnv(
            trace, task.kv_tokens, task.workers, sessions=task.sessions, population=task.population,
            max_decisions=task.max_decisions, policies=task.policies, profile=task.profile, shuffle=task.shuffle))
        self.policy: Policy
        self._scratch = np.zeros(1)
        self._seen = (0, 0.0)

    def behave(self, spec: str) -> None:
        self.policy = make("placement", spec)
        self._scratch = np.zeros(max(self.policy.scratch, 1))
        self.env.policies = replace(self.env.policies, placement=self.policy)

    def start(self, seed: int) -> None:
        super().start(seed)
        self._seen = self._totals()

    def greedy(self) -> int:
        """Highest score; ties: where the fewest chains live, then the lowest number, as the simulator breaks them."""
        rows = self.env.stepper.rows
        scores = [self.policy.score(row, self.policy.params, self._scratch) for row in rows]
        return int(np.lexsort((np.arange(len(rows)), rows[:, P_SESSIONS], np.negative(scores)))[0])

    def step(self, row: int) -> tuple[float, dict[str, float]]:
        reward = self._step(row)
        before, self._seen = self._seen, self._totals()
        return reward, {"log_tct": -reward, "recomputed_tokens": float(self._seen[0] - before[0]),
                        "fairness_gap_tokens": self._seen[1] - before[1]}

    def figures(self) -> dict[str, Any]:
        return {"recomputed_tokens": self._seen[0], "fairness_gap_tokens": self._seen[1],
                "sessions_done": self._info["sessions_done"]}

    def _totals(self) -> tuple[int, float]:
        run = self.env.stepper._cluster.world.run
        return int(run.count[st.RECOMPUTED]), float(run.total[st.SPREAD])


class QueueGame(EnvGame):
    """Closed loop: who enters from a worker's queue. The behaviour is an ordering policy, an admission policy, or both
    (`ORDERING+ADMISSION`); its own choice is row 0, or to hold in the last row where its admission says so."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._admits = not isinstance(env, OrderingEnv)

    def behave(self, spec: str) -> None:
        seams = {seam: make(seam, part) for seam, part in _queue_specs(self.env, spec).items()}
        self.env.policies = replace(self.env.policies, **seams)

    def greedy(self) -> int:
        return 0 if not self._admits or self.env.stepper.lets_in(0) else self.env.max_rows - 1

    def step(self, row: int) -> tuple[float, dict[str, float]]:
        return self._step(row), self._info["components"]

    def figures(self) -> dict[str, Any]:
        return {"recomputed_tokens": self._info["recomputed_tokens"], "sessions_done": self._info["sessions_done"],
                "fairness_gap_tokens": float(self.env.stepper.service_gap_tokens)}


def _queue_specs(env: Any, spec: str) -> dict[Seam, str]:
    if isinstance(env, OrderingEnv):
        return {"ordering": spec}
    return {"admission": spec} if isinstance(env, AdmissionEnv) else joint_specs(spec)


def joint_specs(spec: str) -> dict[Seam, str]:
    """`ORDERING+ADMISSION` by seam. Raises `UserError` if it is not of that form."""
    order, plus, admit = spec.partition("+")
    if not plus:
        raise UserError(f"behaviour {spec!r}", "names one policy, a joint one has two",
                        "write ORDERING+ADMISSION, such as session-fcfs+reserve-older")
    return {"ordering": order, "admission": admit}


def _queue_game(env: Callable[..., Any], rows: bool) -> Callable[[Task, Trace], QueueGame]:
    def make_game(task: Task, trace: Trace) -> QueueGame:
        return QueueGame(env(trace, task.kv_tokens, **({"max_rows": task.max_rows} if rows else {}),
                             workers=task.workers, sessions=task.sessions, population=task.population,
                             max_decisions=task.max_decisions, policies=task.policies, profile=task.profile,
                             shuffle=task.shuffle))

    return make_game


GAMES: dict[str, Callable[[Task, Trace], Any]] = {
    "eviction": EvictionGame, "placement": PlacementGame, "ordering": _queue_game(OrderingEnv, True),
    "admission": _queue_game(AdmissionEnv, False), "joint": _queue_game(JointEnv, True)}
"""By seam. Each game has `behave(spec)` besides: whose choice `greedy` is from then on."""
FEATURES = {**LEARNED_FEATURES, "joint": LEARNED_ORDERING + LEARNED_ADMISSION}
"""Columns of a row, by seam."""


def check_behaviour(seam: str, spec: str) -> None:
    """`UserError` unless `spec` names what can play `seam`."""
    if seam == "eviction" and spec == BELADY:
        return
    for part, policy in (joint_specs(spec) if seam == "joint" else {seam: spec}).items():
        made = make(cast(Seam, part), policy)
        if made.oracle:
            raise UserError(f"behaviour {spec!r}", "must know the future", "name a policy that can be served")


def rows_of(seam: str, max_rows: int, workers: int) -> int:
    """Rows of an observation."""
    return workers if seam == "placement" else 2 if seam == "admission" else max_rows
