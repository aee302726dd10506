"""The native vectors of the closed-loop environments against Gymnasium's own vector of single ones, on the same
episodes: every array."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from vector_checks import check_by_hand, check_wrapped

import saga_rl.env as ids
from saga_rl.aeg.generators import generate
from saga_rl.aeg.trace import Trace
from saga_rl.env.closed_vector import ClosedVectorEnv
from saga_rl.env.episodes import arrange, resample
from saga_rl.env.rewards import P95_FROM
from saga_rl.errors import UserError
from saga_rl.policies.constraints import Constraints
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import make_fresh
from saga_rl.sim.config import SimConfig
from saga_rl.sim.engine import state as st
from saga_rl.sim.stepping.world_memory import ALIGN, FIXED, Template, arrays

KV, ROWS, ENVS = 60_000, 5, 3
KINDS = (ids.PLACEMENT_VEC_ID, ids.ORDERING_VEC_ID, ids.ADMISSION_VEC_ID, ids.JOINT_VEC_ID, ids.SCHEDULER_VEC_ID)
QUEUES = KINDS[1:]
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate("webarena", 3, sessions=8, rate_per_min=30.0, max_context=20_000)


def shortest(trace: Trace, n: int) -> Trace:
    """The n sessions with the fewest steps."""
    rows = np.argsort(np.diff(trace.session_offsets), kind="stable")[:n]
    return arrange(trace, np.sort(rows), np.arange(n, dtype=float))


@pytest.fixture(scope="module")
def tenants() -> Trace:
    trace = shortest(generate("burstgpt", 4, sessions=40, max_context=20_000), 12)
    assert len(trace.tenants) > 2
    return trace


def options_for(kind: str, **options: Any) -> dict[str, Any]:
    shape = {ids.PLACEMENT_VEC_ID: {"workers": 2}, ids.ADMISSION_VEC_ID: {},
             ids.SCHEDULER_VEC_ID: {"max_rows": ROWS, "kv_tokens": KV // 2, "evict_blocks": 300}}.get(
                 kind, {"max_rows": ROWS})
    return {"kv_tokens": KV, "population": 5, **shape, **options}


def make_vec(kind: str, trace: Trace, envs: int = ENVS, **options: Any) -> ClosedVectorEnv:
    made = gym.make_vec(kind, envs, vectorization_mode="vector_entry_point", trace=trace,
                        **{"sessions": 5, "episodes": 2, **options_for(kind, **options)})
    assert isinstance(made.unwrapped, ClosedVectorEnv)
    return made.unwrapped


def listed(cls: Any, episodes: list[Trace], **options: Any) -> gym.Env:
    """The single environment, on a given list of episodes, round and round."""

    class Listed(cls):
        at = 0

        def reset(self, **kwargs: Any) -> Any:
            self.trace = episodes[self.at % len(episodes)]
            self.at += 1
            return super().reset(**kwargs)

    env: gym.Env = Listed(episodes[0], shuffle=False, **options)
    return env


def close(a: Any, b: Any, key: str) -> None:
    """Equal; sums of logarithms but for the last bits, as numba's and NumPy's logarithms differ there."""
    if np.asarray(b).dtype.kind == "f" and key in ("log_tct", "reward"):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=key)
    else:
        np.testing.assert_array_equal(a, b, err_msg=key)


def same_infos(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key, value in theirs.items():
        mask = theirs[f"_{key}"] if not key.startswith("_") else slice(None)
        if isinstance(value, dict):
            same_infos(ours[key], value)
        elif value.dtype == object:
            for a, b in zip(ours[key], value, strict=True):
                np.testing.assert_array_equal(a, b)
        else:
            close(ours[key][mask], value[mask], key)


def actions_for(masks: np.ndarray, rng: np.random.Generator, invalid: float, rows: int = 0) -> np.ndarray:
    """A random row on offer for each environment, or any of `rows` with chance `invalid`."""
    offered = np.array([rng.choice(np.flatnonzero(m)) if m.any() else 0 for m in masks])
    return np.where(rng.random(len(masks)) < invalid, rng.integers(rows or masks.shape[1], size=len(masks)), offered)


def side_by_side(kind: str, trace: Trace, mode: AutoresetMode, steps: int, **options: Any) -> dict[str, Any]:
    """Step both with the same actions and compare all that they say; the sums of what was seen. Thrice the steps where
    evictions are among them, so that episodes end."""
    steps *= 1 + 2 * (kind == ids.SCHEDULER_VEC_ID and "max_decisions" not in options)
    ours = make_vec(kind, trace, autoreset_mode=mode, **options)
    options = {k: v for k, v in options_for(kind, **options).items() if k not in ("sessions", "episodes")}
    n = len(ours.episodes)
    orders = [np.random.default_rng(11 + b).permutation(n) for b in range(ENVS)]
    theirs = SyncVectorEnv([lambda o=o: listed(ours.single, [ours.episodes[e] for e in o], **options) for o in orders],
                           autoreset_mode=mode)
    assert theirs.single_observation_space == ours.single_observation_space
    assert theirs.action_space == ours.action_space and theirs.metadata["autoreset_mode"] == mode
    obs, infos = ours.reset(seed=11)
    their_obs, their_infos = theirs.reset(seed=11)
    rng, seen = np.random.default_rng(5), {"ended": 0, "cut": 0, "invalid": 0, "reward": 0.0, "gap": 0.0, "beyond": 0.0,
                                            "rows": 0}
    for _ in range(steps):
        np.testing.assert_array_equal(obs, their_obs)
        assert obs.dtype == np.float32
        same_infos(infos, their_infos)
        np.testing.assert_array_equal(ours.action_masks(), infos["action_mask"])
        n = ours.single_action_space.n + (kind in QUEUES)  # one that does not exist among them
        actions = actions_for(infos["action_mask"], rng, 0.2, int(n))
        obs, rewards, terminated, truncated, infos = ours.step(actions)
        their_obs, their_rewards, their_terminated, their_truncated, their_infos = theirs.step(actions)
        close(rewards, their_rewards, "reward")
        np.testing.assert_array_equal(terminated, their_terminated)
        np.testing.assert_array_equal(truncated, their_truncated)
        assert ("final_obs" in infos) == ("final_obs" in their_infos)
        seen["rows"] += obs.any(axis=2).sum()
        seen["ended"] += terminated.sum()
        seen["cut"] += truncated.sum()
        seen["reward"] += np.abs(rewards).sum()
        if kind in QUEUES:
            seen["invalid"] = max(seen["invalid"], infos["invalid_actions"].max())
            seen["beyond"] += np.abs(rewards + infos["components"]["log_tct"]).sum()
            seen["gap"] += infos["components"]["fairness_gap_tokens"].sum()
    theirs.close()
    return seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_gymnasiums_vector_of_single_environments(kind: str, mode: AutoresetMode, trace: Trace) -> None:
    seen = side_by_side(kind, trace, mode, 600, sessions=4)
    assert seen["ended"] > ENVS, "slots were used again"
    assert seen["rows"] > 300
    assert (seen["reward"] > 0 and seen["invalid"] > 0) or kind == ids.PLACEMENT_VEC_ID


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_episodes_can_be_cut(kind: str, mode: AutoresetMode, trace: Trace) -> None:
    seen = side_by_side(kind, trace, mode, 60, max_decisions=13)
    assert seen["cut"] > ENVS


@pytest.mark.parametrize("kind", QUEUES)
def test_it_is_so_with_tenants_a_service_gap_and_a_price_of_unfairness(kind: str, tenants: Trace) -> None:
    seen = side_by_side(kind, tenants, MODES[0], 250, sessions=0, policies="lru", reward="recomputed", population=8,
                        episodes=1, fairness_weight=0.5, constraints=Constraints(service_gap_tokens=2_000.0))
    assert seen["gap"] > 0 and seen["ended"] > 0


@pytest.mark.parametrize("kind", QUEUES)
def test_it_is_so_with_a_price_of_late_sessions_on_several_workers(kind: str) -> None:
    trace = shortest(generate("webarena", 1, sessions=80, max_context=20_000), P95_FROM + 10)
    seen = side_by_side(kind, trace, MODES[1], 700, p95_weight=3.0, sessions=0, population=16, workers=2)
    assert seen["beyond"] > 0.1, "some were late"


@pytest.mark.parametrize("policies", ["lru", "saga", "likely"])
def test_it_is_so_under_other_policies(policies: str, trace: Trace) -> None:
    for kind in (ids.PLACEMENT_VEC_ID, ids.ORDERING_VEC_ID):
        assert side_by_side(kind, trace, MODES[0], 120, policies=policies)["reward"] > 0


def test_the_price_of_unfairness_can_be_moved(tenants: Trace) -> None:
    """`rewards.fairness_weight` counts from the next step on, as in the single environment."""
    env = make_vec(ids.ORDERING_VEC_ID, tenants, envs=1, sessions=0, policies="lru", population=8, fairness_weight=0.1)
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


@pytest.mark.parametrize("kind", KINDS)
def test_seeds(kind: str, trace: Trace) -> None:
    env = make_vec(kind, trace, episodes=3)

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
    other = make_vec(kind, trace, envs=1, pool_seed=1)
    assert other.episodes[0].sessions.session_id != env.episodes[0].sessions.session_id


@pytest.mark.parametrize("kind", KINDS)
def test_an_environment_does_not_depend_on_its_neighbours(kind: str, trace: Trace) -> None:
    seen = []
    for other in (0, 1):
        env = make_vec(kind, trace, envs=3)
        obs, _ = env.reset(seed=[4, 5, 6])
        rows = [obs[1]]
        for _ in range(150):
            obs, *_ = env.step(np.array([other, 1, other]))
            rows.append(obs[1])
        seen.append(np.array(rows))
    np.testing.assert_array_equal(*seen)


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_does_not_show(kind: str, trace: Trace) -> None:
    """What is not finished at some moment gets longer: what was seen before it stays the same."""
    env = make_vec(kind, trace, envs=1, shuffle=False, sessions=0)

    def walk(env: ClosedVectorEnv, until: float = np.inf) -> tuple[list, list[float]]:
        run = env._fleet._kept[0][0].run
        obs, infos = env.reset(seed=0)
        seen, times, over = [], [], np.zeros(1, bool)
        while not over[0] and run.total[st.NOW] < until:
            rows = np.flatnonzero(infos["action_mask"][0])
            times.append(float(run.total[st.NOW]))
            seen.append((obs.tobytes(), rows.tolist()))
            obs, reward, over, _, infos = env.step(np.array([rows[len(times) % len(rows)]]))
            if run.total[st.NOW] < until:
                seen.append(reward.tobytes())
        return seen, times

    times = walk(env)[1]
    moment = times[len(times) // 3]
    late = env._fleet._kept[0][0].run.f[:, st.DONE_S] > moment
    assert 0 < late.sum() < len(late)
    steps = replace(trace.steps, output_tokens=trace.steps.output_tokens + 300 * late,
                    tool_s=np.where(late, 3.0 * trace.steps.tool_s + 1.0, trace.steps.tool_s))
    other = make_vec(kind, replace(trace, steps=steps), envs=1, shuffle=False, sessions=0)
    first, second = walk(env, moment)[0], walk(other, moment)[0]
    assert len(first) > 20
    assert first == second
    assert walk(env)[0] != walk(other)[0], "later on it does show"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shared_is_not_written(kind: str, trace: Trace) -> None:
    """Slots share the fixed parts of an episode, and their own memory is what they began with once they begin anew."""
    env = make_vec(kind, trace, envs=2, episodes=1)
    worlds = env._fleet._kept[0]
    for name in FIXED:
        for a, b in zip(*(part if isinstance(part := getattr(w, name), tuple) else (part,) for w in worlds),
                        strict=True):
            assert a is b

    def fixed() -> list[bytes]:
        parts = [getattr(worlds[0], name) for name in FIXED]
        return [a.tobytes() for part in parts for a in (part if isinstance(part, tuple) else (part,))]

    before, image = fixed(), env._fleet._kept[1][0].image.copy()
    _, infos = env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(150):
        _, _, _, _, infos = env.step(actions_for(infos["action_mask"], rng, 0.0))
    assert worlds[0].run.count[st.STEPS_DONE] > 0
    assert fixed() == before
    np.testing.assert_array_equal(env._fleet._kept[1][0].image, image)


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


@pytest.mark.parametrize("kind", (ids.PLACEMENT_VEC_ID, ids.JOINT_VEC_ID))
def test_by_hand(kind: str, trace: Trace) -> None:
    check_by_hand(make_vec(kind, trace, envs=2, autoreset_mode=AutoresetMode.DISABLED, max_decisions=3))


@pytest.mark.parametrize("kind", KINDS)
def test_gymnasiums_vector_wrappers_take_it(kind: str, trace: Trace) -> None:
    check_wrapped(make_vec(kind, trace, envs=2, max_decisions=5))


def test_the_buffer_is_handed_out_only_if_asked_for(trace: Trace) -> None:
    for copy in (True, False):
        env = make_vec(ids.JOINT_VEC_ID, trace, envs=2, copy=copy)
        first, _ = env.reset(seed=0)
        before = first.copy()
        second, *_ = env.step(np.zeros(2, np.int64))
        assert (first is not second) == copy
        assert np.array_equal(first, before) == copy


def test_bad_parameters(trace: Trace) -> None:
    joint = ids.JOINT_VEC_ID
    for wanted, options in (("num_envs", {"envs": 0}), ("episodes", {"episodes": 0}), ("reward", {"reward": "tokens"}),
                            ("max_rows", {"max_rows": 1}), ("KV pool", {"kv_tokens": 1_000}),
                            ("nothing to choose", {"population": 1})):
        with pytest.raises(UserError, match=wanted):
            make_vec(joint, trace, **options)
    with pytest.raises(UserError, match="2 rows"):
        make_vec(ids.ADMISSION_VEC_ID, trace, max_rows=3)
    with pytest.raises(UserError, match="at least 2"):
        make_vec(ids.PLACEMENT_VEC_ID, trace, workers=1)
    env = make_vec(ids.PLACEMENT_VEC_ID, trace, envs=2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.int64))
    env.reset(seed=1)
    with pytest.raises(ValueError, match="worker 2"):
        env.step(np.array([0, 2]))
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros(3, np.int64))
