"""Vectors of every task: Gymnasium's own vector of single environments says the same, on the same episodes and in every
mode of autoreset; seeds, neighbours, buffers, statistics, mistakes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from vector_checks import check_by_hand, check_wrapped, shortest

from saga_rl.aeg.generators import generate
from saga_rl.aeg.trace import Trace
from saga_rl.env import IDS
from saga_rl.env.episodes import resample
from saga_rl.env.settings import KINDS, Episode
from saga_rl.env.single import TaskEnv
from saga_rl.env.vector import TaskVectorEnv
from saga_rl.errors import UserError
from saga_rl.policies.constraints import Constraints
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import make_fresh
from saga_rl.sim.config import SimConfig
from saga_rl.sim.engine import state as st
from saga_rl.sim.stepping.world_memory import ALIGN, FIXED, Template, arrays

KV, ROWS, ENVS = 60_000, 5, 3
TASKS, CLOSED = tuple(KINDS), tuple(KINDS)[1:]
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate("webarena", 3, sessions=8, rate_per_min=30.0, max_context=20_000)


@pytest.fixture(scope="module")
def tenants() -> Trace:
    trace = shortest(generate("burstgpt", 4, sessions=40, max_context=20_000), 12)
    assert len(trace.tenants) > 2
    return trace


def options_for(task: str, **options: Any) -> dict[str, Any]:
    shape = {"eviction": {"max_rows": ROWS, "kv_tokens": KV // 2}, "placement": {"workers": 2}, "admission": {},
             "scheduler": {"max_rows": ROWS, "kv_tokens": KV // 2, "evict_blocks": 300}}.get(task, {"max_rows": ROWS})
    return {"kv_tokens": KV, "population": 5, **shape, **options}


def make_vec(task: str, trace: Trace, envs: int = ENVS, **options: Any) -> TaskVectorEnv:
    made = gym.make_vec(IDS[task], envs, trace=trace,
                        **{"sessions": 5, "episodes": 2, **options_for(task, **options)}).unwrapped
    assert isinstance(made, TaskVectorEnv)
    return made


class Listed(TaskEnv):
    """The single environment, on a given list of episodes, round and round."""

    def __init__(self, task: str, episodes: list[Episode], **options: Any) -> None:
        super().__init__(task, episodes[0].trace, shuffle=False, **options)
        self.listed, self.at = episodes, 0

    def reset(self, **kwargs: Any) -> Any:
        self.settings.trace = self.listed[self.at % len(self.listed)].trace
        self.at += 1
        return super().reset(**kwargs)


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


def actions_for(masks: np.ndarray, rng: np.random.Generator, invalid: float, rows: int = 0) -> np.ndarray:
    """A random row on offer for each environment, or any of `rows` with chance `invalid`."""
    offered = np.array([rng.choice(np.flatnonzero(m)) if m.any() else 0 for m in masks])
    return np.where(rng.random(len(masks)) < invalid, rng.integers(rows or masks.shape[1], size=len(masks)), offered)


@pytest.mark.parametrize("cut", [0, 13])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", TASKS)
def test_it_is_gymnasiums_vector_of_single_environments(task: str, mode: AutoresetMode, cut: int, trace: Trace) -> None:
    ours = make_vec(task, trace, sessions=0 if cut else 4, autoreset_mode=mode, max_decisions=cut)
    options = options_for(task, max_decisions=cut)
    orders = [np.random.default_rng(11 + b).permutation(len(ours.episodes)) for b in range(ENVS)]
    theirs = SyncVectorEnv([lambda o=o: Listed(task, [ours.episodes[e] for e in o], **options) for o in orders],
                           autoreset_mode=mode)
    assert theirs.single_observation_space == ours.single_observation_space
    assert theirs.action_space == ours.action_space and theirs.metadata["autoreset_mode"] == mode
    obs, infos = ours.reset(seed=11)
    their_obs, their_infos = theirs.reset(seed=11)
    rng, ended, invalid = np.random.default_rng(5), 0, 0
    for _ in range(60 if cut else 900 if task in ("scheduler", "eviction") else 400):
        np.testing.assert_array_equal(obs, their_obs)
        assert obs.dtype == np.float32 and infos["action_mask"].dtype == np.int8
        same_infos(infos, their_infos)
        assert set(infos) - set(their_infos) == {"pool_episode", "_pool_episode"}
        np.testing.assert_array_equal(ours.action_masks(), infos["action_mask"])
        actions = actions_for(infos["action_mask"], rng, 0.2, int(ours.single_action_space.n) + 1)  # one is not there
        obs, *rest, infos = ours.step(actions)
        their_obs, *their_rest, their_infos = theirs.step(actions)
        for a, b in zip(rest, their_rest, strict=True):
            np.testing.assert_array_equal(a, b)
        assert ("final_obs" in infos) == ("final_obs" in their_infos)
        ended += (rest[2] if cut else rest[1]).sum()
        invalid = max(invalid, infos["invalid_actions"].max())
    assert ended >= ENVS and invalid > 0
    theirs.close()


def test_the_price_of_unfairness_can_be_moved(tenants: Trace) -> None:
    """`rewards.fairness_weight` counts from the next step on."""
    env = make_vec("ordering", tenants, envs=1, sessions=0, policies="lru", population=8, fairness_weight=0.1,
                   constraints=Constraints(service_gap_tokens=2_000.0))
    env.reset(seed=0)
    gaps = 0.0
    for k in range(60):
        env.rewards.fairness_weight = 0.1 * k
        _, rewards, over, _, infos = env.step(np.zeros(1, np.int64))
        c = infos["components"]
        np.testing.assert_allclose(rewards, -c["log_tct"] - 0.1 * k * c["fairness_gap_tokens"], rtol=1e-12)
        gaps += c["fairness_gap_tokens"][0]
        if over:
            break
    assert gaps > 0


@pytest.mark.parametrize("task", TASKS)
def test_seeds(task: str, trace: Trace) -> None:
    env = make_vec(task, trace, episodes=3)

    def play(seed: int) -> tuple[np.ndarray, tuple[int, ...]]:
        obs, infos = env.reset(seed=seed)
        rng, seen, episodes = np.random.default_rng(0), [obs], tuple(infos["pool_episode"].tolist())
        for _ in range(30):
            obs, _, _, _, infos = env.step(actions_for(infos["action_mask"], rng, 0.0))
            seen.append(obs)
        return np.array(seen), episodes

    first, again = play(1), play(1)
    np.testing.assert_array_equal(first[0], again[0])
    assert len({play(seed)[1] for seed in range(6)}) > 1, "another seed plays the pool in another order"
    other = make_vec(task, trace, envs=1, pool_seed=1)
    assert other.episodes[0].trace.sessions.session_id != env.episodes[0].trace.sessions.session_id


@pytest.mark.parametrize("task", TASKS)
def test_an_environment_does_not_depend_on_its_neighbours(task: str, trace: Trace) -> None:
    seen = []
    for other in (0, 1):
        env = make_vec(task, trace, envs=3)
        obs, _ = env.reset(seed=[4, 5, 6])
        rows = [obs[1]]
        for _ in range(150):
            obs, *_ = env.step(np.array([other, 1, other]))
            rows.append(obs[1])
        seen.append(np.array(rows))
    np.testing.assert_array_equal(*seen)


@pytest.mark.parametrize("task", CLOSED)
def test_what_is_shared_is_not_written(task: str, trace: Trace) -> None:
    """Slots share the fixed parts of an episode, and their own memory is what they began with once they begin anew."""
    env = make_vec(task, trace, envs=2, episodes=1, profile="a100-llama3-70b-tp4")
    worlds = [env._runner.world(b) for b in range(2)]
    for name in FIXED:
        for a, b in zip(*(part if isinstance(part := getattr(w, name), tuple) else (part,) for w in worlds),
                        strict=True):
            assert a is b

    def fixed() -> list[bytes]:
        parts = [getattr(worlds[0], name) for name in FIXED]
        return [a.tobytes() for part in parts for a in (part if isinstance(part, tuple) else (part,))]

    before, image = fixed(), env.episodes[0].made.image.copy()
    _, infos = env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(150):
        _, _, _, _, infos = env.step(actions_for(infos["action_mask"], rng, 0.0))
    assert worlds[0].run.count[st.STEPS_DONE] > 0
    assert fixed() == before
    np.testing.assert_array_equal(env.episodes[0].made.image, image)


def test_a_packed_world_is_the_world(trace: Trace) -> None:
    """Values, types and layout, apart in memory; another world's arrays are not touched."""
    source = make_fresh(resample(trace, np.random.default_rng(0)), SimConfig(kv_tokens=KV, cpu_tokens=4_000),
                        preset("saga+"), 0, 0, 0)
    template = Template(source)
    packed = arrays(template.on(template.image))
    ends = 0
    for a, b in zip(packed, arrays(source), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype and a.flags.c_contiguous and a.flags.writeable and a.flags.aligned
        if a.size:
            start = a.ctypes.data - template.image.ctypes.data
            assert start >= ends and a.ctypes.data % ALIGN == 0
            ends = start + a.nbytes
    assert ends <= len(template.image)
    source.run.count[:] = 99
    assert not (template.on(template.image).run.count == 99).any()


@pytest.mark.parametrize("task", TASKS)
def test_by_hand(task: str, trace: Trace) -> None:
    check_by_hand(make_vec(task, trace, envs=2, autoreset_mode=AutoresetMode.DISABLED, max_decisions=3))


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("task", TASKS)
def test_statistics_of_episodes_are_right(task: str, mode: AutoresetMode, trace: Trace) -> None:
    check_wrapped(make_vec(task, trace, envs=2, max_decisions=5, autoreset_mode=mode))


@pytest.mark.parametrize("task", TASKS)
def test_threads_change_nothing(task: str, trace: Trace) -> None:
    seen = []
    for threads in (1, 3):
        env = make_vec(task, trace, envs=7, threads=threads)
        obs, infos = env.reset(seed=2)
        rng, rows = np.random.default_rng(0), [obs]
        for _ in range(80):
            obs, rewards, _, _, infos = env.step(actions_for(infos["action_mask"], rng, 0.1))
            rows += [obs, rewards]
        seen.append(b"".join(r.tobytes() for r in rows))
    assert seen[0] == seen[1]


def test_the_buffer_is_handed_out_only_if_asked_for(trace: Trace) -> None:
    for copy in (True, False):
        env = make_vec("joint", trace, envs=2, copy=copy)
        first, _ = env.reset(seed=0)
        before = first.copy()
        second, *_ = env.step(np.zeros(2, np.int64))
        assert (first is not second) == copy
        assert np.array_equal(first, before) == copy


def test_bad_parameters(trace: Trace) -> None:
    for wanted, options in (("num_envs", {"envs": 0}), ("episodes", {"episodes": 0}), ("reward", {"reward": "tokens"}),
                            ("max_rows", {"max_rows": 1}), ("KV pool", {"kv_tokens": 1_000}),
                            ("render_mode", {"render_mode": "human"}), ("nothing to choose", {"population": 1})):
        with pytest.raises(UserError, match=wanted):
            make_vec("joint", trace, **options)
    with pytest.raises(UserError, match="2 rows"):
        make_vec("admission", trace, max_rows=3)
    with pytest.raises(UserError, match="at least 2"):
        make_vec("placement", trace, workers=1)
    with pytest.raises(UserError, match="never runs out"):
        make_vec("eviction", trace, kv_tokens=50_000_000)
    env = make_vec("placement", trace, envs=2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="seeds"):
        env.reset(seed=[1])
    env.reset(seed=1)
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(3, np.int64))
