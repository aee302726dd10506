"""What tables and chains learn from requests: quantiles, windows, counts, and presumptions taken back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb

quick = settings(max_examples=40, deadline=None)
BIN = (np.log(tb.MAX_S) - np.log(tb.MIN_S)) / tb.BINS
latencies = st.lists(st.floats(2e-3, 9e3), min_size=tb.COLD, max_size=400)


def learn(seconds, tool=0, tools=2):
    t = tb.make_tables(1, tools, 1)
    for s in seconds:
        tb.observe_return(t, 0, 0, tool, s, 100.0)
    return t


@quick
@given(latencies)
def test_p95_of_the_window_within_a_bin(seconds):
    t = learn(seconds)
    want = np.percentile(seconds[-tb.WINDOW:], 95, method="higher")
    assert abs(np.log(t.p95[0, 1]) - np.log(want)) <= BIN
    assert tb.ttl(t, 0, 0, 0.0) == pytest.approx(min(t.p95[0, 1], tb.MAX_TTL_S))


@quick
@given(latencies)
def test_counts_are_conserved(seconds):
    t = learn(seconds)
    pooled = t.hist.shape[1] - 1
    for row in (1, pooled):
        held = min(len(seconds), tb.WINDOW)
        assert t.hist[0, row].sum() == held == t.above[0, row, 0]
        assert t.hist.min() >= 0
        assert t.returns[0, row] == len(seconds)
        np.testing.assert_array_equal(t.above[0, row, :-1] - t.above[0, row, 1:], t.hist[0, row])
    assert t.hist[0, 2].sum() == 0


@quick
@given(latencies, latencies)
def test_the_window_forgets(old, new):
    new = (new * (tb.WINDOW // len(new) + 1))[:tb.WINDOW]
    both, only = learn(old + new), learn(new)
    np.testing.assert_array_equal(both.hist, only.hist)
    np.testing.assert_array_equal(both.seconds_above, only.seconds_above)
    np.testing.assert_array_equal(both.p95, only.p95)


@quick
@given(st.lists(st.floats(2e-3, 9e3), max_size=60), st.lists(st.floats(0, 2e4), min_size=2, max_size=20))
def test_survival_falls_with_idle_time_and_never_reaches_zero(seconds, idle):
    t = learn(seconds)  # cold tables (fewer than COLD returns) included
    values = [tb.survival(t, 0, 0, i) for i in sorted(idle)]
    assert all(a >= b for a, b in pairwise(values))
    assert values[-1] > 0 and values[0] <= 1


@quick
@given(st.lists(st.floats(2e-3, 9e3), max_size=60), st.floats(0, 2e4))
def test_residual_is_a_positive_time(seconds, idle):
    value = tb.residual_s(learn(seconds), 0, 0, idle)
    assert np.isfinite(value) and value > 0


def test_residual_of_a_fixed_latency_counts_down():
    t = learn([100.0] * 50)
    got = [tb.residual_s(t, 0, 0, idle) for idle in (0.0, 40.0, 80.0)]
    np.testing.assert_allclose(got, [100.0, 60.0, 20.0], atol=100 * (np.exp(BIN) - 1))


def test_an_unknown_tool_reads_the_pooled_row_and_a_cold_table_its_constants():
    cold = tb.make_tables(1, 2, 1)
    assert tb.ttl(cold, 0, 1, 0.0) == tb.COLD_TTL_S
    assert tb.end_prior(cold, 0, 0, 1) == pytest.approx(tb.COLD_END)
    warm = learn([2.0] * 50, tool=0)
    assert tb.ttl(warm, 0, 1, 0.0) == tb.ttl(warm, 0, 0, 0.0) == pytest.approx(2.0, rel=BIN)


def test_ttl_halves_under_pressure_and_is_capped():
    t = learn([10.0] * 50)
    assert tb.ttl(t, 0, 0, 1.0) == pytest.approx(tb.ttl(t, 0, 0, 0.0) / 2)
    assert tb.ttl(learn([5000.0] * 50), 0, 0, 0.0) == tb.MAX_TTL_S


@pytest.mark.parametrize(("seconds", "want"), [(-1.0, 0), (0.0, 0), (tb.MIN_S, 0), (tb.MAX_S, tb.BINS - 1),
                                               (1e300, tb.BINS - 1), (np.inf, tb.BINS - 1), (np.nan, tb.BINS - 1)])
def test_latencies_out_of_range_have_a_bin(seconds, want):
    assert tb.latency_bin(seconds) == want


@pytest.mark.parametrize("b", range(0, tb.BINS, 7))
def test_a_bin_holds_its_middle(b):
    assert tb.latency_bin(tb.bin_seconds(b)) == b


def test_end_prior_follows_the_tool():
    t = learn([1.0] * 100, tool=0)
    for _ in range(100):
        tb.observe_end(t, 0, 1, 0, 10.0, False)
    assert 0 < tb.end_prior(t, 0, 0, 0) < 0.1 < 0.9 < tb.end_prior(t, 0, 0, 1) < 1
    assert t.types[0, 0, tb.STEPS] == pytest.approx(10.0, rel=0.02)


def test_an_agent_type_counts_for_itself_once_it_is_warm():
    t = tb.make_tables(1, 1, 2)
    for k in range(tb.COLD_TASKS):
        for _ in range(9):
            tb.observe_return(t, 0, 0, 0, 1.0, 0.0)
            tb.observe_return(t, 0, 1, 0, 1.0, 0.0)
        assert tb.end_prior(t, 0, 0, 0) == tb.end_prior(t, 0, 1, 0), k
        tb.observe_end(t, 0, 0, 0, 9, False)  # type 0 ends after the tool, type 1 never does
    assert t.types[0, 0, tb.DONE] == tb.COLD_TASKS
    tool_rate = tb.end_prior(t, 0, 1, 0)  # type 1 is cold
    assert tb.end_prior(t, 0, 0, 0) == pytest.approx((30 + 10 * tool_rate) / (300 + 10))


def test_next_tool_is_the_commonest_successor():
    t = tb.make_tables(1, 3, 1)
    assert tb.next_tool(t, 0, 0, 1) == (-1, 0.0)
    for tool in (2, 2, 0, -1):
        tb.observe_call(t, 0, 0, 1, tool)
    assert tb.next_tool(t, 0, 0, 1) == (2, 0.5)


def chain(deadline=np.nan):
    chains, tables = ch.make_chains(2), tb.make_tables(2, 3, 1)
    ch.describe(chains, 0, 0, 7, 1.0, 0, 0, deadline)
    return chains, tables


def test_a_step_and_its_return():
    chains, tables = chain()
    ch.arrive(chains, tables, 0, 0, 1.0, 100.0)
    assert chains[0, ch.WAITING] == 1 and tables.returns.sum() == 0
    ch.schedule(chains, 0, 2.0)
    ch.preempt(chains, 0, 3.0)
    ch.schedule(chains, 0, 5.0)
    ch.finish(chains, tables, 0, 0, 9.0, 100.0, 20.0, 2, False)
    row = chains[0]
    assert (row[ch.STEPS], row[ch.CONTEXT], row[ch.TOOL], row[ch.LAST]) == (1, 120, 2, 9.0)
    assert row[ch.ATTAINED] == pytest.approx(1.0 + 4.0)
    assert row[ch.RUNNING] == row[ch.WAITING] == 0
    ch.arrive(chains, tables, 0, 0, 12.0, 500.0)
    assert tables.hist[0, 3, tb.latency_bin(3.0)] == 1  # tool 2 lives in row 3
    assert tables.obs[0, 3] == pytest.approx(500 + tb.EMA * (380 - 500))
    assert tables.returns[0].tolist() == [0, 0, 0, 1, 1]


def test_a_presumed_end_is_taken_back_when_the_chain_returns():
    chains, tables = chain()
    ch.arrive(chains, tables, 0, 0, 1.0, 100.0)
    ch.expire(chains, tables, 0, 0)
    assert chains[0, ch.ENDED] == 0  # it waits
    ch.schedule(chains, 0, 1.0)
    ch.finish(chains, tables, 0, 0, 2.0, 100.0, 20.0, -1, False)
    ch.expire(chains, tables, 0, 0)
    ch.expire(chains, tables, 0, 0)
    assert chains[0, ch.ENDED] == 2 and tables.ends[0].tolist() == [1, 0, 0, 0, 1]
    ch.arrive(chains, tables, 1, 0, 999.0, 200.0)  # on the other worker
    assert chains[0, ch.ENDED] == 0 and tables.ends.min() == 0


def test_an_abort_leaves_no_trace_of_a_step():
    chains, tables = chain()
    ch.arrive(chains, tables, 0, 0, 1.0, 100.0)
    ch.schedule(chains, 0, 2.0)
    ch.abort(chains, 0, 5.0)
    assert chains[0, ch.STEPS] == chains[0, ch.RUNNING] == chains[0, ch.WAITING] == 0
    assert chains[0, ch.ATTAINED] == 3.0


@quick
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.floats(0, 500), st.integers(-1, 2), st.booleans(),
                          st.booleans()), max_size=40))
def test_any_history_keeps_counts_whole(history):
    chains, tables = ch.make_chains(2), tb.make_tables(2, 3, 1)
    for c in range(2):
        ch.describe(chains, c, c, c, 0.0, 0, 0, np.nan)
    now, returns, steps = 0.0, 0, [0, 0]
    for c, w, gap, tool, ended, expires in history:
        now += gap
        returns += steps[c] > 0
        ch.arrive(chains, tables, w, c, now, 100.0)
        ch.schedule(chains, c, now)
        ch.finish(chains, tables, w, c, now + 1, 100.0, 10.0, tool, ended)
        steps[c] += 1
        now += 1
        if expires:
            ch.expire(chains, tables, w, c)
    pooled = tables.returns.shape[1] - 1
    assert chains[:, ch.STEPS].tolist() == steps
    assert tables.returns[:, pooled].sum() == tables.returns[:, :pooled].sum() == returns
    assert tables.ends.min() >= 0
    for w in range(2):
        for tool in range(-1, 3):
            assert 0 < tb.end_prior(tables, w, 0, tool) < 1


def test_where_clients_announce_ends_silence_is_no_end():
    chains, tables = chain()
    mine = tables.types[0, 0]
    for _ in range(7):
        tb.observe_end(tables, 0, 1, 0, 9, True)
    assert tb.announces(tables, 0, 0) and mine[tb.ANNOUNCED] == pytest.approx(1 - (1 - tb.ANNOUNCED_EMA) ** 7)
    assert ch.patience(chains, tables, 0, 0, 300.0) == tb.PATIENCE * 300.0
    assert tb.unsaid_prior(tables, 0, 0, 1) == pytest.approx(tb.end_prior(tables, 0, 0, 1) * (1 - mine[tb.ANNOUNCED]))
    told = mine[tb.ANNOUNCED]
    tb.observe_end(tables, 0, 1, 0, 9, False)  # one left without a word, as it seems
    assert mine[tb.ANNOUNCED] < told
    tb.retract_end(tables, 0, 0, 1)  # and is back
    assert mine[tb.ANNOUNCED] == pytest.approx(told)
    for _ in range(7):  # the clients stopped announcing
        tb.observe_end(tables, 0, 1, 0, 9, False)
    assert not tb.announces(tables, 0, 0) and ch.patience(chains, tables, 0, 0, 300.0) == 300.0
