"""Ordering, admission and joint environments: checkers, seeds, masks, rewards, no oracle, agreement with `simulate`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from vector_checks import shortest

import saga_rl.env as ids
from saga_rl.aeg.generators import generate
from saga_rl.aeg.trace import Trace
from saga_rl.env.settings import ADMIT, ORDER
from saga_rl.env.single import TaskEnv
from saga_rl.errors import UserError
from saga_rl.policies.constraints import Constraints
from saga_rl.policies.features import LEARNED_ADMISSION, LEARNED_ORDERING, OD
from saga_rl.sim.cluster import simulate
from saga_rl.sim.engine import state as st
from saga_rl.sim.stepping.closed_vector import P95_FROM

KV = 60_000
SLOW = "a100-llama3-70b-tp4"
"""Costs at which so few sessions leave something to decide."""
ALL = (ids.ORDERING_ID, ids.ADMISSION_ID, ids.JOINT_ID)
WIDTH = {ids.ORDERING_ID: ORDER, ids.ADMISSION_ID: ADMIT, ids.JOINT_ID: ORDER + ADMIT}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate("webarena", 3, sessions=8, rate_per_min=30.0, max_context=20_000)


def make_env(name: str, trace: Trace, **options: Any) -> TaskEnv:
    rows = {} if name == ids.ADMISSION_ID else {"max_rows": 6}
    env = gym.make(name, trace=trace, **{"kv_tokens": KV, "population": 5, **rows, **options}).unwrapped
    assert isinstance(env, TaskEnv)
    return env


def play(env: TaskEnv, seed: int, choose: Any = None) -> tuple[list, list[float], dict]:
    """Every (observation, mask), the rewards and the last info; random rows unless `choose(env)` says."""
    rng = np.random.default_rng(seed)
    obs, info = env.reset(seed=seed)
    seen, rewards, over = [(obs, info["action_mask"])], [], False
    while not over:
        action = choose(env) if choose else rng.choice(np.flatnonzero(info["action_mask"]))
        obs, reward, over, cut, info = env.step(np.int64(action))
        seen.append((obs, info["action_mask"]))
        rewards.append(reward)
        over = over or cut
    return seen, rewards, info


def own(env: TaskEnv) -> int:
    """The policies' own choice: the first by order if admission lets it in, else nobody."""
    return 0 if env.view.lets_in(0) else env.settings.max_rows - 1


@pytest.mark.parametrize("name", ALL)
def test_gymnasium_and_stable_baselines3_accept_it(name: str, trace: Trace) -> None:
    check_env(make_env(name, trace, max_decisions=20), skip_render_check=True)
    pytest.importorskip("stable_baselines3.common.env_checker").check_env(make_env(name, trace, max_decisions=20),
                                                                          warn=False)


@pytest.mark.parametrize("name", ALL)
def test_seeds_and_what_observations_are(name: str, trace: Trace) -> None:
    env = make_env(name, trace)
    first, again, other = play(env, 1), play(make_env(name, trace), 1), play(env, 2)
    assert first[1] == again[1]
    assert first[1] != other[1]
    for (obs, mask), (obs2, mask2) in zip(first[0], again[0], strict=True):
        np.testing.assert_array_equal(obs, obs2)
        np.testing.assert_array_equal(mask, mask2)
        assert obs.shape == env.observation_space.shape and obs.shape[1] == WIDTH[name]
        assert mask.dtype == np.int8
        rows = mask.astype(bool)
        rows[-1] &= not env.settings.kind.holds
        assert not obs[~rows].any() and np.isfinite(obs).all()
        assert obs[rows].any(axis=1).all(), "a request's row can be told from padding"
    assert all(mask.sum() > 1 for _, mask in first[0][:-1]), "moments without a choice are played on"
    assert not first[0][-1][1].any() and first[2]["sessions_done"] == trace.n_sessions
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))


def test_nobody_is_held_on_an_idle_worker(trace: Trace) -> None:
    """Holding always: whatever enters does so because nothing else runs, so one request runs at a time."""
    env = make_env(ids.JOINT_ID, trace)
    env.reset(seed=0)
    over, idle = False, 0
    while not over:
        assert env.action_masks()[-1] == (not env.view.idle)
        idle += env.view.idle
        running = env.view.world.run.w[0, st.N_RUNNING]
        assert running <= 1
        _, _, over, _, _ = env.step(np.int64(env.settings.max_rows - 1 if env.action_masks()[-1] else 0))
    assert idle > 5


@pytest.mark.parametrize("name", ALL)
def test_an_episode_adds_up(name: str, trace: Trace) -> None:
    """Components sum to the episode's figures; every step is served; rewards are the components weighed."""
    for reward in ("tct", "recomputed"):
        env = make_env(name, trace, reward=reward, shuffle=False)
        env.reset(seed=0)
        total = {"log_tct": 0.0, "recomputed_tokens": 0.0}
        before = env.view.recomputed_tokens
        over, rewards, rng = False, 0.0, np.random.default_rng(1)
        while not over:
            _, got, over, _, info = env.step(np.int64(rng.choice(np.flatnonzero(env.action_masks()))))
            rewards += got
            for key in total:
                total[key] += info["components"][key]
        run = env.view.world.run
        assert run.count[st.STEPS_DONE] == trace.n_steps
        assert total["log_tct"] == pytest.approx(np.log(run.done_s - run.begin_s).sum())
        assert total["recomputed_tokens"] == run.count[st.RECOMPUTED] - before
        assert rewards == pytest.approx(-total["log_tct"] if reward == "tct" else -total["recomputed_tokens"] / 1000)


def test_the_policys_own_choices_are_its_simulation() -> None:
    """Two sessions at a time: one request at most waits to be chosen, so one entry an iteration is no loss, and times
    are the same to the last bit. With more at once the same steps are served at other times."""
    trace = generate("swe-bench", 3, sessions=6, max_context=20_000)
    for population in (2, 5):
        env = make_env(ids.JOINT_ID, trace, population=population, shuffle=False, admission="none",
                       ordering="session-fcfs")
        most = []
        play(env, 0, lambda env, most=most: own(env) if most.append(env.view.waiting) is None else 0)
        run, most = env.view.world.run, max(most, default=0)
        result = simulate(trace, env.settings.config, env.settings.policies, slo=False)
        if population == 2:
            np.testing.assert_array_equal(run.done_s - run.begin_s, result.tct_s)
            assert env.view.recomputed_tokens == result.metrics["recomputed_tokens"]
        else:
            assert most > 1
            assert np.isfinite(run.done_s).all() and run.count[st.STEPS_DONE] == trace.n_steps


def test_the_three_agree_where_they_decide_alike(trace: Trace) -> None:
    """Order and admission of the given policies, chosen through each environment, give the same run."""
    done = []
    for name in ALL:
        env = make_env(name, trace, shuffle=False)
        play(env, 0, (lambda env: 0) if name == ids.ORDERING_ID else own)
        done.append(env.view.world.run.done_s)
    np.testing.assert_array_equal(done[0], done[1])
    np.testing.assert_array_equal(done[0], done[2])


@pytest.mark.parametrize("policies", ["lru", "saga+"])
@pytest.mark.parametrize("workers", [1, 2])
def test_iterations_that_let_nobody_in_may_be_skipped(policies: str, workers: int, trace: Trace) -> None:
    """Random rows and holding: taken in one go or singly, every row that was seen and every time is the same."""
    seen, iterations, coasted = [], [], []
    for single in (False, True):
        env = make_env(ids.JOINT_ID, trace, max_rows=5, population=8, workers=workers, policies=policies, shuffle=False,
                       config={"single_steps": single})
        env.reset(seed=0)
        view, rng, rows, over = env.view, np.random.default_rng(2), [], False
        while not over:
            rows.append((view.now_s, view.orders.tobytes(), view.admits.tobytes()))
            held = not view.idle and rng.random() < 0.5
            _, _, over, _, _ = env.step(np.int64(4 if held else rng.integers(view.n_rows)))
        run = view.world.run
        seen.append((rows, run.done_s.tobytes(), run.f.tobytes(), int(run.count[st.RECOMPUTED])))
        iterations.append(int(run.count[st.ITERATIONS]))
        coasted.append(int(run.count[st.FORWARDED]))
    assert seen[0] == seen[1] and len(seen[0][0]) > 100
    assert iterations[0] == iterations[1] and coasted[1] == 0
    assert coasted[0] > 0.7 * iterations[0], "most of them were"


def test_rows_stand_in_the_given_order(trace: Trace) -> None:
    env = make_env(ids.ORDERING_ID, trace, ordering="session-fcfs", max_rows=3)
    wide = make_env(ids.ORDERING_ID, trace, ordering="session-fcfs", max_rows=8)
    for e in (env, wide):
        e.reset(seed=0)
    beyond, over = 0, False
    while not over:
        began = wide.view.orders[:, OD.session_s]
        assert (np.diff(began) >= 0).all()
        n = env.view.n_rows
        assert n == min(env.view.waiting, 3)
        np.testing.assert_array_equal(env.view.orders, wide.view.orders[:n])
        beyond += wide.view.n_rows > 3
        _, _, over, _, _ = env.step(np.int64(n - 1))
        wide.step(np.int64(n - 1))
    assert beyond


def test_a_masked_action_is_row_0_and_counted(trace: Trace) -> None:
    env = make_env(ids.ORDERING_ID, trace)
    right = play(env, 3, lambda e: 0)
    wrong = play(env, 3, lambda e: 0 if e.action_masks().all() else e.settings.max_rows - 1)
    assert right[1] == wrong[1]
    assert right[2]["invalid_actions"] == 0 < wrong[2]["invalid_actions"]


def test_who_may_not_be_served_is_not_offered() -> None:
    """With a service gap of 0 only the tenant with least service is on offer."""
    trace = generate("burstgpt", 4, sessions=12, max_context=20_000)
    n = len(trace.tenants)
    assert n > 2
    env = make_env(ids.ORDERING_ID, trace, shuffle=False, policies="lru", reward="recomputed", fairness_weight=0.5,
                   population=8, constraints=Constraints(service_gap_tokens=0.0))
    env.reset(seed=0)
    over, fewer, gap = False, 0, 0.0
    while not over:
        run = env.view.world.run
        tenants = {int(trace.sessions.tenant[trace.steps.session[step]]) for step in env.view.requests}
        counters = run.service[0, :n, 0]
        assert all(counters[t] == counters[run.service[0, :n, 1] > 0].min() for t in tenants)
        fewer += env.view.n_rows < env.view.waiting
        _, reward, over, _, info = env.step(np.int64(0))
        c = info["components"]
        assert reward == pytest.approx(-c["recomputed_tokens"] / 1000 - 0.5 * c["fairness_gap_tokens"])
        gap += c["fairness_gap_tokens"]
    assert fewer and 0 < gap <= env.view.service_gap_tokens


def test_rewards_by_hand() -> None:
    """Each reward follows from the completion times of the sessions that ended since, and from those before."""
    trace = shortest(generate("webarena", 1, sessions=80, max_context=20_000), P95_FROM + 10)
    env = make_env(ids.JOINT_ID, trace, sessions=0, population=16, workers=2, p95_weight=3.0, shuffle=False)
    late = 0.0
    for seed in range(8):
        env.reset(seed=seed)
        run, rng, over = env.view.world.run, np.random.default_rng(seed), False
        ended, before = np.isfinite(run.done_s), []
        while not over:
            _, reward, over, _, _ = env.step(np.int64(rng.choice(np.flatnonzero(env.action_masks()))))
            new = np.flatnonzero(np.isfinite(run.done_s) & ~ended)
            logs = np.log(run.done_s[new] - run.begin_s[new])
            want = -logs.sum()
            if len(before) >= P95_FROM and len(new):
                late += (tail := np.maximum(logs - np.percentile(before, 95), 0.0).sum())
                want -= 3.0 * tail
            assert reward == pytest.approx(want, rel=1e-9, abs=1e-9)
            before += logs.tolist()
            ended[new] = True
        assert len(before) == trace.n_sessions
    assert late > 0


@pytest.mark.parametrize("name", [*ALL, ids.PLACEMENT_ID])
def test_the_future_does_not_show(name: str, trace: Trace) -> None:
    """Whatever is not finished at some moment gets longer, later tools slower, later sessions change: all observations,
    masks and rewards before it stay the same."""
    place = name == ids.PLACEMENT_ID
    env: Any = gym.make(name, trace=trace, kv_tokens=KV, population=5, shuffle=False, profile=SLOW,
                        **({"workers": 2} if place else {})).unwrapped

    def walk(env: Any, until: float = np.inf) -> tuple[list, list[float]]:
        obs, info = env.reset(seed=0)
        seen, times, over = [], [], False
        while not over and env.view.now_s < until:
            rows = np.flatnonzero(info["action_mask"])
            times.append(env.view.now_s)
            seen.append((obs.tobytes(), rows.tolist()))
            obs, reward, over, _, info = env.step(np.int64(rows[len(times) % len(rows)]))
            if env.view.now_s < until:
                seen.append(reward)
        return seen, times

    times = walk(env)[1]
    moment = times[len(times) // 3]
    run = env.view.world.run
    late = run.f[:, st.DONE_S] > moment
    assert 0 < late.sum() < len(late) and (run.begin_s > moment).any() and (run.begin_s < moment).any()
    steps = replace(trace.steps, output_tokens=trace.steps.output_tokens + 300 * late,
                    tool_s=np.where(late, 3.0 * trace.steps.tool_s + 1.0, trace.steps.tool_s))
    other: Any = gym.make(name, trace=replace(trace, steps=steps), kv_tokens=KV, population=5, shuffle=False,
                          profile=SLOW, **({"workers": 2} if place else {})).unwrapped
    first, second = walk(env, moment)[0], walk(other, moment)[0]
    assert len(first) > 20
    assert first == second
    assert walk(env) != walk(other), "later on it does show"


@pytest.mark.parametrize("name", [ids.ADMISSION_ID, ids.JOINT_ID])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_gymnasiums_vector_takes_it(name: str, mode: AutoresetMode, trace: Trace) -> None:
    vec = SyncVectorEnv([lambda: make_env(name, trace, max_decisions=4) for _ in range(2)], autoreset_mode=mode)
    _, infos = vec.reset(seed=3)
    for k in range(6):
        actions = np.array([np.flatnonzero(m)[0] if m.any() else 0 for m in infos["action_mask"]])
        _, _, _, truncated, infos = vec.step(actions)
        assert truncated.all() == (k == 3)
        assert ("final_obs" in infos) == (mode == AutoresetMode.SAME_STEP and k == 3)


def test_columns_are_those_that_learned_policies_read() -> None:
    assert len(LEARNED_ORDERING) == ORDER and len(LEARNED_ADMISSION) == ADMIT


def test_bad_parameters(trace: Trace) -> None:
    for wanted, options in (("reward", {"reward": "tokens"}), ("p95_weight", {"p95_weight": -1.0}),
                            ("max_rows", {"max_rows": 1}), ("workers", {"workers": 0}), ("fcfs", {"ordering": "fcsf"}),
                            ("KV pool", {"kv_tokens": 1_000})):
        with pytest.raises(UserError, match=wanted):
            make_env(ids.JOINT_ID, trace, **options)
    with pytest.raises(UserError, match="2 rows"):
        make_env(ids.ADMISSION_ID, trace, max_rows=3)
    with pytest.raises(UserError, match="nothing to choose"):
        make_env(ids.ORDERING_ID, trace, population=1).reset(seed=0)
