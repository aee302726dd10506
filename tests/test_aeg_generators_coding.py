"""Coding agents: sub-agents are chains of their own, the caller waits for them, and the two kinds are what they say."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from saga_rl.aeg.generators import generate
from saga_rl.aeg.generators.coding import MOST_AT_ONCE, SPAWN
from saga_rl.aeg.io import equal
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate("coding", 3, sessions=150)


def parents(trace: Trace, i: int) -> np.ndarray:
    t = trace.steps
    return t.parents[t.parent_offsets[i]:t.parent_offsets[i + 1]] + trace.session_offsets[t.session[i]]


def test_every_sub_agent_is_started_by_a_call_and_is_waited_for_or_runs_on(trace: Trace) -> None:
    t = trace.steps
    spawn = trace.tools.index(SPAWN)
    waited, background = 0, 0
    for low, high in pairwise(trace.session_offsets):
        rows = np.arange(low, high)
        main = rows[t.agent[rows] == 0]
        assert (t.tool[main[:-1]] >= 0).all() and t.tool[main[-1]] == -1, "only the answer calls no tool"
        for a in range(1, int(t.agent[rows].max()) + 1):
            chain = rows[t.agent[rows] == a]
            caller = parents(trace, chain[0])
            assert len(caller) == 1 and t.agent[caller[0]] == 0 and t.tool[caller[0]] == spawn
            assert all(list(parents(trace, i)) == [p] for p, i in pairwise(chain))
            assert t.prefix_step[chain[0]] == -1
            assert trace.shared_prefixes[t.shared_prefix[chain[0]]] == "coding-sub/system"
            after = main[np.searchsorted(main, caller[0], side="right")]
            joined = chain[-1] in parents(trace, after)
            waited, background = waited + joined, background + (not joined)
        calls = main[t.tool[main] == spawn]
        for k in calls:
            started = [i for i in rows if t.agent[i] > 0 and list(parents(trace, i)) == [k]]
            assert 1 <= len(started) <= MOST_AT_ONCE
    assert waited > 100 and 0.05 < background / (waited + background) < 0.16


def test_attended_sessions_pause_for_humans_and_others_do_not(trace: Trace) -> None:
    t = trace.steps
    kind = np.array(trace.agent_types)[trace.sessions.agent_type][t.session]
    attended = kind == "coding-attended"
    assert (t.think_s[~attended] == 0).all() and (t.think_s[t.agent > 0] == 0).all()
    main = attended & (t.agent == 0)
    assert (t.think_s[main] > 0).mean() == pytest.approx(0.1, abs=0.02)
    paused = t.think_s[t.think_s > 0]
    assert paused.min() >= 3 and paused.max() <= 3600 and np.median(paused) == pytest.approx(40, rel=0.3)
    tools = t.tool_s[t.tool != trace.tools.index(SPAWN)]
    theirs = attended[t.tool != trace.tools.index(SPAWN)]
    assert np.median(tools[theirs]) > 50 * np.median(tools[~theirs])
    assert (np.array(trace.agent_types)[trace.sessions.agent_type] == "coding-attended").mean() == pytest.approx(
        0.5, abs=0.12)
    assert set(generate("coding", 1, sessions=20, unattended_share=1.0).agent_types) == {"coding-unattended"}


def test_a_seed_gives_one_trace_and_contexts_stay_within_their_limit(trace: Trace) -> None:
    assert equal(trace, generate("coding", 3, sessions=150))
    assert not equal(trace, generate("coding", 4, sessions=150))
    small = generate("coding", 3, sessions=40, max_context=48_000)
    assert (small.steps.prompt_tokens + small.steps.output_tokens).max() <= 48_000


def test_the_simulator_plays_it_to_its_end() -> None:
    trace = generate("coding", 5, sessions=12)
    result = simulate(trace, SimConfig(workers=2, kv_tokens=300_000, population=8, end_hint=False), preset("likely"))
    assert result.metrics["sessions_done"] == 12 and np.isfinite(result.steps["done_s"]).all()


@pytest.mark.parametrize(("params", "word"), [({"unattended_share": 1.5}, "unattended_share"),
                                              ({"max_context": 10_000}, "max_context"), ({"phases": 2}, "phases")])
def test_bad_parameters(params: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        generate("coding", 0, sessions=4, **params)
