"""What the native vector environments share: seeds, the order in which a pool of episodes is played, resets, infos.

Each environment plays the pool round and round in an order of its own, which follows from its seed.

Autoreset: NEXT_STEP (default: the step after an end resets, its action is not read, its reward is 0), SAME_STEP (the
last observation is in `info["final_obs"]`) and DISABLED (the caller resets with `options={"reset_mask": ...}`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from saga_rl.errors import UserError
from saga_rl.sim.stepping import replay_vector as vc

MODES = {AutoresetMode.NEXT_STEP: vc.NEXT_STEP, AutoresetMode.SAME_STEP: vc.SAME_STEP,
         AutoresetMode.DISABLED: vc.BY_HAND}


def need(**least: tuple[int, int]) -> None:
    """`UserError` for a parameter below its least value: name=(value, least)."""
    for name, (value, bound) in least.items():
        if value < bound:
            raise UserError(name, f"is {value}", f"give at least {bound}")


class PooledVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """A subclass calls `_open` last in its construction. The compiled loops write to its slots; see
    `sim.stepping.replay_vector.Slots` for those that every kind has: book, order, obs, mask, reward, terminated,
    truncated, final_obs, final_mask, final_book."""

    columns: ClassVar[dict[str, int]]
    """Keys of info that are columns of `book`; "pool_episode" is the episode's number in the pool."""

    def _shape(self, num_envs: int, observation: spaces.Box, action: spaces.Discrete, mode: AutoresetMode,
               copy: bool) -> None:
        self.num_envs, self.copy, self.autoreset_mode = num_envs, copy, mode
        self.metadata = {"render_modes": [], "autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = observation, action
        self.observation_space, self.action_space = batch_space(observation, num_envs), batch_space(action, num_envs)

    def _open(self, slots: Any, fleet: Any) -> None:
        self._slots, self._fleet, self._seeded = slots, fleet, False
        slots.book[:, vc.OVER] = 1

    def reset(self, *, seed: int | list[int | None] | None = None,
              options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """New episodes everywhere, or where `options["reset_mask"]` (num_envs,) is True.

        seed: environment i gets seed + i, or its own of a list. A seed fixes the order in which the pool is played from
        here on; None goes on with the order there is.
        """
        which = self._which(options)
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)] if not isinstance(
            seed, (list, tuple)) else seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        order = self._slots.order
        for b, one in enumerate(seeds):
            if (one is not None and which[b]) or not self._seeded:
                order[b] = np.random.default_rng(one).permutation(order.shape[1])
                self._slots.book[b, vc.PLAYED] = 0
        self._seeded = True
        self._fleet.reset(which)
        return self._observations(), self._infos(which)

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_],
                                                        NDArray[np.bool_], dict[str, Any]]:
        z = self._slots
        if not self._seeded or (self.autoreset_mode == AutoresetMode.DISABLED and z.book[:, vc.OVER].any()):
            raise gym.error.ResetNeeded("an episode is over: call reset()")
        actions = np.ascontiguousarray(actions, np.int64)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions have shape {actions.shape}, not ({self.num_envs},)")
        self._fleet.step(actions)
        infos = self._infos(np.ones(self.num_envs, bool))
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            self._add_final(infos, z.terminated | z.truncated)
        return self._observations(), z.reward.copy(), z.terminated.copy(), z.truncated.copy(), infos

    def action_masks(self) -> NDArray[np.bool_]:
        """(num_envs, actions) what `info["action_mask"]` says."""
        return self._slots.mask.copy()

    def _observations(self) -> NDArray[np.float32]:
        return self._slots.obs.copy() if self.copy else self._slots.obs

    def _infos(self, which: NDArray[np.bool_]) -> dict[str, Any]:
        infos: dict[str, Any] = {"action_mask": self._slots.mask.copy(), "_action_mask": which}
        for key, column in self.columns.items():
            infos[key], infos[f"_{key}"] = self._slots.book[:, column].copy(), which
        return infos

    def _last(self, over: NDArray[np.bool_]) -> dict[str, Any]:
        """The last infos of the episodes that ended in this step; zero where none did."""
        z = self._slots
        last: dict[str, Any] = {"action_mask": z.final_mask & over[:, None], "_action_mask": over}
        for key, column in self.columns.items():
            last[key], last[f"_{key}"] = np.where(over, z.final_book[:, column], 0), over
        return last

    def _add_final(self, infos: dict[str, Any], over: NDArray[np.bool_]) -> None:
        """The last observation and info of the episodes that ended, in the form of Gymnasium's own vectors."""
        if not over.any():
            return
        final = np.full(self.num_envs, None, object)
        for b in np.flatnonzero(over):
            final[b] = self._slots.final_obs[b].copy()
        infos |= {"final_obs": final, "_final_obs": over, "final_info": self._last(over), "_final_info": over}

    def _which(self, options: dict[str, Any] | None) -> NDArray[np.bool_]:
        if options is None or "reset_mask" not in options:
            return np.ones(self.num_envs, bool)
        which = options["reset_mask"]
        if not isinstance(which, np.ndarray) or which.shape != (self.num_envs,) or which.dtype != np.bool_:
            raise ValueError(f"reset_mask must be a bool array of shape ({self.num_envs},)")
        if not which.any():
            raise ValueError("reset_mask marks no environment")
        return which
