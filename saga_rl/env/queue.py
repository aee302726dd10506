"""Who enters from a worker's queue: `saga_rl/Ordering-v0`, `saga_rl/Admission-v0` and `saga_rl/Joint-v0`.

Closed loop, all three over `saga_rl.sim.stepping.queue_stepper`. R = max_rows; requests are offered in the given order,
so row 0 is its own choice; those whose tenant may not be served (service gap) are not offered.

| | Ordering | Admission | Joint |
|---|---|---|---|
| observation | (R, LEARNED_ORDERING): waiting requests | (2, LEARNED_ADMISSION): row 0 the head, row 1 zeros | (R, both
side by side): waiting requests; the last row zeros |
| action | who is next | 0 let the head in, 1 hold | who enters, R - 1 nobody |
| given | admission: `policies` decides whether the chosen one enters | ordering: who is the head | order of the rows |

Moments without a choice (one request where somebody must be named, or nothing runs) are played on. Holding is masked on
a worker where nothing runs. An action on a masked row becomes row 0 and is counted in `info["invalid_actions"]`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.aeg.validate import check_fits
from saga_rl.env.episodes import load_source, resample, sim_config
from saga_rl.env.eviction import ATTEMPTS, BOUND
from saga_rl.env.rewards import Rewards
from saga_rl.errors import UserError
from saga_rl.policies.constraints import Constraints
from saga_rl.policies.features import LEARNED_ADMISSION, LEARNED_ORDERING
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.sim.cluster import HOLD
from saga_rl.sim.stepping.queue_stepper import QueueStepper

ORDER, ADMIT = len(LEARNED_ORDERING), len(LEARNED_ADMISSION)


class QueueEnv(gym.Env[NDArray[np.float32], np.int64]):
    """Parameters: trace, generator, params, sessions, population, max_decisions, shuffle and profile as in
    `saga_rl.env.eviction.EvictionEnv`; workers and kv_tokens (of each); policies names the preset or checkpoint that
    decides the seams that the agent does not; ordering, admission replace its policies there (specs); reward,
    p95_weight, fairness_weight: see `saga_rl.env.rewards`; constraints: `saga_rl.policies.constraints`.

    Raises `UserError` for a bad trace or parameter, and at reset if there never is anything to choose.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own convention)
    columns: ClassVar[int]
    holds: ClassVar[bool] = False
    """The last row is the action of letting nobody in."""

    def __init__(self, trace: Trace | str | Path | None = None, kv_tokens: int = 240_000, max_rows: int = 32, *,
                 workers: int = 1, generator: str | None = None, params: dict[str, Any] | None = None,
                 sessions: int = 0, population: int = 0, max_decisions: int = 0, shuffle: bool = True,
                 profile: str | None = None, policies: str = "saga+", ordering: str = "", admission: str = "",
                 reward: str = "tct", p95_weight: float = 0.0, fairness_weight: float = 0.0,
                 constraints: Constraints | None = None) -> None:
        for name, value, least in (("max_rows", max_rows, 2), ("workers", workers, 1)):
            if value < least:
                raise UserError(name, f"is {value}", f"give at least {least}")
        self.trace = load_source(trace, generator, params)
        check_fits(self.trace, kv_tokens=kv_tokens)
        self.config = replace(sim_config(kv_tokens, workers, population, profile),
                              constraints=constraints or Constraints())
        self.policies = preset(policies)
        if ordering:
            self.policies = replace(self.policies, ordering=make("ordering", ordering))
        if admission:
            self.policies = replace(self.policies, admission=make("admission", admission))
        self.max_rows, self.sessions, self.max_decisions, self.shuffle = max_rows, sessions, max_decisions, shuffle
        self.rewards = Rewards(reward, p95_weight, fairness_weight)
        self.observation_space = spaces.Box(-BOUND, BOUND, (max_rows, self.columns), np.float32)
        self.action_space = spaces.Discrete(max_rows)
        self.stepper: Any = None
        self._over, self._decisions, self._invalid, self._done = True, 0, 0, 0
        self._costs: dict[str, float] = {}

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new episode; `options` is not read."""
        super().reset(seed=seed)
        for _ in range(ATTEMPTS if self.shuffle else 1):
            trace = resample(self.trace, self.np_random, self.sessions) if self.shuffle else self.trace
            self.stepper = self._new_stepper(trace)
            self.rewards.reset()
            tcts: list[float] = []
            self._over = not self._play_on(self.stepper.reset(), tcts)
            self._decisions, self._invalid, self._done = 0, 0, len(tcts)
            self._settle(tcts)  # what came before the first decision is nobody's doing
            if not self._over:
                return self._observation(), self._info()
        raise UserError("population", f"of {self.config.population} leaves nothing to choose in a queue",
                        "raise it, or the load, or lower kv_tokens")

    def _new_stepper(self, trace: Trace) -> QueueStepper:
        return QueueStepper(trace, self.config, self.policies, self.max_rows - self.holds)

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self._over:
            raise gym.error.ResetNeeded("the episode is over: call reset()")
        row = int(action)
        if not (0 <= row < self.max_rows and self.action_masks()[row]):
            row = 0
            self._invalid += 1
        tcts: list[float] = []
        more = self.stepper.advance(self._entering(row))
        tcts += [tct for _, tct in self.stepper.done_tct]
        self._over = not self._play_on(more, tcts)
        self._decisions += 1
        self._done += len(tcts)
        reward = self._settle(tcts)
        cut = not self._over and 0 < self.max_decisions <= self._decisions
        return self._observation(), reward, self._over, cut, self._info()

    def action_masks(self) -> NDArray[np.bool_]:
        """(max_rows,) requests on offer and, if open, holding; all False once the episode is over."""
        mask = np.arange(self.max_rows) < self._rows()
        mask[-1] |= self.holds and not self._over and not self.stepper.idle
        return mask

    def _settle(self, tcts: list[float]) -> float:
        reward, self._costs = self.rewards.settle(tcts, self.stepper.recomputed_tokens, self.stepper.service_gap_tokens)
        return reward

    def _rows(self) -> int:
        """Rows that stand for requests."""
        return 0 if self._over else self.stepper.n_rows

    def _entering(self, row: int) -> int:
        """What the stepper is told for the action on this row."""
        return HOLD if self.holds and row == self.max_rows - 1 else row

    def _forced(self) -> int | None:
        """The stepper's row where there is no choice."""
        return 0 if self.stepper.n_rows == 1 and (self.stepper.idle or not self.holds) else None

    def _play_on(self, more: bool, tcts: list[float]) -> bool:
        """To the next moment with a choice; False at the end. Notes the completion times of sessions that end."""
        while more and (row := self._forced()) is not None:
            more = self.stepper.advance(self._entering(row))
            tcts += [tct for _, tct in self.stepper.done_tct]
        return more

    def _features(self, n: int) -> NDArray[np.float64]:
        """(n, columns) of the first n requests."""
        raise NotImplementedError

    def _observation(self) -> NDArray[np.float32]:
        obs = np.zeros((self.max_rows, self.columns), np.float32)
        n = self._rows()
        obs[:n] = np.clip(self._features(n), -BOUND, BOUND)
        return obs

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self.action_masks(), "decisions": self._decisions, "invalid_actions": self._invalid,
                "sessions_done": self._done, "recomputed_tokens": self.stepper.recomputed_tokens,
                "components": dict(self._costs)}


class OrderingEnv(QueueEnv):
    """`saga_rl/Ordering-v0`: which waiting request is next; the admission policy says whether it enters."""

    columns = ORDER

    def _entering(self, row: int) -> int:
        return row if self.stepper.lets_in(row) else HOLD

    def _features(self, n: int) -> NDArray[np.float64]:
        return self.stepper.shown.order[:n, :ORDER]


class AdmissionEnv(QueueEnv):
    """`saga_rl/Admission-v0`: whether the head of the queue enters. max_rows is 2."""

    columns, holds = ADMIT, True

    def __init__(self, trace: Trace | str | Path | None = None, kv_tokens: int = 240_000, **options: Any) -> None:
        super().__init__(trace, kv_tokens, options.pop("max_rows", 2), **options)
        if self.max_rows != 2:
            raise UserError("max_rows", f"is {self.max_rows}", "admission has 2 rows: the head of the queue, and hold")

    def _forced(self) -> int | None:
        return 0 if self.stepper.idle else None

    def _features(self, n: int) -> NDArray[np.float64]:
        return self.stepper.shown.admit[:n, :ADMIT]


class JointEnv(QueueEnv):
    """`saga_rl/Joint-v0`: order and admission as one choice."""

    columns, holds = ORDER + ADMIT, True

    def _features(self, n: int) -> NDArray[np.float64]:
        shown = self.stepper.shown
        return np.concatenate([shown.order[:n, :ORDER], shown.admit[:n, :ADMIT]], axis=1)
