"""Arranging sessions into episodes: valid, nothing lost, the load kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.aeg.generators import generate
from saga_rl.aeg.trace import Trace
from saga_rl.aeg.validate import check
from saga_rl.env.episodes import arrange, capacities_for, demand_tokens, resample, sim_config

TRACE = generate("burstgpt", 2, sessions=12, max_context=20_000, deadline_per_step_s=9.0)


def session_columns(trace: Trace, row: int) -> dict[str, list]:
    a, b = trace.session_offsets[row:row + 2]
    t = trace.steps
    out = {name: getattr(t, name)[a:b].tolist() for name in
           ("agent", "tool", "tool_s", "prompt_tokens", "output_tokens", "prefix_step", "prefix_tokens")}
    out["parents"] = [t.parents[t.parent_offsets[i]:t.parent_offsets[i + 1]].tolist() for i in range(a, b)]
    out["slack"] = [round(float(trace.sessions.deadline_s[row] - trace.sessions.arrival_s[row]), 6)]
    out["tenant"] = [int(trace.sessions.tenant[row])]
    return out


@given(st.integers(0, 1000), st.integers(0, 12))
@settings(max_examples=25, deadline=None)
def test_a_resampled_trace_holds_the_same_sessions(seed: int, sessions: int) -> None:
    new = resample(TRACE, np.random.default_rng(seed), sessions)
    check(new)
    assert new.n_sessions == (sessions or TRACE.n_sessions)
    old_rows = {name: i for i, name in enumerate(TRACE.sessions.session_id)}
    for row, name in enumerate(new.sessions.session_id):
        assert session_columns(new, row) == session_columns(TRACE, old_rows[name])
    gaps = np.diff(TRACE.sessions.arrival_s)
    assert np.isin(np.diff(new.sessions.arrival_s).round(6), gaps.round(6)).all()


def test_arranging_in_the_same_order_changes_nothing() -> None:
    same = arrange(TRACE, np.arange(TRACE.n_sessions), TRACE.sessions.arrival_s)
    np.testing.assert_array_equal(same.steps.prompt_tokens, TRACE.steps.prompt_tokens)
    np.testing.assert_array_equal(same.steps.session, TRACE.steps.session)
    np.testing.assert_array_equal(same.session_offsets, TRACE.session_offsets)
    np.testing.assert_allclose(same.sessions.deadline_s, TRACE.sessions.deadline_s)


def test_demand_of_one_session_lies_between_its_contexts() -> None:
    one = TRACE.select([0])
    context = one.steps.prompt_tokens + one.steps.output_tokens
    demand = demand_tokens(one, sim_config(50_000))
    assert context.min() <= demand <= context.max()


def test_more_pressure_means_less_memory_but_room_for_the_longest_context() -> None:
    config = sim_config(50_000, population=6)
    sizes = capacities_for(TRACE, config, (1.0, 2.0, 1000.0))
    assert sizes[0] > sizes[1] >= sizes[2]
    longest = int((TRACE.steps.prompt_tokens + TRACE.steps.output_tokens).max())
    assert sizes[2] == pytest.approx(1.1 * longest, abs=16)
    assert all(s % config.block_tokens == 0 for s in sizes)
