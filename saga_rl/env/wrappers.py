"""Masks where other libraries look for them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray


class DictMask(gym.ObservationWrapper[dict[str, Any], np.int64, NDArray[np.float32]], RecordConstructorArgs):
    """Observations as {"observations": rows, "action_mask": (actions,) int8}, as RLlib's masked models want them."""

    def __init__(self, env: gym.Env[NDArray[np.float32], np.int64]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        actions = int(env.action_space.n)  # type: ignore[attr-defined]
        self.observation_space = spaces.Dict({
            "observations": env.observation_space,
            "action_mask": spaces.Box(0, 1, (actions,), np.int8)})

    def observation(self, observation: NDArray[np.float32]) -> dict[str, Any]:
        return {"observations": observation, "action_mask": self.env.get_wrapper_attr("action_masks")()}
