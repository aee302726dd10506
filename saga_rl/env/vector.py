"""`saga_rl/EvictionVec-v0`: many `saga_rl/Eviction-v0` at once, stepped in one compiled call (`saga_rl.sim.vector`).

Spaces, rewards, masks and what an observation may know are those of `saga_rl.env.eviction`, decision for decision. What
differs is where episodes come from: recording a reference string takes a closed-loop run, so a pool of them is made at
construction, and each environment plays the pool round and round in an order of its own, which follows from its seed.

Autoreset: NEXT_STEP (default: the step after an end resets, its action is not read, its reward is 0), SAME_STEP (the
last observation is in `info["final_obs"]`) and DISABLED (the caller resets with `options={"reset_mask": ...}`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import load_source, resample, sim_config
from saga_rl.env.eviction import ATTEMPTS, BOUND
from saga_rl.errors import UserError
from saga_rl.policies.features import LEARNED_EVICTION
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.sim import vector as vc
from saga_rl.sim.record import record_reference
from saga_rl.sim.reference import Reference
from saga_rl.sim.script import prepare
from saga_rl.sim.stepper import EvictionStepper

MODES = {AutoresetMode.NEXT_STEP: vc.NEXT_STEP, AutoresetMode.SAME_STEP: vc.SAME_STEP,
         AutoresetMode.DISABLED: vc.BY_HAND}
INFOS = {"decisions": vc.DECISIONS, "invalid_actions": vc.INVALID, "recomputed_tokens": vc.TOKENS,
         "pool_episode": vc.EPISODE}
"""Keys of info that are columns of `Slots.book`; "pool_episode" is the episode's number in the pool."""


class EvictionVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """num_envs environments; the parameters of `saga_rl.env.eviction.EvictionEnv`, and:

    episodes: size of the pool (1 if shuffle is False); pool_seed: the pool follows from it, so that environments with
    different seeds play the same episodes in other orders; autoreset_mode; copy: False hands out the buffer that the
    next step writes to. Raises `UserError`.
    """

    def __init__(self, num_envs: int = 1, trace: Trace | str | Path | None = None, kv_tokens: int = 240_000,
                 max_rows: int = 32, *, generator: str | None = None, params: dict[str, Any] | None = None,
                 sessions: int = 0, population: int = 0, max_decisions: int = 0, shuffle: bool = True,
                 profile: str | None = None, record: str = "lru", episodes: int = 16, pool_seed: int = 0,
                 autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, copy: bool = True) -> None:
        for name, value, least in (("num_envs", num_envs, 1), ("max_rows", max_rows, 2), ("episodes", episodes, 1)):
            if value < least:
                raise UserError(name, f"is {value}", f"give at least {least}")
        mode = AutoresetMode(autoreset_mode)
        self.num_envs, self.copy, self.autoreset_mode = num_envs, copy, mode
        self.metadata = {"render_modes": [], "autoreset_mode": mode}
        self.single_observation_space = spaces.Box(-BOUND, BOUND, (max_rows, len(LEARNED_EVICTION)), np.float32)
        self.single_action_space = spaces.Discrete(max_rows)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        config = sim_config(kv_tokens, population=population, profile=profile)
        source, policies = load_source(trace, generator, params), preset(record)
        rng = np.random.default_rng(pool_seed)
        self.references: list[Reference] = []
        """The pool; `EvictionStepper` plays its entries singly."""
        for _ in range(ATTEMPTS * episodes if shuffle else 1):
            arranged = resample(source, rng, sessions) if shuffle else source
            reference = record_reference(arranged, config, policies)
            if EvictionStepper(reference, kv_tokens, max_rows, end_hint=config.end_hint,
                               expiry_s=config.expiry_s).n_rows:
                self.references.append(reference)
            if len(self.references) == episodes:
                break
        if not self.references:
            raise UserError("kv_tokens", f"of {kv_tokens} never runs out in the episodes tried",
                            "lower kv_tokens, or take more sessions or a larger population")
        self._slots = vc.make_slots(num_envs, max_rows, len(LEARNED_EVICTION), len(self.references), MODES[mode],
                                    max_decisions, config.end_hint, config.expiry_s)
        self._fleet = vc.Fleet(self._slots, [prepare(r, kv_tokens) for r in self.references],
                               replace(make("eviction", "lru"), informed=True))
        self._slots.book[:, vc.OVER] = 1
        self._seeded = False

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
        for b, one in enumerate(seeds):
            if (one is not None and which[b]) or not self._seeded:
                self._slots.order[b] = np.random.default_rng(one).permutation(len(self.references))
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
        """(num_envs, max_rows) True where a candidate is; all False where an episode is over."""
        return self._slots.mask.copy()

    def _observations(self) -> NDArray[np.float32]:
        return self._slots.obs.copy() if self.copy else self._slots.obs

    def _infos(self, which: NDArray[np.bool_]) -> dict[str, Any]:
        infos: dict[str, Any] = {"action_mask": self._slots.mask.copy(), "_action_mask": which}
        for key, column in INFOS.items():
            infos[key], infos[f"_{key}"] = self._slots.book[:, column].copy(), which
        return infos

    def _add_final(self, infos: dict[str, Any], over: NDArray[np.bool_]) -> None:
        """The last observation and info of the episodes that ended, in the form of Gymnasium's own vectors."""
        if not over.any():
            return
        z = self._slots
        final = np.full(self.num_envs, None, object)
        for b in np.flatnonzero(over):
            final[b] = z.final_obs[b].copy()
        last: dict[str, Any] = {"action_mask": z.final_mask & over[:, None], "_action_mask": over}
        for key, column in INFOS.items():
            last[key], last[f"_{key}"] = np.where(over, z.final_book[:, column], 0), over
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
