"""The environment over all decisions of a scheduler: checkers, seeds, what is offered, conservation, no oracle, and
where it is `simulate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from test_sim_cluster import _check_world

import saga_rl.env as ids
from saga_rl.aeg.generators import generate
from saga_rl.aeg.trace import Trace
from saga_rl.env.settings import ADMIT, BOUND, ORDER, check_eviction
from saga_rl.env.settings import EVICT as EVICTION
from saga_rl.env.settings import PLACE as PLACEMENT
from saga_rl.env.single import TaskEnv
from saga_rl.errors import UserError
from saga_rl.policies.base import PolicySet
from saga_rl.policies.constraints import Constraints
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cluster import CHOOSE, EVICT, PLACE, SimResult, simulate
from saga_rl.sim.engine import state as st
from saga_rl.sim.stepping.closed_rows import KINDS
from saga_rl.sim.stepping.closed_view import ClosedView

KV, ROWS = 30_000, 6
WIDTHS = {"placement": PLACEMENT, "queue": ORDER + ADMIT, "eviction": EVICTION}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate("webarena", 3, sessions=8, rate_per_min=30.0, max_context=20_000)


def make_env(trace: Trace, **options: Any) -> TaskEnv:
    env = gym.make(ids.SCHEDULER_ID, trace=trace, **{"kv_tokens": KV, "population": 5, "max_rows": ROWS, **options})
    assert isinstance(env.unwrapped, TaskEnv)
    return env.unwrapped


def play(env: TaskEnv, seed: int, choose: Any = None, look: Callable[[], None] = lambda: None,
         ) -> tuple[list, list[float], dict]:
    """Every (observation, mask, decision), the rewards and the last info; random rows unless `choose(env)` says."""
    rng = np.random.default_rng(seed)
    obs, info = env.reset(seed=seed)
    seen, rewards, over = [(obs, info["action_mask"], info["decision"])], [], False
    while not over:
        look()
        action = choose(env) if choose else rng.choice(np.flatnonzero(info["action_mask"]))
        obs, reward, over, cut, info = env.step(np.int64(action))
        seen.append((obs, info["action_mask"], info["decision"]))
        rewards.append(reward)
        over = over or cut
    return seen, rewards, info


def test_gymnasium_and_stable_baselines3_accept_it(trace: Trace) -> None:
    check_env(make_env(trace, max_decisions=20), skip_render_check=True)
    pytest.importorskip("stable_baselines3.common.env_checker").check_env(make_env(trace, max_decisions=20), warn=False)


def test_seeds_and_what_observations_are(trace: Trace) -> None:
    env = make_env(trace)
    first, again, other = play(env, 1), play(make_env(trace), 1), play(env, 2)
    assert first[1] == again[1] != other[1]
    times = Counter(decision for *_, decision in first[0])
    assert times["placement"] > 20 and times["queue"] > 20 and times["eviction"] > 100
    held = 0
    for (obs, mask, decision), (obs2, mask2, _) in zip(first[0], again[0], strict=True):
        np.testing.assert_array_equal(obs, obs2)
        np.testing.assert_array_equal(mask, mask2)
        assert obs.shape == env.observation_space.shape == (ROWS, KINDS + max(WIDTHS.values()))
        mask, mask2 = mask.astype(bool), mask2.astype(bool)
        assert not obs[~mask].any() and np.isfinite(obs).all()
        if not decision:
            continue
        assert mask.sum() > 1, "moments without a choice are played on"
        assert (obs[mask, :KINDS] == np.eye(KINDS)[list(WIDTHS).index(decision)]).all()
        assert not obs[:, KINDS + WIDTHS[decision]:].any()
        assert decision == "placement" or np.abs(obs).max() <= BOUND
        assert decision != "placement" or mask.tolist() == [True, True] + (ROWS - 2) * [False]
        rows = mask.copy()
        if decision == "queue":
            held += mask[-1]
            rows[-1] = False
            assert not obs[-1, KINDS:].any(), "nobody has no columns"
        assert obs[rows, KINDS:].any(axis=1).all(), "a row can be told from padding"
    assert held
    assert first[0][-1][2] == "" and not first[0][-1][1].any() and first[2]["sessions_done"] == trace.n_sessions
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))


@pytest.mark.parametrize("blocks", [1, 64])
def test_an_episode_adds_up(blocks: int, trace: Trace) -> None:
    """Blocks and requests are conserved at every decision; components sum to the episode's figures; every step is
    served; rewards are the components weighed."""
    for reward in ("tct", "recomputed"):
        env = make_env(trace, reward=reward, shuffle=False, evict_blocks=blocks)
        env.reset(seed=0)
        total = {"log_tct": 0.0, "recomputed_tokens": 0.0}
        before = env.view.recomputed_tokens
        over, rewards, rng = False, 0.0, np.random.default_rng(1)
        while not over:
            _check_world(env.view.world)
            _, got, over, _, info = env.step(np.int64(rng.choice(np.flatnonzero(env.action_masks()))))
            rewards += got
            for key in total:
                total[key] += info["components"][key]
        world = env.view.world
        _check_world(world)
        run = world.run
        assert run.count[st.STEPS_DONE] == trace.n_steps
        assert total["log_tct"] == pytest.approx(np.log(run.done_s - run.begin_s).sum())
        assert total["recomputed_tokens"] == run.count[st.RECOMPUTED] - before > 0
        assert rewards == pytest.approx(-total["log_tct"] if reward == "tct" else -total["recomputed_tokens"] / 1000)
        assert info["unasked_evictions"] + run.count[st.ASKED_BLOCKS] == world.pool.n[:, kv.EVICTED].sum()


def test_who_is_offered_can_go_and_loses_what_is_wanted(trace: Trace) -> None:
    """Candidates hold idle blocks on which nothing depends; they stand in the order of their release. What the request
    that was let in finds cached is not among them. Tail blocks go, as many as are wanted, or `evict_blocks` if those
    are more; more candidates follow when one had too few."""
    for blocks in (1, 100):
        env = make_env(trace, evict_blocks=blocks)
        env.reset(seed=4)
        rng, over, seen = np.random.default_rng(0), False, Counter()
        while not over:
            row = rng.choice(np.flatnonzero(env.action_masks()))
            view, world = env.view, env.view.world
            w, pool, run = view.worker, world.pool, world.run
            if view.decision != EVICT:
                _, _, over, _, _ = env.step(np.int64(row))
                continue
            ids_, offer = pool.meta[kv.IDS], view.candidates.copy()
            rows = w * ids_ + offer
            assert (pool.res[rows] > 0).all() and (pool.ref[rows] == 0).all() and (pool.kids[rows] == 0).all()
            assert (np.diff(pool.seq[rows]) > 0).all()
            free, wanted, asked = pool.n[w, kv.FREE], run.count[st.WANTED], run.count[st.ASKED_BLOCKS]
            assert free < wanted <= free + kv.evictable(pool, w)
            now, spared, step = view.now_s, run.count[st.SPARED], run.w[w, st.URGENT] - 1
            if spared >= 0:
                seen["spared"] += 1
                assert spared not in offer
                prefix = kv.resident_prefix(world.tree, pool, w, step)
            had = pool.res[rows[row]]
            _, _, over, _, _ = env.step(np.int64(row))
            took = run.count[st.ASKED_BLOCKS] - asked
            assert took >= min(had, max(wanted - free, blocks))
            if (view.decision, view.worker, view.now_s, run.count[st.WANTED]) == (EVICT, w, now, wanted):
                seen["again"] += 1
                if spared >= 0:
                    assert kv.resident_prefix(world.tree, pool, w, step) == prefix, "its cached blocks stay"
        assert seen["spared"] > 20 and seen["again"] > 5


def own_row(view: ClosedView, policies: PolicySet, last: int) -> int:
    """What the policies would do; `last` is the row of nobody."""
    if view.decision == CHOOSE:
        return 0 if view.lets_in(0) else last
    policy, rows = (policies.eviction, view.victims) if view.decision == EVICT else (policies.placement, view.places)
    scratch = np.zeros(max(policy.scratch, 1))
    scores = [policy.score(row.copy(), policy.params, scratch) for row in rows]
    if view.decision == PLACE:
        homed = view.world.run.w[:, st.HOMED]
        return min(range(len(scores)), key=lambda w: (-scores[w], homed[w]))
    return int(np.argmax(scores))


def by_policies(trace: Trace, eviction: str, **cluster: int) -> tuple[ClosedView, SimResult]:
    policies, seen = replace(preset("lru"), eviction=make("eviction", eviction)), Counter()
    config = {"profile": "a100-llama3-70b-tp4", **cluster}
    env = TaskEnv("scheduler", trace, config=config, max_rows=400, evict_blocks=1, shuffle=False)
    env.settings.policies = policies

    def choose(env: TaskEnv) -> int:
        seen[env.view.decision] += 1
        return own_row(env.view, policies, 399)

    play(env, 0, choose)
    assert seen[EVICT] > 100 and seen[CHOOSE] > 20 and (seen[PLACE] > 50) == (env.settings.config.workers > 1)
    return env.view, simulate(trace, env.settings.config, policies, slo=False)


@pytest.mark.parametrize(("workers", "population", "kv_tokens", "preempted"), [
    (1, 2, 22_000, True), (1, 2, 30_000, False), (2, 3, 22_000, True)])
def test_the_policies_own_choices_are_their_simulation(workers: int, population: int, kv_tokens: int,
                                                       preempted: bool) -> None:
    """Under LRU times are the same to the last bit, on several workers and with preemption too, where no more than one
    request would enter an iteration."""
    trace = generate("swe-bench", 3, sessions=6, max_context=20_000)
    view, result = by_policies(trace, "lru", kv_tokens=kv_tokens, population=population, workers=workers)
    run = view.world.run
    np.testing.assert_array_equal(run.done_s - run.begin_s, result.tct_s)
    assert view.recomputed_tokens == result.metrics["recomputed_tokens"] > 0
    assert (run.count[st.PREEMPTED] > 0) == preempted
    assert preempted or run.count[st.ASKED_BLOCKS] == view.world.pool.n[:, kv.EVICTED].sum()


@pytest.mark.parametrize("eviction", ["wa-lru", "youngest"])
def test_other_policies_choices_come_close(eviction: str) -> None:
    """Their rows differ a little: they show the pool before the iteration, not within it."""
    trace = generate("webarena", 3, sessions=6, max_context=20_000)
    view, result = by_policies(trace, eviction, kv_tokens=30_000, population=2, workers=1)
    run = view.world.run
    np.testing.assert_allclose(run.done_s - run.begin_s, result.tct_s, rtol=0.02)


def test_floors_leave_evictions_to_the_policy() -> None:
    trace = generate("burstgpt", 4, sessions=12, max_context=20_000)
    free = {"trace": trace, "policies": "lru", "population": 8, "shuffle": False, "workers": 1}
    seen, _, info = play(make_env(**free), 0)
    assert {decision for *_, decision in seen} == {"queue", "eviction", ""} and info["unasked_evictions"] == 0
    kept = Constraints(kv_floors={trace.tenants[0]: 0.2})
    seen, _, info = play(make_env(**free, constraints=kept), 0)
    assert {decision for *_, decision in seen} == {"queue", ""} and info["unasked_evictions"] > 0


def test_a_masked_action_is_row_0_and_counted(trace: Trace) -> None:
    env = make_env(trace, max_rows=40)
    right = play(env, 3, lambda e: 0)
    wrong = play(env, 3, lambda e: 38)
    assert right[1] == wrong[1]
    assert right[2]["invalid_actions"] == 0 < wrong[2]["invalid_actions"] == wrong[2]["decisions"]


def test_the_future_does_not_show(trace: Trace) -> None:
    """Whatever is not finished at some moment gets longer, later tools slower, later sessions change: all observations,
    masks and rewards before it stay the same."""
    def walk(trace: Trace, until: float = np.inf) -> tuple[list, list[float], Any]:
        env = make_env(trace, shuffle=False)
        obs, info = env.reset(seed=0)
        seen, times, over = [], [], False
        while not over and env.view.now_s < until:
            rows = np.flatnonzero(info["action_mask"])
            times.append(env.view.now_s)
            seen.append((obs.tobytes(), rows.tolist(), info["decision"]))
            obs, reward, over, _, info = env.step(np.int64(rows[len(times) % len(rows)]))
            if env.view.now_s < until:
                seen.append(reward)
        return seen, times, env.view.world.run

    whole, times, run = walk(trace)
    moment = times[len(times) // 3]
    late = run.f[:, st.DONE_S] > moment
    assert 0 < late.sum() < len(late) and (run.begin_s > moment).any() and (run.begin_s < moment).any()
    steps = replace(trace.steps, output_tokens=trace.steps.output_tokens + 300 * late,
                    tool_s=np.where(late, 3.0 * trace.steps.tool_s + 1.0, trace.steps.tool_s))
    changed = replace(trace, steps=steps)
    first, second = walk(trace, moment)[0], walk(changed, moment)[0]
    assert {part[2] for part in first if isinstance(part, tuple)} == set(WIDTHS)
    assert first == second
    assert whole != walk(changed)[0], "later on it does show"


def test_bad_parameters(trace: Trace) -> None:
    for wanted, options in (("reward", {"reward": "tokens"}), ("max_rows", {"max_rows": 2}),
                            ("max_rows", {"workers": ROWS + 1}), ("workers", {"workers": 0}),
                            ("evict_blocks", {"evict_blocks": 0}), ("KV pool", {"kv_tokens": 1_000})):
        with pytest.raises(UserError, match=wanted):
            make_env(trace, **options)
    for name in ("wa-lru-literal", "clairvoyant", "belady"):
        with pytest.raises(UserError, match="the agent evicts"):
            check_eviction(make("eviction", name))
    with pytest.raises(UserError, match="nothing to choose"):
        make_env(trace, population=1, workers=1, kv_tokens=2_000_000).reset(seed=0)
    with pytest.raises(UserError, match="decides between iterations"):
        make_env(trace, config={"async_scheduling": True})
    with pytest.raises(UserError, match="kv_tokens"):
        make_env(trace, config={"kv_token": 3})
