"""`saga_rl/Eviction-v0`: the checkers of Gymnasium and Stable-Baselines3, determinism, masks, rewards, no oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import saga_rl.env
from saga_rl.aeg.generators import generate
from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import arrange, sim_config
from saga_rl.env.settings import BOUND
from saga_rl.env.single import TaskEnv
from saga_rl.errors import UserError
from saga_rl.policies.features import LEARNED_EVICTION
from saga_rl.policies.registry import make
from saga_rl.sim.openloop.record import record_reference
from saga_rl.sim.reference import END, START
from saga_rl.sim.stepping.replay_vector import TOKENS_UNIT

KV = 40_000


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate("swe-bench", 3, sessions=8, rate_per_min=60.0, max_context=20_000)


def make_env(trace: Trace, **kwargs: Any) -> TaskEnv:
    env = gym.make(saga_rl.env.EVICTION_ID, trace=trace, kv_tokens=KV, max_rows=8, **kwargs).unwrapped
    assert isinstance(env, TaskEnv)
    return env


def random_play(env: TaskEnv, seed: int, limit: int = 10_000) -> list[tuple]:
    rng = np.random.default_rng(seed)
    obs, info = env.reset(seed=seed)
    out = [(obs, info["action_mask"])]
    for _ in range(limit):
        obs, reward, over, cut, info = env.step(np.int64(rng.choice(np.flatnonzero(info["action_mask"]))))
        out.append((obs, info["action_mask"], reward, over))
        if over or cut:
            break
    return out


def test_gymnasium_and_stable_baselines3_accept_it(trace: Trace) -> None:
    check_env(make_env(trace, sessions=4, max_decisions=50), skip_render_check=True)
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    sb3.check_env(make_env(trace, sessions=4, max_decisions=50), warn=False)


def test_sb3_contrib_finds_the_masks(trace: Trace) -> None:
    utils = pytest.importorskip("sb3_contrib.common.maskable.utils")
    env = make_env(trace)
    env.reset(seed=0)
    assert utils.is_masking_supported(env)
    np.testing.assert_array_equal(utils.get_action_masks(env), env.action_masks())


def test_a_seed_fixes_the_episode_and_another_changes_it(trace: Trace) -> None:
    first, again, other = (random_play(make_env(trace, sessions=6), s, 200) for s in (1, 1, 2))
    assert len(first) == len(again)
    for a, b in zip(first, again, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    assert len(other) != len(first) or any((a[0] != b[0]).any() for a, b in zip(first, other, strict=True))


def test_what_observations_and_rewards_are(trace: Trace) -> None:
    env = make_env(trace)
    steps = random_play(env, 5)
    for obs, mask, *_ in steps:
        assert obs.dtype == np.float32 and np.isfinite(obs).all() and (np.abs(obs) <= BOUND).all()
        rows = mask.astype(bool)
        assert mask.dtype == np.int8 and not obs[~rows].any()
        assert obs[rows][:, LEARNED_EVICTION.index("context_log")].all(), "a candidate's row can be told from padding"
    assert steps[-1][3], "an episode ends when the reference string does"
    assert not steps[-1][1].any()
    total = -sum(s[2] for s in steps[1:]) * TOKENS_UNIT
    assert 0 < round(total) <= env.view.recomputed_tokens
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))


def test_a_masked_action_becomes_lru_and_is_counted(trace: Trace) -> None:
    """The same episode, once with LRU's own choices and once with actions that are all masked."""
    lru = make("eviction", "lru")
    runs = []
    for invalid in (False, True):
        env = make_env(trace)
        env.reset(seed=4)
        rewards, over = [], False
        while not over:
            action = env.settings.max_rows - 1 if invalid else env.view.policy_action(lru)
            full = env.action_masks().all()
            if invalid and full:
                action = env.view.policy_action(lru)
            _, reward, over, _, info = env.step(np.int64(action))
            rewards.append(reward)
        runs.append((rewards, info["invalid_actions"]))
    assert runs[0][0] == runs[1][0]
    assert runs[0][1] == 0 < runs[1][1]


def test_reward_and_truncation(trace: Trace) -> None:
    """Rewards are tokens computed again since, in thousands; the episode is cut after so many decisions."""
    env = make_env(trace, max_decisions=4)
    _, info = env.reset(seed=0)
    for k in range(4):
        before = info["recomputed_tokens"]
        _, reward, over, cut, info = env.step(np.int64(k % 2))
        assert reward == -(info["recomputed_tokens"] - before) / TOKENS_UNIT
        assert info["components"]["recomputed_tokens"] == info["recomputed_tokens"] - before
        assert (over, cut, info["decisions"]) == (False, k == 3, k + 1)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))


def settled_until(trace: Trace, moment: float) -> float:
    """The start of the first run that is in flight at `moment`, s."""
    reference = record_reference(trace, sim_config(KV))
    started: dict[int, float] = {}
    for kind, step, time in zip(reference.kind, reference.step, reference.time_s, strict=True):
        if time >= moment:
            break
        if kind == START:
            started[int(step)] = float(time)
        elif kind == END:
            started.pop(int(step))
    return min(started.values(), default=moment)


def test_the_future_does_not_show(trace: Trace) -> None:
    """Sessions that arrive after some moment are made longer: observations before it stay the same, up to the first run
    that is still in flight then (what a run will hold is part of the fixed string, and asked for when it starts)."""
    trace = arrange(trace, np.arange(trace.n_sessions), 30.0 * np.arange(trace.n_sessions))
    middle = 30.0 * 6
    late = trace.sessions.arrival_s[trace.steps.session] >= middle
    longer = replace(trace, steps=replace(trace.steps, output_tokens=trace.steps.output_tokens + 400 * late,
                                          tool_s=np.where(late, trace.steps.tool_s * 3, trace.steps.tool_s)))
    settled = min(settled_until(t, middle) for t in (trace, longer))
    seen = []
    for t in (trace, longer):
        env = make_env(t, shuffle=False)
        obs, _ = env.reset(seed=0)
        rows = []
        while env.view.now_s < settled:
            rows.append(obs)
            obs, _, over, _, _ = env.step(np.int64(0))
            if over:
                break
        seen.append(np.array(rows))
    assert len(seen[0]) > 5
    np.testing.assert_array_equal(seen[0], seen[1])


def test_bad_parameters(trace: Trace) -> None:
    with pytest.raises(UserError, match="exactly one"):
        TaskEnv("eviction")
    with pytest.raises(UserError, match="eviction"):
        TaskEnv("evictions", trace)
    with pytest.raises(UserError, match="at least 2"):
        TaskEnv("eviction", trace, max_rows=1)
    with pytest.raises(UserError, match="never runs out"):
        TaskEnv("eviction", trace, 50_000_000).reset(seed=0)
    with pytest.raises(UserError, match="webarena"):
        TaskEnv("eviction", generator="web-arena")
    with pytest.raises(UserError, match="policies: is no option of eviction"):
        TaskEnv("eviction", trace, policies="lru")
    with pytest.raises(UserError, match="in open loop"):
        TaskEnv("eviction", trace, reward="dense")


def test_a_generator_makes_the_trace() -> None:
    params = {"seed": 3, "sessions": 8, "rate_per_min": 60.0, "max_context": 20_000}
    env = TaskEnv("eviction", generator="swe-bench", params=params, kv_tokens=KV, max_rows=8, max_decisions=3)
    obs, _ = env.reset(seed=1)
    direct, _ = TaskEnv("eviction", generate("swe-bench", 3, sessions=8, rate_per_min=60.0, max_context=20_000), KV,
                        max_rows=8).reset(seed=1)
    np.testing.assert_array_equal(obs, direct)
