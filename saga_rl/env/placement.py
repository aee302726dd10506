"""`saga_rl/Placement-v0`: which worker serves a request, in a closed-loop cluster.

| | |
|---|---|
| observation | Box (workers, len(LEARNED_PLACEMENT)) float32: row i describes worker i for the request at hand |
| action | Discrete(workers): send it there |
| reward | sum of -log(TCT seconds) over the sessions that finished since the last decision |
| mask | `action_masks()` and `info["action_mask"]`: workers that can take the request; all, as workers are equal |
| episode | one run over a random subset of the trace's sessions; terminated when no request is left to place |

The log makes a session that takes twice as long cost the same whether it is short or long. Raw features without a
natural bound (counts, seconds of queued prefill) are clipped to the box.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.aeg.validate import check_fits
from saga_rl.env.episodes import load_source, resample, sim_config
from saga_rl.env.rewards import MIN_TCT_S
from saga_rl.errors import UserError
from saga_rl.policies.features import LEARNED_PLACEMENT
from saga_rl.policies.presets import preset
from saga_rl.sim.stepping.placement_stepper import PlacementStepper

BOUND = 1e6


class PlacementEnv(gym.Env[NDArray[np.float32], np.int64]):
    """Parameters: trace, generator, params, sessions, population, max_decisions, shuffle and profile as in
    `saga_rl.env.eviction.EvictionEnv`; workers and kv_tokens (of each) shape the cluster; policies names the preset or
    checkpoint that decides eviction, ordering and admission. Raises `UserError`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own convention)

    def __init__(self, trace: Trace | str | Path | None = None, kv_tokens: int = 240_000, workers: int = 4, *,
                 generator: str | None = None, params: dict[str, Any] | None = None, sessions: int = 0,
                 population: int = 0, max_decisions: int = 0, shuffle: bool = True, profile: str | None = None,
                 policies: str = "saga+") -> None:
        if workers < 2:
            raise UserError("workers", f"is {workers}", "placement needs at least 2")
        self.trace = load_source(trace, generator, params)
        check_fits(self.trace, kv_tokens=kv_tokens)
        self.config = sim_config(kv_tokens, workers, population, profile)
        self.policies = preset(policies)
        self.sessions, self.max_decisions, self.shuffle = sessions, max_decisions, shuffle
        self.observation_space = spaces.Box(0.0, BOUND, (workers, len(LEARNED_PLACEMENT)), np.float32)
        self.action_space = spaces.Discrete(workers)
        self.stepper: Any = None
        self._decisions, self._done, self._over = 0, 0, True

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new episode; `options` is not read."""
        super().reset(seed=seed)
        trace = resample(self.trace, self.np_random, self.sessions) if self.shuffle else self.trace
        self.stepper = PlacementStepper(trace, self.config, self.policies)
        self.stepper.reset()
        self._decisions, self._done, self._over = 0, 0, False
        return self._observation(), self._info()

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self._over:
            raise gym.error.ResetNeeded("the episode is over: call reset()")
        self._over = not self.stepper.advance(int(action))
        self._decisions += 1
        tcts = [tct for _, tct in self.stepper.done_tct]
        self._done += len(tcts)
        reward = -float(np.log(np.maximum(tcts, MIN_TCT_S)).sum()) if tcts else 0.0
        cut = not self._over and 0 < self.max_decisions <= self._decisions
        return self._observation(), reward, self._over, cut, self._info()

    def action_masks(self) -> NDArray[np.bool_]:
        """(workers,) all True: every worker has the same pool, and what fits one fits all."""
        return np.ones(self.config.workers, bool)

    def _observation(self) -> NDArray[np.float32]:
        if self._over:
            return np.zeros(self.observation_space.shape, np.float32)  # type: ignore[arg-type]
        return np.clip(self.stepper.rows[:, :len(LEARNED_PLACEMENT)], 0.0, BOUND).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self.action_masks(), "decisions": self._decisions, "sessions_done": self._done}
