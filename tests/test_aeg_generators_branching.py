"""Branches and retries: forks and joins are as stated, and what branches share is computed once."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from saga_rl.aeg.build import StepSpec
from saga_rl.aeg.generators import generate
from saga_rl.aeg.generators.tree_of_thought import longest_path_s
from saga_rl.aeg.io import equal
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig

NAMES = ("tree-of-thought", "retry")
BRANCHES, KEEP, LEVELS = 3, 2, 4


@pytest.fixture(scope="module")
def tree() -> Trace:
    return generate("tree-of-thought", 3, sessions=80, branches=BRANCHES, keep=KEEP, levels=LEVELS)


@pytest.fixture(scope="module")
def retries() -> Trace:
    return generate("retry", 3, sessions=300)


def sessions(trace: Trace) -> list[list[tuple[int, int, int, list[int], str]]]:
    """Of each session its steps: (agent, prefix step, prefix tokens, parents, tool), numbered within it."""
    t, words = trace.steps, [*trace.tools, ""]
    rows = [(int(t.agent[i]), int(t.prefix_step[i]), int(t.prefix_tokens[i]),
             t.parents[t.parent_offsets[i]:t.parent_offsets[i + 1]].tolist(), words[t.tool[i]])
            for i in range(trace.n_steps)]
    return [rows[low:high] for low, high in pairwise(trace.session_offsets)]


def test_a_tree_forks_joins_and_dies_as_stated(tree: Trace) -> None:
    """By level: as many agents as branches of what lives; each goes on from the whole context of one of the best; all
    wait for all of the level before; the others are never seen again."""
    levels_seen = set()
    for steps in sessions(tree):
        assert steps[0][0] == 0 and steps[-1][0] == 0 and {s[0] for s in steps[1:-1]} == {
            *range(1, 1 + max(s[0] for s in steps))}
        rated, alive, at, levels = [0], [0], 1, 0
        while at < len(steps) - 1:
            levels += 1
            before, rated, forks = rated, [], []
            while at < len(steps) - 1 and steps[at][3] == before:  # an agent's part of this level
                agent, fork = steps[at][0], steps[at][1]
                forks.append(fork)
                assert steps[fork][0] == agent or agent not in {s[0] for s in steps[:at]}, "goes on, or is new"
                thoughts = 1
                while steps[at + thoughts][4]:
                    thoughts += 1
                for k in range(1, thoughts + 1):
                    assert steps[at + k][0] == agent and steps[at + k][1] == at + k - 1 and steps[at + k][3] == [
                        at + k - 1]
                rated.append(at + thoughts)
                at += thoughts + 1
            assert [forks.count(f) for f in dict.fromkeys(forks)] == [BRANCHES] * len(alive if levels == 1 else set(
                forks))
            assert len(set(forks)) == (1 if levels == 1 else min(KEEP, len(before)))
            assert set(forks) <= set(before)
            going_on = [steps[r][0] for r in set(forks) if levels > 1]
            assert {steps[r][0] for r in rated} >= set(going_on), "the best go on themselves"
            assert not {steps[r][0] for r in rated} & ({steps[r][0] for r in before} - set(going_on)), "the dead do not"
        assert steps[-1][1] in rated and steps[-1][3] == sorted({0, *rated}), "the answer waits for all, takes one"
        levels_seen.add(levels)
    assert levels_seen == {2, 3, 4}


def test_a_branch_shares_the_whole_context_that_it_goes_on_from(tree: Trace) -> None:
    t, off = tree.steps, tree.session_offsets
    inner = np.flatnonzero(t.prefix_step >= 0)
    named = off[t.session[inner]] + t.prefix_step[inner]
    assert (t.prefix_tokens[inner] == t.prompt_tokens[named] + t.output_tokens[named]).all()
    assert (t.prompt_tokens[inner] > t.prefix_tokens[inner]).all()
    assert len(inner) == tree.n_steps - tree.n_sessions


def test_failed_calls_are_called_again_and_dead_branches_left(retries: Trace) -> None:
    """Where a step does not go on from the context before it: back to the prompt of the first of three failed calls of
    one tool, which nothing goes on from afterwards; or a compacted one."""
    t, off = retries.steps, retries.session_offsets
    dead = calls = 0
    for s, steps in enumerate(sessions(retries)):
        assert [x[3] for x in steps] == [[], *([k] for k in range(len(steps) - 1))] and steps[-1][4] == ""
        calls += len(steps) - 1
        for k, (_, prefix, tokens, _, _) in enumerate(steps[1:], 1):
            if prefix == k - 1:
                assert tokens == t.prompt_tokens[off[s] + prefix] + t.output_tokens[off[s] + prefix]
            elif prefix >= 0:
                dead += 1
                assert prefix == k - 3 and len({steps[j][4] for j in range(prefix, k)}) == 1
                assert tokens == t.prompt_tokens[off[s] + prefix]
                assert not [j for j in range(k + 1, len(steps)) if prefix < steps[j][1] < k]
            else:
                assert t.prompt_tokens[off[s] + k] < t.prompt_tokens[off[s] + k - 1]
    wanted, broken = calls / (1 + .3 + .3 * .6), .3 * .6 * .6  # a call: one attempt, and those after a failure
    assert dead / wanted == pytest.approx(broken, rel=0.1)


@pytest.mark.parametrize(("params", "dead", "again"), [
    ({"fail_share": 0.0}, 0, 0), ({"fail_share": 1.0, "attempts": 1}, 1, 0),
    ({"fail_share": 1.0, "fail_again_share": 1.0, "attempts": 4}, 1, 3),
    ({"fail_share": 1.0, "fail_again_share": 0.0}, 0, 1)])
def test_extremes_of_retries(params: dict[str, float], dead: int, again: int) -> None:
    """dead: branches left, again: calls made again, of each call that is wanted."""
    trace = generate("retry", 1, sessions=20, max_context=10 ** 9, **params)
    for s, steps in enumerate(sessions(trace)):
        prompt = trace.steps.prompt_tokens[trace.session_offsets[s]:]
        left = [k for k, (_, prefix, tokens, _, _) in enumerate(steps) if prefix >= 0 and tokens == prompt[prefix]]
        wanted, rest = divmod(len(steps) - 1, 1 + again)
        assert rest == 0 and wanted >= 3 and len(left) == wanted * dead
        assert left == [(1 + again) * (k + 1) for k in range(wanted * dead)]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shared_is_computed_once_on_a_worker_with_room(name: str) -> None:
    """And every prompt token is either computed or found; without a cache all of them are computed."""
    trace = generate(name, 5, sessions=12)
    config = SimConfig(kv_tokens=4_000_000, population=4)
    roomy = simulate(trace, config, preset("lru"), slo=False)
    steps, prompt = trace.steps, int(trace.steps.prompt_tokens.sum())
    assert roomy.metrics["sessions_done"] == 12 and roomy.metrics["evictions"] == 0
    assert roomy.metrics["recomputed_tokens"] == 0
    assert roomy.metrics["prefilled_tokens"] + int(roomy.steps["cached_tokens"].sum()) == prompt
    inner = np.flatnonzero(steps.prefix_step >= 0)
    expected = np.minimum(steps.prefix_tokens, steps.prompt_tokens - 1) // 16 * 16
    partly = expected[inner] - roomy.steps["cached_tokens"][inner]
    assert ((partly == 0) | (partly == 16)).all(), "but for the block of an answer's last token, all that is shared"
    plain = simulate(trace, replace(config, prefix_caching=False), preset("lru"), slo=False)
    assert plain.metrics["prefilled_tokens"] == prompt and not plain.steps["cached_tokens"].any()
    saved = prompt - roomy.metrics["prefilled_tokens"]
    assert plain.metrics["recomputed_tokens"] == pytest.approx(saved, rel=0.002)
    assert plain.metrics["tct_mean_s"] > roomy.metrics["tct_mean_s"]


@pytest.mark.parametrize("name", NAMES)
def test_under_pressure_all_is_served_and_a_run_repeats(name: str) -> None:
    trace = generate(name, 6, sessions=24, hitl_share=0.05)
    assert equal(trace, generate(name, 6, sessions=24, hitl_share=0.05))
    assert not equal(trace, generate(name, 7, sessions=24, hitl_share=0.05))
    config = SimConfig(workers=2, kv_tokens=60_000 if name == "tree-of-thought" else 140_000, population=12)
    for policy in ("saga", "likely"):
        one, two = (simulate(trace, config, preset(policy), slo=False) for _ in range(2))
        m = one.metrics
        assert m["sessions_done"] == 24 and np.isfinite(one.steps["done_s"]).all() and m["evictions"] > 0
        first = m["prefilled_tokens"] - m["recomputed_tokens"]
        assert m["recomputed_tokens"] > 0 and first <= int(trace.steps.prompt_tokens.sum())
        for key, values in one.steps.items():
            np.testing.assert_array_equal(values, two.steps[key], err_msg=key)
        steps, off = trace.steps, trace.session_offsets
        child = np.repeat(np.arange(trace.n_steps), np.diff(steps.parent_offsets))
        parent = off[steps.session[child]] + steps.parents
        waited = np.where(steps.agent[child] == steps.agent[parent], steps.tool_s[parent] + steps.think_s[parent], 0.0)
        assert (one.steps["ready_s"][child] >= one.steps["done_s"][parent] + waited - 1e-9).all(), "a join waits"


@pytest.mark.parametrize("name", NAMES)
def test_an_environment_plays_them(name: str) -> None:
    import gymnasium as gym

    import saga_rl.env  # noqa: F401

    env = gym.make("saga_rl/Eviction-v0", generator=name, params={"seed": 1, "sessions": 24}, population=8,
                   kv_tokens=140_000, sessions=12, max_decisions=20)
    _, info = env.reset(seed=1)
    steps, over = 0, False
    while not over and steps < 20:
        _, _, ended, cut, info = env.step(int(np.flatnonzero(info["action_mask"])[0]))
        over, steps = ended or cut, steps + 1
    assert steps > 5


def test_deadlines_go_by_the_longest_path() -> None:
    """Two agents after one step of agent 0 whose tool only agent 0 waits for: 1 + (5 + 2) + 1 against 1 + 1 + 1."""
    steps = [StepSpec(16, 1, tool="t", tool_s=5.0, think_s=2.0), StepSpec(16, 1, (0,), 1), StepSpec(16, 1, (0, 1))]
    assert longest_path_s(steps, 1.0) == 1 + 7 + 1
    steps[0].tool_s = steps[0].think_s = 0.0
    assert longest_path_s(steps, 1.0) == 3
    made = generate("tree-of-thought", 2, sessions=10, deadline_per_step_s=2.0)
    plain = generate("tree-of-thought", 2, sessions=10)
    assert np.isnan(plain.sessions.deadline_s).all() and (made.sessions.deadline_s > made.sessions.arrival_s).all()


@pytest.mark.parametrize(("name", "params", "word"), [
    ("tree-of-thought", {"branches": 0}, "branches"), ("tree-of-thought", {"keep": 9}, "keep"),
    ("tree-of-thought", {"levels": 0}, "levels"), ("tree-of-thought", {"max_context": 20_000}, "max_context"),
    ("retry", {"fail_share": 1.5}, "fail_share"), ("retry", {"fail_again_share": -0.1}, "fail_again_share"),
    ("retry", {"attempts": 0}, "attempts"), ("retry", {"max_context": 5000}, "max_context"),
    ("retry", {"branches": 2}, "branches")])
def test_bad_parameters(name: str, params: dict[str, float], word: str) -> None:
    with pytest.raises(UserError, match=word):
        generate(name, 0, sessions=4, **params)
