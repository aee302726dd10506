"""`saga_rl/Eviction-v0`: whose blocks go when memory is needed, on a fixed reference string (open loop).

| | |
|---|---|
| observation | Box (max_rows, F) float32: row i is candidate i, columns `LEARNED_EVICTION`; padding rows are zero |
| action | Discrete(max_rows): take blocks, tail first, from candidate i, as many as are needed |
| reward | -(tokens computed again since the last decision) / 1000 |
| mask | `action_masks()` and `info["action_mask"]`: rows that hold a candidate |
| episode | one replay of a random subset of the trace's sessions, in random order; terminated when the string is over |

An action on a masked row falls back to LRU and is counted in `info["invalid_actions"]`. Observations are what an online
policy sees: nothing in them depends on what comes later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import load_source, resample, sim_config
from saga_rl.errors import UserError
from saga_rl.policies.features import LEARNED_EVICTION
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.sim.openloop.record import record_reference
from saga_rl.sim.stepping.replay_stepper import EvictionStepper

REWARD_TOKENS = 1000.0
"""Tokens computed again that cost one unit of reward."""
BOUND = 64.0
"""No column exceeds it: shares are at most 1 and log(1 + x) of any count or time is less."""
ATTEMPTS = 8
"""Session subsets tried before a reset gives up on finding one that needs an eviction."""


class EvictionEnv(gym.Env[NDArray[np.float32], np.int64]):
    """Parameters:

    trace: a Trace or a file, or generator + params (see `saga_rl.aeg.generators.generate`; `seed` may be among params);
    kv_tokens: the pool, also for the recording of the reference string; max_rows: candidates offered at most (those
    that LRU would take first); sessions: sessions of one episode, 0 = all; population: closed population while
    recording, 0 = the trace's arrivals; max_decisions: truncate after so many, 0 = never; shuffle: False replays the
    trace as it is; profile: cost profile, None = the simulator's default; record: preset that records the string.

    Raises `UserError` for a bad trace or parameter, and at reset if nothing ever has to be evicted.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own convention)

    def __init__(self, trace: Trace | str | Path | None = None, kv_tokens: int = 240_000, max_rows: int = 32, *,
                 generator: str | None = None, params: dict[str, Any] | None = None, sessions: int = 0,
                 population: int = 0, max_decisions: int = 0, shuffle: bool = True, profile: str | None = None,
                 record: str = "lru") -> None:
        if max_rows < 2:
            raise UserError("max_rows", f"is {max_rows}", "offer at least 2 candidates")
        self.trace = load_source(trace, generator, params)
        self.config = sim_config(kv_tokens, population=population, profile=profile)
        self.record = preset(record)
        self.max_rows, self.sessions, self.max_decisions, self.shuffle = max_rows, sessions, max_decisions, shuffle
        self.observation_space = spaces.Box(-BOUND, BOUND, (max_rows, len(LEARNED_EVICTION)), np.float32)
        self.action_space = spaces.Discrete(max_rows)
        self.stepper: EvictionStepper | Any = None
        self._lru = make("eviction", "lru")
        self._recomputed, self._decisions, self._invalid = 0, 0, 0

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new episode; `options` is not read."""
        super().reset(seed=seed)
        self._recomputed, self._decisions, self._invalid = 0, 0, 0
        for _ in range(ATTEMPTS if self.shuffle else 1):
            self.stepper = self._new_stepper()
            self.stepper.reset()
            if self.stepper.n_rows > 0:
                self._recomputed = int(self.stepper.recomputed_tokens)
                return self._observation(), self._info()
        raise UserError("kv_tokens", f"of {self.config.kv_tokens} never runs out in {ATTEMPTS} episodes",
                        "lower kv_tokens, or take more sessions or a larger population")

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self.stepper is None or self.stepper.n_rows == 0:
            raise gym.error.ResetNeeded("the episode is over: call reset()")
        row = int(action)
        if not 0 <= row < self.stepper.n_rows:
            row = self.stepper.policy_action(self._lru)
            self._invalid += 1
        over = not self.stepper.advance(row)
        self._decisions += 1
        recomputed = int(self.stepper.recomputed_tokens)
        reward = -(recomputed - self._recomputed) / REWARD_TOKENS
        self._recomputed = recomputed
        cut = not over and 0 < self.max_decisions <= self._decisions
        return self._observation(), reward, over, cut, self._info()

    def action_masks(self) -> NDArray[np.bool_]:
        """(max_rows,) True where a candidate is; all False once the episode is over."""
        return np.arange(self.max_rows) < self.stepper.n_rows

    def _new_stepper(self) -> EvictionStepper:
        trace = resample(self.trace, self.np_random, self.sessions) if self.shuffle else self.trace
        reference = record_reference(trace, self.config, self.record)
        return EvictionStepper(reference, reference.kv_tokens, self.max_rows, end_hint=self.config.end_hint,
                               expiry_s=self.config.expiry_s)

    def _observation(self) -> NDArray[np.float32]:
        obs = np.zeros((self.max_rows, len(LEARNED_EVICTION)), np.float32)
        n = self.stepper.n_rows
        obs[:n] = self.stepper.rows[:n, :len(LEARNED_EVICTION)]
        return obs

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self.action_masks(), "invalid_actions": self._invalid, "decisions": self._decisions,
                "recomputed_tokens": self._recomputed}
