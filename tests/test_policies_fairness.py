"""Agent Fair Share against sums made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb
from saga_rl.policies.state.agent_fair_share import afs

EPOCH = 0.1


def shares(specs, now=10.0, active=None):
    """specs: (tenant, finished steps, deadline, session start, ended); every type: 20 steps of 5 s."""
    chains, tables = ch.make_chains(len(specs)), tb.make_tables(1, 1, 1)
    tables.types[0, 0, tb.STEPS], tables.types[0, 0, tb.STEP_S] = 20.0, 5.0
    for c, (tenant, steps, deadline, start, ended) in enumerate(specs):
        ch.describe(chains, c, c, c, start, tenant, 0, deadline)
        chains[c, ch.STEPS], chains[c, ch.ENDED] = steps, ended
    rows = np.arange(len(specs)) if active is None else np.array(active, np.int64)
    out = np.full(3, np.nan)
    afs(chains, tables, 0, rows, len(rows), now, EPOCH, out)
    return out.tolist()


def test_remaining_work_over_slack_summed_by_tenant():
    got = shares([(0, 10, 110.0, 0.0, 0), (0, 15, 60.0, 0.0, 0), (2, 0, 210.0, 0.0, 0)])
    assert got == pytest.approx([50 / 100 + 25 / 50, 0.0, 100 / 200])


def test_late_work_is_floored_at_one_epoch():
    assert shares([(1, 18, 9.0, 0.0, 0)]) == pytest.approx([0, 10 / EPOCH, 0])
    assert shares([(1, 18, 10.0, 0.0, 0)]) == shares([(1, 18, 5.0, 0.0, 0)])


def test_no_deadline_means_one_and_a_half_times_the_expected_time():
    assert shares([(0, 0, np.nan, 4.0, 0)]) == pytest.approx([100 / (4 + 150 - 10), 0, 0])


def test_a_chain_longer_than_expected_has_one_step_left():
    assert shares([(0, 35, 110.0, 0.0, 0)]) == pytest.approx([5 / 100, 0, 0])


def test_ended_and_inactive_chains_count_nothing():
    specs = [(0, 0, 110.0, 0.0, 1), (1, 0, 110.0, 0.0, 2), (2, 0, 110.0, 0.0, 0)]
    assert shares(specs) == pytest.approx([0, 0, 1.0])
    assert shares(specs, active=[0]) == [0, 0, 0]


def test_urgency_grows_as_the_deadline_nears():
    values = [shares([(0, 10, 110.0, 0.0, 0)], now=t)[0] for t in (10, 60, 100, 109.99, 500)]
    assert values == sorted(values) and len(set(values[:4])) == 4
