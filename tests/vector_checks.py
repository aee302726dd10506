"""What every native vector environment has to do, as functions of one of two environments."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import arrange


def shortest(trace: Trace, n: int) -> Trace:
    """The n sessions with the fewest steps."""
    rows = np.argsort(np.diff(trace.session_offsets), kind="stable")[:n]
    return arrange(trace, np.sort(rows), np.arange(n, dtype=float))


def check_by_hand(env) -> None:
    """DISABLED, cut after 3 decisions: what is over must be reset, and a reset touches what the mask names."""
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.int64))
    env.reset(seed=0)
    env.step(np.zeros(2, np.int64))
    _, infos = env.reset(options={"reset_mask": np.array([True, False])})
    assert infos["decisions"].tolist() == [0, 1] and infos["_decisions"].tolist() == [True, False]
    for _ in range(2):
        obs, _, terminated, truncated, _ = env.step(np.zeros(2, np.int64))
    assert truncated.tolist() == [False, True] and not terminated.any()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.int64))
    after, _ = env.reset(options={"reset_mask": np.array([False, True])})
    np.testing.assert_array_equal(after[0], obs[0])
    env.step(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": [True, True]})


def check_wrapped(env) -> None:
    """Cut after 5 decisions, under Gymnasium's own vector wrapper, through three episodes of each environment."""
    mode = env.metadata["autoreset_mode"]
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(env)
    wrapped.reset(seed=0)
    returns, seen = np.zeros(2), []
    for k in range(30):
        _, rewards, terminated, truncated, infos = wrapped.step(np.zeros(2, np.int64))
        over = terminated | truncated
        returns += rewards
        if not over.any():
            continue
        assert over.all() and "episode" in infos
        np.testing.assert_allclose(infos["episode"]["r"], returns)
        assert infos["episode"]["l"].tolist() == [5, 5]
        seen.append(k)
        returns[:] = 0.0
        if mode == gym.vector.AutoresetMode.DISABLED:
            wrapped.reset(options={"reset_mask": np.array([True, True])})
    assert len(seen) >= 5 and set(np.diff(seen)) == {6 if mode == gym.vector.AutoresetMode.NEXT_STEP else 5}
