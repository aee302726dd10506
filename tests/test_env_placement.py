"""`saga_rl/Placement-v0`: the checkers, determinism, the reward, and that the future does not show."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import saga_rl.env
from saga_rl.aeg.generators import generate
from saga_rl.aeg.trace import Trace
from saga_rl.env.single import TaskEnv
from saga_rl.errors import UserError

KV, WORKERS = 60_000, 2


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate("webarena", 3, sessions=6, rate_per_min=30.0, max_context=20_000)


def make_env(trace: Trace, **kwargs) -> TaskEnv:
    env = gym.make(saga_rl.env.PLACEMENT_ID, trace=trace, kv_tokens=KV, workers=WORKERS, **kwargs).unwrapped
    assert isinstance(env, TaskEnv)
    return env


def play(env: TaskEnv, seed: int) -> tuple[np.ndarray, list[float]]:
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    rows, rewards, over = [obs], [], False
    while not over:
        obs, reward, over, _, info = env.step(np.int64(rng.integers(WORKERS)))
        assert info["action_mask"].all()
        rows.append(obs)
        rewards.append(reward)
    return np.array(rows), rewards


def test_gymnasium_and_stable_baselines3_accept_it(trace: Trace) -> None:
    check_env(make_env(trace, max_decisions=20), skip_render_check=True)
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    sb3.check_env(make_env(trace, max_decisions=20), warn=False)


def test_a_seed_fixes_the_episode(trace: Trace) -> None:
    env = make_env(trace)
    rows, rewards = play(env, 1)
    again_rows, again = play(make_env(trace), 1)
    np.testing.assert_array_equal(rows, again_rows)
    assert rewards == again
    assert len(rewards) == trace.n_steps, "every request is placed once"


def test_the_reward_is_minus_log_completion_time(trace: Trace) -> None:
    env = make_env(trace, shuffle=False)
    _, rewards = play(env, 2)
    done = env.view.metrics()
    assert done["sessions_done"] == trace.n_sessions
    geometric = np.exp(-sum(rewards) / trace.n_sessions)
    assert geometric <= done["tct_mean_s"], "the geometric mean is at most the arithmetic one"
    assert geometric >= 0.2 * done["tct_mean_s"]


def test_the_future_does_not_show(trace: Trace) -> None:
    middle = float(trace.sessions.arrival_s[3])
    late = trace.sessions.arrival_s[trace.steps.session] >= middle
    longer = replace(trace, steps=replace(trace.steps, output_tokens=trace.steps.output_tokens + 300 * late))
    seen = []
    for t in (trace, longer):
        env = make_env(t, shuffle=False)
        obs, _ = env.reset(seed=0)
        rows = []
        while env.view.now_s < middle:
            rows.append(obs)
            obs, _, over, _, _ = env.step(np.int64(len(rows) % WORKERS))
            assert not over
        seen.append(np.array(rows))
    assert len(seen[0]) > 5
    np.testing.assert_array_equal(seen[0], seen[1])


def test_bad_parameters(trace: Trace) -> None:
    with pytest.raises(UserError, match="at least 2"):
        TaskEnv("placement", trace, workers=1)
    with pytest.raises(UserError, match="KV pool"):
        TaskEnv("placement", trace, kv_tokens=1_000)
    with pytest.raises(UserError, match="saga"):
        TaskEnv("placement", trace, kv_tokens=KV, policies="sage")
    with pytest.raises(UserError, match="max_rows"):
        TaskEnv("placement", trace, kv_tokens=KV, max_rows=8)
