"""`saga_rl/EvictionVec-v0` against Gymnasium's own vector of single environments on the same episodes: every array."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_env_eviction import settled_until
from vector_checks import check_by_hand, check_wrapped

import saga_rl.env
from saga_rl.aeg.generators import generate
from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import arrange
from saga_rl.env.eviction import EvictionEnv
from saga_rl.env.vector import EvictionVectorEnv
from saga_rl.errors import UserError
from saga_rl.sim.stepping.replay_stepper import EvictionStepper

KV, ROWS, ENVS = 40_000, 4, 5
FEW: dict[str, Any] = {"kv_tokens": KV, "max_rows": ROWS, "sessions": 6, "episodes": 3}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate("swe-bench", 3, sessions=8, rate_per_min=60.0, max_context=20_000)


def make_vec(trace: Trace, envs: int = ENVS, **kwargs: Any) -> EvictionVectorEnv:
    made = gym.make_vec(saga_rl.env.EVICTION_VEC_ID, envs, vectorization_mode="vector_entry_point", trace=trace,
                        **{**FEW, **kwargs})
    assert isinstance(made.unwrapped, EvictionVectorEnv)
    return made.unwrapped


class Listed(EvictionEnv):
    """The single environment, on a given list of episodes, round and round."""

    def __init__(self, references: list, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.references, self.at = references, 0

    def _new_stepper(self) -> EvictionStepper:
        reference = self.references[self.at % len(self.references)]
        self.at += 1
        return EvictionStepper(reference, KV, self.max_rows, end_hint=self.config.end_hint,
                               expiry_s=self.config.expiry_s)


def actions_for(masks: np.ndarray, rng: np.random.Generator, invalid: float) -> np.ndarray:
    """A random row on offer for each environment, or any row at all with chance `invalid`."""
    offered = np.array([rng.choice(np.flatnonzero(m)) if m.any() else 0 for m in masks])
    return np.where(rng.random(len(masks)) < invalid, rng.integers(ROWS, size=len(masks)), offered)


def same_infos(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key, value in theirs.items():
        mask = theirs[f"_{key}"] if not key.startswith("_") else slice(None)
        if isinstance(value, dict):
            same_infos(ours[key], value)
        elif value.dtype == object:
            for a, b in zip(ours[key], value, strict=True):
                np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_array_equal(ours[key][mask], value[mask], err_msg=key)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("max_decisions", [0, 13])
def test_it_is_gymnasiums_vector_of_single_environments(trace: Trace, mode: AutoresetMode, max_decisions: int) -> None:
    ours = make_vec(trace, autoreset_mode=mode, max_decisions=max_decisions)
    ours.reset(seed=11)
    orders = [np.random.default_rng(11 + b).permutation(3) for b in range(ENVS)]
    theirs = SyncVectorEnv([lambda order=o: Listed([ours.references[e] for e in order], trace=trace, kv_tokens=KV,
                                                   max_rows=ROWS, max_decisions=max_decisions) for o in orders],
                           autoreset_mode=mode)
    assert theirs.single_observation_space == ours.single_observation_space
    assert theirs.action_space == ours.action_space and theirs.metadata["autoreset_mode"] == mode
    obs, infos = ours.reset(seed=11)
    their_obs, their_infos = theirs.reset(seed=11)
    rng, ended, cut = np.random.default_rng(5), 0, 0
    for _ in range(700):
        np.testing.assert_array_equal(obs, their_obs)
        assert obs.dtype == np.float32
        same_infos(infos, their_infos)
        np.testing.assert_array_equal(ours.action_masks(), infos["action_mask"])
        actions = actions_for(infos["action_mask"], rng, 0.2)
        obs, rewards, terminated, truncated, infos = ours.step(actions)
        their_obs, their_rewards, their_terminated, their_truncated, their_infos = theirs.step(actions)
        np.testing.assert_array_equal(rewards, their_rewards)
        np.testing.assert_array_equal(terminated, their_terminated)
        np.testing.assert_array_equal(truncated, their_truncated)
        assert ("final_obs" in infos) == ("final_obs" in their_infos)
        ended, cut = ended + terminated.sum(), cut + truncated.sum()
    assert infos["invalid_actions"].dtype.kind == "i"
    assert cut > ENVS if max_decisions else ended >= ENVS, "slots were used again"


def test_seeds(trace: Trace) -> None:
    env = make_vec(trace, envs=3)

    def play(seed: int) -> tuple[np.ndarray, list[int]]:
        obs, infos = env.reset(seed=seed)
        rng, seen, episodes = np.random.default_rng(0), [obs], infos["pool_episode"].tolist()
        for _ in range(60):
            obs, _, _, _, infos = env.step(actions_for(infos["action_mask"], rng, 0.0))
            seen.append(obs)
        return np.array(seen), episodes

    first, again = play(1), play(1)
    np.testing.assert_array_equal(first[0], again[0])
    orders = {tuple(play(seed)[1]) for seed in range(6)}
    assert len(orders) > 1, "another seed plays the pool in another order"
    assert make_vec(trace, envs=1, pool_seed=1).references[0].time_s.tolist() != env.references[0].time_s.tolist()


def test_an_environment_does_not_depend_on_its_neighbours(trace: Trace) -> None:
    seen = []
    for other in (0, ROWS - 1):
        env = make_vec(trace, envs=2)
        obs, _ = env.reset(seed=[4, 5])
        rows = [obs[0]]
        for _ in range(100):
            obs, *_ = env.step(np.array([1, other]))
            rows.append(obs[0])
        seen.append(np.array(rows))
    np.testing.assert_array_equal(*seen)


def test_the_future_does_not_show(trace: Trace) -> None:
    """As for the single environment: later sessions get longer, observations before that stay the same."""
    trace = arrange(trace, np.arange(trace.n_sessions), 30.0 * np.arange(trace.n_sessions))
    middle = 30.0 * 6
    late = trace.sessions.arrival_s[trace.steps.session] >= middle
    longer = replace(trace, steps=replace(trace.steps, output_tokens=trace.steps.output_tokens + 400 * late,
                                          tool_s=np.where(late, trace.steps.tool_s * 3, trace.steps.tool_s)))
    settled = min(settled_until(t, middle) for t in (trace, longer))
    seen = []
    for t in (trace, longer):
        env = make_vec(t, envs=1, shuffle=False, sessions=0)
        clock = EvictionStepper(env.references[0], KV, ROWS)  # plays along, to know the time
        obs, _ = env.reset(seed=0)
        rows = []
        while clock.now_s < settled and clock.n_rows:
            rows.append((obs.tobytes(), env.action_masks().tobytes()))
            obs, *_ = env.step(np.zeros(1, np.int64))
            clock.advance(0)
        seen.append(rows)
    assert len(seen[0]) > 5
    assert seen[0] == seen[1]


def test_by_hand(trace: Trace) -> None:
    check_by_hand(make_vec(trace, envs=2, autoreset_mode=AutoresetMode.DISABLED, max_decisions=3))


def test_gymnasiums_vector_wrappers_take_it(trace: Trace) -> None:
    check_wrapped(make_vec(trace, envs=2, max_decisions=5))


def test_the_buffer_is_handed_out_only_if_asked_for(trace: Trace) -> None:
    safe, fast = make_vec(trace, envs=2), make_vec(trace, envs=2, copy=False)
    for env, kept in ((safe, True), (fast, False)):
        first, _ = env.reset(seed=0)
        before = first.copy()
        second, *_ = env.step(np.zeros(2, np.int64))
        assert (first is not second) == kept
        assert np.array_equal(first, before) == kept
    np.testing.assert_array_equal(safe.action_masks(), fast.action_masks())


def test_bad_parameters(trace: Trace) -> None:
    with pytest.raises(UserError, match="num_envs"):
        make_vec(trace, envs=0)
    with pytest.raises(UserError, match="episodes"):
        make_vec(trace, episodes=0)
    with pytest.raises(UserError, match="never runs out"):
        make_vec(trace, kv_tokens=50_000_000)
    env = make_vec(trace, envs=2)
    with pytest.raises(ValueError, match="seeds"):
        env.reset(seed=[1])
    env.reset(seed=1)
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(3, np.int64))
