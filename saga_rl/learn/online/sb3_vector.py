"""The native vector environments as Stable-Baselines3 wants a vector: `NativeVec`.

Several native vectors (a trace and a capacity each) are stepped one after another, in one compiled call each, and look
like one vector to the learner. Episodes begin anew in the step that ends one (SAME_STEP), which is how
Stable-Baselines3's own vectors do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from saga_rl.env.vector import TaskVectorEnv
from saga_rl.errors import UserError

MASKS = "action_masks"


class NativeVec(VecEnv):
    """vectors: native environments of the same spaces, made with `autoreset_mode="SameStep"`. `num_envs` is the sum of
    theirs, in their order. `UserError` where they differ in their spaces."""

    def __init__(self, vectors: Sequence[TaskVectorEnv]) -> None:
        first = vectors[0]
        for v in vectors:
            if v.autoreset_mode != AutoresetMode.SAME_STEP:
                raise ValueError(f"autoreset mode {v.autoreset_mode}: an SB3 vector resets in the step that ends")
            if v.single_observation_space != first.single_observation_space:
                raise UserError("environments", f"have observations {v.single_observation_space.shape} and "
                                f"{first.single_observation_space.shape}", "give all the same rows and workers")
        self.vectors = list(vectors)
        self._cuts = np.cumsum([v.num_envs for v in vectors])
        self._actions = np.zeros(self._cuts[-1], np.int64)
        super().__init__(int(self._cuts[-1]), first.single_observation_space, first.single_action_space)

    def reset(self) -> NDArray[np.float32]:
        at, seen = 0, []
        for v in self.vectors:
            seeds = self._seeds[at:at + v.num_envs]
            seen.append(v.reset(seed=None if seeds[0] is None else [int(s) for s in seeds if s is not None])[0])
            at += v.num_envs
        self._reset_seeds()
        self._reset_options()
        return np.concatenate(seen)

    def step_async(self, actions: NDArray[np.int64]) -> None:
        self._actions = np.asarray(actions, np.int64)

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        parts = [v.step(a) for v, a in zip(self.vectors, np.split(self._actions, self._cuts[:-1]), strict=True)]
        obs, rewards, terminated, truncated = (np.concatenate([p[i] for p in parts]) for i in range(4))
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        at = 0
        for v, (_, _, ended, cut, info) in zip(self.vectors, parts, strict=True):
            for b in np.flatnonzero(ended | cut):
                infos[at + b] = {"terminal_observation": info["final_obs"][b],
                                 "TimeLimit.truncated": bool(cut[b] and not ended[b])}
            at += v.num_envs
        return obs, rewards.astype(np.float32), terminated | truncated, infos

    def close(self) -> None:
        for v in self.vectors:
            v.close()

    def has_attr(self, attr_name: str) -> bool:
        return attr_name == MASKS or hasattr(self.vectors[0], attr_name)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        of_each = [getattr(v, attr_name) for v in self.vectors for _ in range(v.num_envs)]
        return [of_each[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("environments of a native vector are not set one by one")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """`action_masks` of each; no other method can be called on one environment alone."""
        if method_name != MASKS:
            raise NotImplementedError(f"{method_name}: environments of a native vector are not called one by one")
        masks = np.concatenate([v.action_masks() for v in self.vectors])
        return [masks[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
