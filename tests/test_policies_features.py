"""Feature rows: every column is what its name says, rows are finite, and the hash follows code, not prose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies_rows import COLUMNS

from saga_rl.policies import chains as ch
from saga_rl.policies import features as F
from saga_rl.policies import tables as tb
from saga_rl.policies.source import code_hash

PREFIX = {"eviction": "E_", "placement": "P_", "ordering": "O_", "admission": "A_"}


@pytest.mark.parametrize("seam", COLUMNS)
def test_every_column_has_one_index(seam):
    indices = sorted(v for k, v in vars(F).items() if k.startswith(PREFIX[seam]))
    assert indices == list(range(len(COLUMNS[seam])))
    assert F.COLUMNS[seam] == len(COLUMNS[seam])


def test_learned_eviction_reads_neither_raw_columns_nor_the_future():
    assert F.EVICTION[:F.E_IDLE_S] == F.LEARNED_EVICTION
    assert not {"idle_s", "age_s", "oracle"} & set(F.LEARNED_EVICTION)


def world(steps=1, tool=1, last=10.0):
    chains, tables, g = ch.make_chains(1), tb.make_tables(1, 3, 1), np.zeros((1, F.G_COLUMNS))
    ch.describe(chains, 0, 0, 2.0, 0, 0, np.nan)
    for s in range(steps):
        ch.arrive(chains, tables, 0, 0, last - 1, 50.0)
        ch.schedule(chains, 0, last - 1)
        ch.finish(chains, tables, 0, 0, last, 100.0 + s, 20.0, tool, False)
    g[0] = [0.0, 40.0, 0.5, 0.25]
    return chains, tables, g


def evict(chains, tables, g, now, blocks=10.0, shared=0.0, oracle=np.nan, last=10.0):
    out = np.full(len(F.EVICTION), np.nan)
    F.eviction_row(chains, tables, g, 0, 0, now, last, blocks, shared, oracle, out)
    return dict(zip(F.EVICTION, out, strict=True))


def test_eviction_columns():
    x = evict(*world(), now=14.0, shared=1.0, oracle=33.0)
    want = {"idle_s": 4.0, "idle_log": np.log1p(4.0), "waiting": 0, "age_s": 12.0, "age_log": np.log1p(12.0),
            "recency": 1.0, "size": 0.25, "used": 0.5, "live": 0.25, "context_log": np.log1p(120.0),
            "steps_log": np.log1p(1), "ended": 0, "shared": 1.0, "oracle": 33.0,
            "ttl_left": (tb.COLD_TTL_S - 4) / tb.COLD_TTL_S, "p_reuse": (1 - tb.COLD_END) * 120 / (120 + 500)}
    for name, value in want.items():
        assert x[name] == pytest.approx(value), name


def test_a_waiting_chain_is_certain_to_return():
    chains, tables, g = world()
    ch.arrive(chains, tables, 0, 0, 14.0, 150.0)
    chains[0, ch.QPOS] = 6
    x = evict(chains, tables, g, now=15.0)
    assert (x["waiting"], x["p_return_10s"], x["p_end"], x["residual_log"], x["p_reuse"]) == (1, 1, 0, 0, 1)
    assert x["queue_log"] == pytest.approx(np.log1p(6))


def test_p_end_rises_while_it_is_silent_and_is_one_when_hinted():
    chains, tables, g = world()
    values = [evict(chains, tables, g, now=10.0 + s)["p_end"] for s in (0, 1, 10, 100, 1000)]
    assert values == sorted(values) and values[0] < values[-1] < 1
    chains[0, ch.ENDED] = 1
    x = evict(chains, tables, g, now=11.0)
    assert x["p_end"] == x["ended"] == 1 and x["p_return_10s"] == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 2e4), max_size=60), st.floats(0, 1e6), st.floats(0, 1), st.integers(0, 200),
       st.booleans())
def test_every_history_gives_a_finite_row(latencies, idle, used, steps, waits):
    chains, tables, g = world(steps=min(steps, 3))
    for s in latencies:
        tb.observe_return(tables, 0, 1, s, s)
    g[0, F.G_USED] = used
    if waits:
        ch.arrive(chains, tables, 0, 0, 10.0 + idle, 1e5)
    x = evict(chains, tables, g, now=10.0 + idle)
    x.pop("oracle")
    assert all(np.isfinite(v) for v in x.values()), x
    for name in ("p_return_10s", "p_end", "p_reuse", "recency", "size"):
        assert 0 <= x[name] <= 1, name
    assert -1 <= x["ttl_left"] <= 1


def test_ordering_columns():
    chains, _, _ = world()
    out = np.zeros(len(F.ORDERING))
    F.ordering_row(chains, 0, 20.0, 12.0, 300.0, 1.0, 0.7, out)
    assert dict(zip(F.ORDERING, out, strict=True)) == {
        "arrival_s": 12.0, "session_s": 2.0, "preempted": 1.0, "attained_s": 1.0, "steps": 1.0, "afs": 0.7,
        "wait_s": 8.0, "prompt_tokens": 300.0}


def test_placement_columns():
    chains, _, _ = world()
    out = np.zeros(len(F.PLACEMENT))
    F.placement_row(chains, 0, 14.0, 240.0, True, 3, 12, 600.0, 1000.0, 500.0, 2000.0, 6, out)
    want = {"load": 0.6 + 0.25, "in_flight": 3, "slots": 0.25, "pinned": 0.6, "queued_s": 0.25, "home": 1, "hit": 0.5,
            "prompt_log": np.log1p(240.0), "new": 0, "idle_log": np.log1p(4.0), "sessions": 0.5}
    for name, value in want.items():
        assert out[F.PLACEMENT.index(name)] == pytest.approx(value), name
    F.placement_row(ch.make_chains(1), 0, 14.0, 240.0, False, 0, 12, 5000.0, 1000.0, 0.0, 2000.0, 0, out)
    x = dict(zip(F.PLACEMENT, out, strict=True))
    assert (x["new"], x["hit"], x["idle_log"], x["pinned"]) == (1, 0, 0, 1)


def test_admission_columns():
    values = dict(zip(F.ADMISSION, np.arange(1.0, 1 + len(F.ADMISSION)), strict=True))
    out = np.zeros(len(F.ADMISSION))
    F.admission_row(*values.values(), out)
    assert dict(zip(F.ADMISSION, out, strict=True)) == values
    named = np.zeros(len(F.ADMISSION))
    F.admission_row.py_func(**values, out=named)
    np.testing.assert_array_equal(named, out)


def test_expected_output_and_growth():
    chains, tables, _ = world(steps=3)
    tables.types[0, 0, tb.OUT], tables.types[0, 0, tb.STEPS], tables.types[0, 0, tb.GROW] = 200.0, 10.0, 50.0
    assert F.expected_output(tables, 0, 0, 0) == 200 and F.expected_output(tables, 0, 0, 64) == 64
    assert F.expected_growth(chains, tables, 0, 0) == 7 * 50
    tables.types[0, 0, tb.STEPS] = 2.0
    assert F.expected_growth(chains, tables, 0, 0) == 50  # one more step, however long it ran


SOURCE = '"""Doc."""\nimport math\n\ndef f(x):\n    """What."""\n    return math.log(x) + 1.0\n\nA = 1\n"""A is."""\n'


def test_hash_ignores_prose_and_layout():
    prose = ('"""Other."""\n# why\nimport math\ndef f( x ):\n    # note\n    return (math.log(x)\n            + 1.0)\n'
             'A = 1  # one\n')
    assert code_hash(SOURCE) == code_hash(prose)
    assert len(F.feature_hash()) == 64


@pytest.mark.parametrize(("old", "new"), [("+ 1.0", "+ 2.0"), ("+ 1.0", "+ 1"), ("+ 1.0", "- 1.0"), ("A = 1", "B = 1"),
                                          ("log(x)", "log1p(x)"), ("def f(x)", "def f(x, y=None)")])
def test_hash_sees_code(old, new):
    assert code_hash(SOURCE) != code_hash(SOURCE.replace(old, new))
