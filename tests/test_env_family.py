"""What every task has in common: ids, infos, states that are cloned and restored, rewards that add up, sessions by
name, texts, masks as observations, and specs that can be written down."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics

import saga_rl.env
from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import write_trace
from saga_rl.aeg.trace import Trace
from saga_rl.env import IDS
from saga_rl.env.settings import KINDS
from saga_rl.env.single import TaskEnv
from saga_rl.env.tasks import NAMED
from saga_rl.env.text import config_of, config_text
from saga_rl.env.vector import TaskVectorEnv
from saga_rl.env.wrappers import DictMask
from saga_rl.errors import UserError
from saga_rl.policies.constraints import Constraints
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile

TASKS, CLOSED = tuple(KINDS), tuple(KINDS)[1:]
PARAMS = {"seed": 3, "sessions": 8, "rate_per_min": 30.0, "max_context": 20_000}
SMALL: dict[str, dict[str, Any]] = {"eviction": {"max_rows": 5, "kv_tokens": 30_000}, "placement": {"workers": 2},
                                    "admission": {}, "scheduler": {"max_rows": 5, "kv_tokens": 30_000}}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate("webarena", PARAMS["seed"], **{k: v for k, v in PARAMS.items() if k != "seed"})


SLOW = "a100-llama3-70b-tp4"
"""Costs at which so few sessions leave something to decide."""


def options(task: str) -> dict[str, Any]:
    return {"kv_tokens": 60_000, "population": 5, **SMALL.get(task, {"max_rows": 5})}


def make(task: str, trace: Trace, **more: Any) -> TaskEnv:
    return TaskEnv(task, trace, **{"profile": SLOW, **options(task), **more})


def walk(env: Any, steps: int, rng: np.random.Generator) -> list[Any]:
    """What is seen along a random way of so many steps, or to the end."""
    seen: list[Any] = []
    for _ in range(steps):
        rows = np.flatnonzero(env.action_masks())
        obs, reward, over, cut, info = env.step(np.int64(rng.choice(rows)))
        seen.append((obs.tobytes(), reward, over, info["action_mask"].tobytes(), info["decision"], info["components"],
                     {k: v for k, v in info.items() if isinstance(v, int)}))
        if over or cut:
            break
    return seen


@pytest.mark.parametrize("task", TASKS)
def test_infos_have_the_same_keys(task: str, trace: Trace) -> None:
    env = make(task, trace)
    _, info = env.reset(seed=0)
    assert set(info) == {"action_mask", "decision", "decisions", "invalid_actions", "sessions_done",
                         "recomputed_tokens", "unasked_evictions", "components"}
    assert set(info["components"]) == {"log_tct", "recomputed_tokens", "fairness_gap_tokens", "session_s"}
    assert info["action_mask"].dtype == env.action_masks().dtype == np.int8
    assert env.action_space.contains(env.action_space.sample(mask=info["action_mask"]))
    rng, over = np.random.default_rng(0), False
    while not over:
        before = info
        _, _, over, _, info = env.step(np.int64(rng.choice(np.flatnonzero(info["action_mask"]))))
        assert info["recomputed_tokens"] - before["recomputed_tokens"] == info["components"]["recomputed_tokens"]
    assert info["sessions_done"] == trace.n_sessions and info["decision"] == ""


@pytest.mark.parametrize("task", TASKS)
def test_a_restored_state_goes_on_as_the_one_that_was_cloned(task: str, trace: Trace) -> None:
    """Twice from one moment, in another environment, and after another episode: always the same future; and other
    choices from there lead elsewhere."""
    env, other = make(task, trace), make(task, trace)
    env.reset(seed=1)
    walk(env, 25, np.random.default_rng(0))
    state, first = env.clone_state(), env._runner.slots.obs[0].copy()
    whole = walk(env, 10_000, np.random.default_rng(1))
    assert whole[-1][2]
    obs, info = env.restore_state(state)
    np.testing.assert_array_equal(obs, first)
    assert walk(env, 10_000, np.random.default_rng(1)) == whole
    env.reset(seed=2)
    for one in (env, other):
        one.restore_state(state)
        assert walk(one, 10_000, np.random.default_rng(1)) == whole
    env.restore_state(state)
    other.restore_state(state)
    assert walk(env, 40, np.random.default_rng(1)) != walk(other, 40, np.random.default_rng(3))
    assert info["decisions"] == 25


@pytest.mark.parametrize("task", TASKS)
def test_many_futures_of_one_moment_are_played_at_once(task: str, trace: Trace) -> None:
    env = TaskVectorEnv(task, 3, trace, **options(task), episodes=2, sessions=6)
    with pytest.raises(gym.error.ResetNeeded):
        env.clone_state()
    env.reset(seed=0)
    for _ in range(20):
        env.step(np.zeros(3, np.int64))
    state = env.clone_state([1])
    obs, infos = env.restore_state(state)
    np.testing.assert_array_equal(obs, np.stack([obs[1]] * 3))
    assert (infos["decisions"] == infos["decisions"][1]).all() and len(set(infos["pool_episode"])) == 1
    firsts = []
    for _ in range(2):
        env.restore_state(state)
        seen = [env.step(np.array([0, 1, 0])) for _ in range(30)]
        np.testing.assert_array_equal(*(np.array([s[0][b] for s in seen]) for b in (0, 2)))
        firsts.append(np.array([s[0] for s in seen]))
    np.testing.assert_array_equal(*firsts)
    assert (firsts[0][:, 0] != firsts[0][:, 1]).any()
    with pytest.raises(UserError, match="another vector"):
        TaskVectorEnv(task, 3, trace, **options(task), episodes=1).restore_state(state)
    with pytest.raises(UserError, match="indices"):
        env.clone_state([3])


def test_a_state_of_another_task_is_refused(trace: Trace) -> None:
    env, other = make("joint", trace), make("admission", trace)
    env.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(UserError, match="another task"):
        other.restore_state(env.clone_state())


@pytest.mark.parametrize("task", CLOSED)
@pytest.mark.parametrize("population", [0, 4])
def test_dense_rewards_sum_to_minus_all_completion_times(task: str, population: int, trace: Trace) -> None:
    env = make(task, trace, reward="dense", population=population, kv_tokens=25_000, shuffle=False)
    try:
        env.reset(seed=0)
    except UserError:
        pytest.skip("nothing to choose")
    rng, over, total, parts = np.random.default_rng(0), False, 0.0, 0.0
    while not over:
        now = env.view.now_s
        run = env.view.world.run
        live = np.isfinite(run.begin_s) & ~np.isfinite(run.done_s)
        _, reward, over, _, info = env.step(np.int64(rng.choice(np.flatnonzero(env.action_masks()))))
        assert reward <= 0 and reward == -info["components"]["session_s"]
        if info["decisions"] > 1 and env.view.now_s > now and not over:
            until = np.minimum(np.where(np.isfinite(run.done_s), run.done_s, np.inf), env.view.now_s)
            assert -reward >= (until - now)[live].sum() - 1e-6, "who lived throughout counts throughout"
        total += reward
        parts += info["components"]["session_s"]
    run = env.view.world.run
    assert total == pytest.approx(-(run.done_s - run.begin_s).sum(), rel=1e-12) and parts == -total


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_of_given_sessions(task: str, trace: Trace) -> None:
    names = trace.sessions.session_id
    env = make(task, trace)
    for ids in ([5, 2, 7, 0, 1], [names[6], names[3], names[1], names[0], names[2]]):
        env.reset(seed=0, options={"sessions": ids})
        wanted = [names[i] if isinstance(i, int) else i for i in ids]
        assert env.episode.trace.sessions.session_id == wanted
    plain = make(task, trace, shuffle=False)
    plain.reset(options={"sessions": [5, 2, 7, 0, 1]})
    assert plain.episode.trace.sessions.session_id == [names[i] for i in (0, 1, 2, 5, 7)]
    for ids, what in (([0, 0], "twice"), (["nobody"], "not in the trace"), ([99], "not in the trace"), ([], "none")):
        with pytest.raises(UserError, match=what):
            env.reset(options={"sessions": ids})
    vec = TaskVectorEnv(task, 2, trace, **options(task), episodes=2)
    vec.reset(seed=0)
    before = vec._slots.order.shape[1]
    obs, infos = vec.reset(seed=1, options={"sessions": [5, 2, 7, 0, 1]})
    np.testing.assert_array_equal(obs[0], obs[1])
    assert infos["pool_episode"].tolist() == [0, 0]
    vec.step(np.zeros(2, np.int64))
    vec.reset(seed=2)
    assert vec._slots.order.shape[1] == before


@pytest.mark.parametrize("task", TASKS)
def test_it_draws_itself_as_text(task: str, trace: Trace) -> None:
    env = make(task, trace, render_mode="ansi")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*render fps.*")
        check_env(env, skip_render_check=False)
    env.reset(seed=0)
    text = env.render()
    assert "to decide" in text and "blocks" in text and make(task, trace).render() is None
    vec = TaskVectorEnv(task, 2, trace, **options(task), episodes=1, render_mode="ansi")
    vec.reset(seed=0)
    assert len(vec.render()) == 2 and all("to decide" in t for t in vec.render())
    with pytest.raises(UserError, match="render_mode"):
        make(task, trace, render_mode="human")


def test_masks_as_observations(trace: Trace) -> None:
    env = DictMask(gym.make(IDS["joint"], trace=trace, **options("joint")))
    check_env(env.unwrapped, skip_render_check=True)
    obs, info = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    for _ in range(20):
        np.testing.assert_array_equal(obs["action_mask"], info["action_mask"])
        obs, _, _, _, info = env.step(np.flatnonzero(obs["action_mask"])[0])
        assert env.observation_space.contains(obs)


@pytest.mark.parametrize("task", TASKS)
def test_statistics_of_a_single_environment(task: str, trace: Trace) -> None:
    env = RecordEpisodeStatistics(gym.make(IDS[task], trace=trace, max_decisions=6, **options(task)))
    for _ in range(2):
        env.reset(seed=0)
        rewards = [env.step(np.int64(0)) for _ in range(6)]
        assert rewards[-1][3] and rewards[-1][4]["episode"]["l"] == 6
        assert rewards[-1][4]["episode"]["r"] == pytest.approx(sum(r[1] for r in rewards))


@pytest.mark.parametrize("task", TASKS)
def test_a_spec_can_be_written_down(task: str, trace: Trace, tmp_path: Path) -> None:
    """The environment that is made of the JSON plays the same episode, also where it was given objects."""
    path = tmp_path / "t.parquet"
    write_trace(trace, path)
    config = SimConfig(workers=2, kv_tokens=40_000, population=5, end_hint=False, expiry_s=50.0,
                       profile=load_profile("h100-llama3.1-8b-tp1"))
    rows = {} if task in ("placement", "admission") else {"max_rows": 6}
    for source in ({"trace": path}, {"generator": "webarena", "params": PARAMS}):
        env = gym.make(IDS[task], config=config, max_decisions=np.int64(9), **source, **rows)
        text = env.spec.to_json()
        again = gym.make(EnvSpec.from_json(text))
        assert again.unwrapped.settings.config == config and json.loads(text)["kwargs"]["task"] == task
        np.testing.assert_array_equal(env.reset(seed=3)[0], again.reset(seed=3)[0])
    vec = gym.make_vec(IDS[task], 2, trace=path, config=config, episodes=1, **rows)
    assert json.loads(vec.spec.to_json())["kwargs"]["num_envs"] == 2
    with pytest.raises(UserError, match="in memory"):
        gym.make(IDS[task], trace=trace, config=config).spec.to_json()


def test_configurations_as_plain_values() -> None:
    config = SimConfig(workers=3, cpu_tokens=90_000, tool_names=False, constraints=Constraints(
        service_gap_tokens=50.0, kv_floors={"*": 0.1}))
    assert config_of(json.loads(json.dumps(config_text(config)))) == config
    own = replace(config, profile=replace(load_profile("a100-llama3-70b-tp4"), base_s=0.5))
    assert config_of(json.loads(json.dumps(config_text(own)))) == own
    assert config_text(SimConfig()) == {} and config_of(None) == SimConfig()
    for given, what in (({"kv_token": 1}, "kv_tokens"), ({"profile": "a101"}, "a100"), (3, "by name"),
                        ({"constraints": {"gap": 1}}, "service_gap_tokens"), ({"workers": 0}, "workers")):
        with pytest.raises(UserError, match=what):
            config_of(given)


def test_every_setting_of_the_cluster_arrives(trace: Trace) -> None:
    """What ends are announced, tool names, expiry, tier and limits change is seen."""
    usual = make("scheduler", trace, kv_tokens=25_000)
    for more in ({"end_hint": True}, {"tool_names": False}, {"expiry_s": 5.0}, {"cpu_tokens": 100_000},
                 {"max_num_seqs": 1}, {"max_batched_tokens": 64}, {"block_tokens": 32}):
        env = make("scheduler", trace, kv_tokens=25_000, config={"workers": 2, **more})
        assert all(getattr(env.settings.config, k) == v for k, v in more.items())
        for one in (usual, env):
            one.reset(seed=0)
        seen = [walk(one, 10_000, np.random.default_rng(0)) for one in (usual, env)]
        assert seen[0] != seen[1], more
    shortcut = make("joint", trace, config=SimConfig(workers=2, kv_tokens=99_000, population=3), kv_tokens=50_000)
    assert (shortcut.settings.config.kv_tokens, shortcut.settings.config.workers) == (50_000, 2)
    assert shortcut.settings.config.population == 5, "a shortcut that is given overrides"


def test_ids() -> None:
    for task, name in IDS.items():
        spec = gym.spec(name)
        assert spec.entry_point == saga_rl.env.SINGLE and spec.vector_entry_point == saga_rl.env.VECTOR
        old = name.replace("-v0", "Vec-v0")
        for make_it in (gym.make, gym.make_vec):
            with pytest.raises(UserError, match="make_vec"):
                make_it(old)
        with pytest.raises(UserError, match="no task named"):
            gym.make(name, task=task + "s", generator="webarena")


def test_named_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert len(NAMED) == 8 and all(name in gym.registry for name in NAMED)
    env = gym.make("saga_rl/Burst-P1-v0", max_decisions=5)
    check_env(env.unwrapped, skip_render_check=True)
    given = env.unwrapped.settings
    assert given.config.workers == 1 and given.config.population == 12 and given.sessions == 48
    text = env.spec.to_json()
    np.testing.assert_array_equal(env.reset(seed=0)[0], gym.make(EnvSpec.from_json(text)).reset(seed=0)[0])
    other = gym.make("saga_rl/Burst-P1-v0", part="test").unwrapped.settings.trace.sessions
    assert not set(other.group) & set(given.trace.sessions.group)
    monkeypatch.delenv("SAGA_RL_DATA", raising=False)
    with pytest.raises(UserError, match="SAGA_RL_DATA, which is not set"):
        gym.make("saga_rl/Weka-P1-v0")
    monkeypatch.setenv("SAGA_RL_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"traces\.jsonl"):
        gym.make("saga_rl/Weka-P1-v0")
