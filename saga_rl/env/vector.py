"""`gymnasium.make_vec` of any task: all environments stepped in one compiled call (`saga_rl.sim.stepping`).

Where episodes come from: to arrange one takes a while (in open loop a whole run is recorded), so a pool of them is made
at construction. Each environment plays the pool round and round in an order of its own, which follows from its seed.

Autoreset: NEXT_STEP (default: the step after an end resets, its action is not read, its reward is 0), SAME_STEP (the
last observation is in `info["final_obs"]`) and DISABLED (the caller resets with `options={"reset_mask": ...}`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from saga_rl.env.infos import infos_of
from saga_rl.env.rewards import Rewards
from saga_rl.env.settings import ATTEMPTS, Episode, Settings
from saga_rl.env.single import RENDERS, check_render
from saga_rl.env.text import Spec
from saga_rl.errors import UserError
from saga_rl.sim.stepping import book as bk

MODES = {AutoresetMode.NEXT_STEP: bk.NEXT_STEP, AutoresetMode.SAME_STEP: bk.SAME_STEP,
         AutoresetMode.DISABLED: bk.BY_HAND}
VectorState = tuple[Any, ...]
"""A slot of `sim.stepping` each."""


def need(**least: tuple[int, int]) -> None:
    """Raise `UserError` for a parameter below its least value: name=(value, least)."""
    for name, (value, bound) in least.items():
        if value < bound:
            raise UserError(name, f"is {value}", f"give at least {bound}")


class TaskVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """num_envs environments of `task`; options: see `saga_rl.env.settings.Settings`, which `settings` holds, and:

    episodes: size of the pool (1 if shuffle is False); pool_seed: the pool follows from it, so that environments with
    different seeds play the same episodes in other orders; autoreset_mode; copy: False hands out the buffer that the
    next step writes to; render_mode: None or "ansi"; threads: that share the environments of a step, which pays from
    some dozens of environments on and changes nothing else. Raises `UserError`.
    """

    def __init__(self, task: str, num_envs: int = 1, *args: Any, episodes: int = 16, pool_seed: int = 0,
                 autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, copy: bool = True,
                 render_mode: str | None = None, threads: int = 1, **options: Any) -> None:
        need(num_envs=(num_envs, 1), episodes=(episodes, 1), threads=(threads, 1))
        mode = AutoresetMode(autoreset_mode)
        self.settings = Settings(task, *args, **options)
        self.num_envs, self.copy, self.autoreset_mode, self.threads = num_envs, copy, mode, threads
        self.render_mode = check_render(render_mode)
        self.metadata = {"render_modes": RENDERS, "autoreset_mode": mode}
        one, act = self.settings.observation_space, self.settings.action_space
        self.single_observation_space, self.single_action_space = one, act
        self.observation_space, self.action_space = batch_space(one, num_envs), batch_space(act, num_envs)
        self._spec: EnvSpec | None = None
        self.episodes: list[Episode] = self._pool(np.random.default_rng(pool_seed), episodes)
        """The pool."""
        self._main = self.settings.runner(num_envs, self.episodes, MODES[mode], threads)
        self._use(self._main)

    def _pool(self, rng: np.random.Generator, wanted: int, ids: Sequence[str | int] | None = None) -> list[Episode]:
        pool: list[Episode] = []
        for _ in range(ATTEMPTS * wanted if self.settings.shuffle else 1):
            episode = self.settings.episode(self.settings.arranged(rng, ids))
            probe = self.settings.runner(1, [episode], bk.BY_HAND)
            probe.reset(np.ones(1, np.bool_))
            if not probe.slots.book[0, bk.OVER]:
                pool.append(episode)
            if len(pool) == wanted:
                break
        if not pool:
            raise self.settings.no_choice()
        return pool

    def _use(self, runner: Any) -> None:
        self._runner, self._slots, self._seeded = runner, runner.slots, False
        self._slots.book[:, bk.OVER] = 1

    @property
    def rewards(self) -> Rewards:
        """One price for all of them; it counts from the next step on."""
        return self.settings.rewards

    @property
    def spec(self) -> EnvSpec | None:
        """How it was made, in values that JSON has (`env.text`)."""
        return self._spec

    @spec.setter
    def spec(self, value: EnvSpec | None) -> None:
        self._spec = Spec.of(value)

    def reset(self, *, seed: int | list[int | None] | None = None,
              options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin new episodes everywhere, or where `options["reset_mask"]` (num_envs,) is True.

        seed: environment i gets seed + i, or its own of a list. A seed fixes the order in which the pool is played from
        here on; None goes on with the order there is. `options["sessions"]`: until the next reset of all, every
        environment plays one arrangement of these sessions (ids or numbers), drawn by the first seed.
        """
        which, ids = self._which(options), (options or {}).get("sessions")
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)] if not isinstance(
            seed, (list, tuple)) else seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        if ids is not None:
            if not which.all():
                raise UserError("sessions", "are named for some of the environments", "reset all of them")
            pool = self._pool(np.random.default_rng(seeds[0]), 1, ids)
            self._use(self.settings.runner(self.num_envs, pool, MODES[self.autoreset_mode], self.threads))
        elif self._runner is not self._main and which.all():
            self._use(self._main)
        order = self._slots.order
        for b, one in enumerate(seeds):
            if (one is not None and which[b]) or not self._seeded:
                order[b] = np.random.default_rng(one).permutation(order.shape[1])
                self._slots.book[b, bk.PLAYED] = 0
        self._seeded = True
        self.settings.set_prices(self._slots)
        self._runner.reset(which)
        return self._observations(), self._infos(which)

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_],
                                                        NDArray[np.bool_], dict[str, Any]]:
        z = self._slots
        if not self._seeded or (self.autoreset_mode == AutoresetMode.DISABLED and z.book[:, bk.OVER].any()):
            raise gym.error.ResetNeeded("an episode is over: call reset()")
        actions = np.ascontiguousarray(actions, np.int64)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions have shape {actions.shape}, not ({self.num_envs},)")
        self.settings.set_prices(z)
        self._runner.step(actions)
        infos = self._infos()
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            self._add_final(infos, z.terminated | z.truncated)
        return self._observations(), z.reward.copy(), z.terminated.copy(), z.truncated.copy(), infos

    def action_masks(self) -> NDArray[np.int8]:
        """(num_envs, actions) what `info["action_mask"]` says."""
        return self._slots.mask.astype(np.int8)

    def clone_state(self, indices: Sequence[int] | None = None) -> VectorState:
        """Copy the episodes of the environments `indices` (None = all) as they stand."""
        if not self._seeded:
            raise gym.error.ResetNeeded("there is no episode yet: call reset()")
        return tuple(self._runner.clone(b) for b in self._at(indices))

    def restore_state(self, state: VectorState, indices: Sequence[int] | None = None,
                      ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Put the environments `indices` (None = all) where those were that were cloned; a state of one goes to each of
        them, so that many futures of one moment are played at once. Gives observations and infos of all, as `reset`.
        Raises `UserError` for a state of another vector, or of another number."""
        at = self._at(indices)
        if any(s.runner is not self._runner for s in state):
            raise UserError("state", "was cloned from another vector, or before other sessions were named",
                            "restore where it was cloned")
        if len(state) not in (1, len(at)):
            raise UserError("state", f"is of {len(state)} environments, not {len(at)}", "clone one, or as many")
        for k, b in enumerate(at):
            self._runner.restore(b, state[k if len(state) > 1 else 0])
        return self._observations(), self._infos()

    def render(self) -> tuple[str, ...] | None:
        """A text for each environment, if `render_mode` is "ansi"."""
        if self.render_mode is None:
            return None
        return tuple(self.settings.view(self._runner, b).text() for b in range(self.num_envs))

    def _at(self, indices: Sequence[int] | None) -> list[int]:
        at = list(range(self.num_envs)) if indices is None else [int(b) for b in indices]
        if not at or not all(0 <= b < self.num_envs for b in at):
            raise UserError("indices", f"are {at}", f"name environments 0 to {self.num_envs - 1}")
        return at

    def _observations(self) -> NDArray[np.float32]:
        return self._slots.obs.copy() if self.copy else self._slots.obs

    def _infos(self, which: NDArray[np.bool_] | None = None) -> dict[str, Any]:
        z = self._slots
        return infos_of(z.mask.copy(), z.book.copy(), z.costs.copy(), which)

    def _add_final(self, infos: dict[str, Any], over: NDArray[np.bool_]) -> None:
        """Add the last observation and info of the episodes that ended, in the form of Gymnasium's own vectors."""
        if not over.any():
            return
        z, final = self._slots, np.full(self.num_envs, None, object)
        for b in np.flatnonzero(over):
            final[b] = z.final_obs[b].copy()
        last = infos_of(z.final_mask & over[:, None], np.where(over[:, None], z.final_book, 0),
                        np.where(over[:, None], z.final_costs, 0.0), over)
        infos |= {"final_obs": final, "_final_obs": over, "final_info": last, "_final_info": over}

    def _which(self, options: dict[str, Any] | None) -> NDArray[np.bool_]:
        if options is None or "reset_mask" not in options:
            return np.ones(self.num_envs, bool)
        which = options["reset_mask"]
        if not isinstance(which, np.ndarray) or which.shape != (self.num_envs,) or which.dtype != np.bool_:
            raise ValueError(f"reset_mask must be a bool array of shape ({self.num_envs},)")
        if not which.any():
            raise ValueError("reset_mask marks no environment")
        return which
