"""Feature rows: every column is what its name says, rows are finite, and the hash follows code, not prose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies_rows import COLUMNS

from saga_rl.policies import features as F
from saga_rl.policies.features import fingerprint
from saga_rl.policies.registry import make
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb
from saga_rl.source_hash import code_hash

PLACES = {"eviction": F.EV, "placement": F.PL, "ordering": F.OD, "admission": F.AD}


@pytest.mark.parametrize("decision", COLUMNS)
def test_every_column_has_one_index(decision):
    """By hand, in the order in which they are declared: what is remembered has an index for its first column only."""
    at, names = {k: v for k, v in vars(PLACES[decision]).items() if not k.startswith("_")}, COLUMNS[decision]
    assert [names[v] for v in at.values()] == [k if k not in ("mine", "here") else f"{k}_0" for k in at]
    wide = {"mine": 4, "here": 8}
    assert F.COLUMNS[decision] == len(names) == sum(wide.get(k, 1) for k in at)
    assert len(set(names)) == len(names)


def test_learned_eviction_reads_neither_raw_columns_nor_the_future():
    assert F.EVICTION[:F.EV.idle_s] == F.LEARNED_EVICTION
    assert not {"idle_s", "age_s", "oracle"} & set(F.LEARNED_EVICTION)


def world(steps=1, tool=1, last=10.0):
    chains, tables, g = ch.make_chains(1), tb.make_tables(1, 3, 1), np.zeros((1, F.G_COLUMNS))
    ch.describe(chains, 0, 0, 0, 2.0, 0, 0, np.nan)
    for s in range(steps):
        ch.arrive(chains, tables, 0, 0, last - 1, 50.0)
        ch.schedule(chains, 0, last - 1)
        ch.finish(chains, tables, 0, 0, last, 100.0 + s, 20.0, tool, False)
    g[0, :4] = [0.0, 40.0, 0.5, 0.25]
    g[0, F.G_BLOCK], g[0, F.G_POOL], g[0, F.G_INFORMED] = 16, 64, 2
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
            "tokens": 160, "context": 120, "useful": 120, "obs_tokens": 500, "residual_s": tb.COLD_TTL_S + 4,
            "step_s": 5 - tb.EMA * 4,
            "young_log": 0, "young_busy": 0, "young_steps_log": 0, "young_idle_log": np.log1p(4.0), "pause_log": 0,
            "longest_log": 0, "steps_left": 19, "tasks": 0, "event": F.NO_EVENT, "pool_blocks": 64,
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


def test_a_chain_that_compacts_can_use_no_more_than_its_shorter_prompt():
    """Of 120 tokens: all while it is idle, 40 while its prompt of 40 waits, none beside what its running request pins;
    once that was preempted, whatever it had computed."""
    chains, tables, g = world()

    def useful() -> float:
        assert ch.useful_tokens(chains[0]) == evict(chains, tables, g, now=15.0)["useful"]
        return float(ch.useful_tokens(chains[0]))

    assert useful() == 120
    ch.arrive(chains, tables, 0, 0, 14.0, 150.0)
    assert useful() == 120, "a prompt that goes on from its context"
    ch.abort(chains, 0, 14.5)
    ch.arrive(chains, tables, 0, 0, 14.6, 40.0)
    assert useful() == 40
    assert F.useful_share(chains[0], 10.0, 16) == pytest.approx(40 / 160)
    ch.schedule(chains, 0, 14.7)
    assert useful() == 0
    ch.preempt(chains, 0, 14.8)
    assert useful() == np.inf and F.useful_share(chains[0], 10.0, 16) == 1
    ch.schedule(chains, 0, 14.9)
    ch.finish(chains, tables, 0, 0, 16.0, 40.0, 8.0, 1, False)
    assert useful() == 48
    assert F.useful_share(chains[0], 2.0, 16) == 1 == F.useful_share(chains[0], 0.0, 16)


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
        tb.observe_return(tables, 0, 0, 1, s, s)
    g[0, F.G_USED] = used
    if waits:
        ch.arrive(chains, tables, 0, 0, 10.0 + idle, 1e5)
    x = evict(chains, tables, g, now=10.0 + idle, blocks=5.0)  # all of which it can use
    x.pop("oracle")
    assert all(np.isfinite(v) for v in x.values()), x
    for name in ("p_return_10s", "p_end", "p_reuse", "recency", "size"):
        assert 0 <= x[name] <= 1, name
    assert -1 <= x["ttl_left"] <= 1


def test_ordering_columns():
    chains, tables, _ = world()
    out = np.zeros(len(F.ORDERING))
    F.ordering_row(chains, tables, 0, 0, 20.0, 12.0, 300.0, 1.0, 0.7, 64.0, 5.0, 3.0, out)
    remain = out[F.OD.remain_s]
    assert remain == pytest.approx(19 * (5 - tb.EMA * 4))
    want = {
        "arrival_s": 12.0, "session_s": 2.0, "preempted": 1.0, "attained_s": 1.0, "steps": 1.0, "afs": 0.7,
        "wait_s": 8.0, "prompt_tokens": 300.0, "remain_s": remain, "cached_tokens": 64.0, "service": 5.0,
        "least_service": 3.0, "begun": 1.0, "wait_log": np.log1p(8), "age_log": np.log1p(18),
        "attained_log": np.log1p(1), "steps_log": np.log1p(1), "prompt_log": np.log1p(300),
        "remain_log": np.log1p(remain), "uncached_log": np.log1p(236)}
    assert dict(zip(F.ORDERING, out, strict=True)) == pytest.approx(want)
    assert len(set(F.ORDERING)) == len(F.ORDERING)
    fresh = np.zeros(len(F.ORDERING))
    F.ordering_row(ch.make_chains(1), tables, 0, 0, 20.0, 12.0, 300.0, 0.0, 0.0, 0.0, 0.0, 0.0, fresh)
    assert fresh[F.OD.begun] == 0


def test_placement_columns():
    chains, _, _ = world()
    out = np.zeros(len(F.PLACEMENT))
    F.placement_row(chains, 0, 14.0, 240.0, True, 3, 12, 600.0, 1000.0, 500.0, 2000.0, 6, 4.0, 2.5, out)
    want = {"load": 0.6 + 0.25, "in_flight": 3, "slots": 0.25, "pinned": 0.6, "queued_s": 0.25, "home": 1, "hit": 0.5,
            "prompt_log": np.log1p(240.0), "new": 0, "idle_log": np.log1p(4.0), "sessions": 0.5,
            "turn": 4, "uncached_s": 120 / 2000, "mean_in_flight": 2.5, "draw": 0, "ring": 0}
    for name, value in want.items():
        assert out[F.PLACEMENT.index(name)] == pytest.approx(value), name
    F.placement_row(ch.make_chains(1), 0, 14.0, 240.0, False, 0, 12, 5000.0, 1000.0, 0.0, 2000.0, 0, 4.0, 2.5, out)
    x = dict(zip(F.PLACEMENT, out, strict=True))
    assert (x["new"], x["hit"], x["idle_log"], x["pinned"]) == (1, 0, 0, 1)


def admission(chains, tables, g, **changed):
    out = np.zeros(len(F.ADMISSION))
    values = {"need": 1.0, "free": 2.0, "evictable": 30.0, "older_idle": 20.0, "growth": 5.0, "pool": 100.0,
              "pinned": 50.0, "live": 75.0, "session_growth": 40.0, "running": 7.0, "active": 9.0,
              "expected_older": np.array([12.0, 3.0, 6.0]), "lost": 4.0, "older_returns": 8.0} | changed
    F.admission_row(chains, tables, g, 0, 0, 20.0, 12.0, *values.values(), out)
    return dict(zip(F.ADMISSION, out, strict=True))


def test_admission_columns():
    chains, tables, _ = world()
    g = F.make_g(1, 16, 100, make("eviction", "lru"))
    g[0, F.G_ADMIT:] = np.arange(F.HERE)
    left = 1 + 20 - 1
    assert admission(chains, tables, g) == pytest.approx({
        "need_share": .01, "free_share": .02, "evictable_share": .3, "older_share": .2, "likely_share": .12,
        "soon_share": .03, "later_share": .06, "growth_share": .05, "pinned_share": .5, "live_share": .75,
        "lost_share": .04, "growing_log": np.log1p(.4), "running_log": np.log1p(7), "active_log": np.log1p(9),
        "wait_log": np.log1p(8), "age_log": np.log1p(18), "left_log": np.log1p(left - 1), "new": 0.0,
        "need": 1, "free": 2, "evictable": 30, "older_idle": 20, "growth": 5, "pool": 100, "pinned": 50, "live": 75,
        "session_growth": 40, "running": 7, "wait_s": 8, "active": 9, "older_likely": 12, "lost": 4,
        "older_returns": 8, "tier_found": 0, "block_tokens": 16, "event": F.NO_EVENT, "event_blocks": 0,
        "event_total": 0, **{f"here_{k}": k for k in range(F.HERE)}})


def test_eviction_columns_that_nobody_reads_are_not_made():
    chains, tables, g = world()
    whole = evict(chains, tables, g, now=14.0)
    for informed, more in ((0.0, set()), (1.0, {"p_end", "ttl_left", "p_reuse", "obs_tokens", "residual_s", "step_s",
                                                "steps_left", "tasks"})):
        g[0, F.G_INFORMED] = informed
        row = evict(chains, tables, g, now=14.0)
        made = {name for name, value in row.items() if value == whole[name]}
        assert more <= made and {"idle_s", "waiting", "tokens", "useful"} <= made
        assert not made & {"idle_log", "until_log", "age_log", "pause_log", "longest_log"}
        assert informed or not made & {"p_end", "residual_s"}


def test_admission_columns_that_nobody_reads_are_not_made():
    chains, tables, _ = world()
    g = F.make_g(1, 16, 100, make("eviction", "lru"), make("admission", "grow"))
    row = admission(chains, tables, g)
    assert [row[n] for n in F.ADMISSION[:F.AD.new]] == [0.0] * F.AD.new
    assert row["need"] == 1 and row["live"] == 75


def test_older_chains_are_weighed_by_what_is_known_of_their_return():
    chains, tables, _ = world()
    older = np.zeros(3)
    F.add_expected_older(chains, tables, 0, 0, 11.0, 10.0, 8.0, older)
    lives = F.alive(chains, tables, 0, 0, 11.0, 10.0)
    assert older[0] == 8 * lives and 0 < older[1] < older[2] < older[0]
    tool = int(chains[0, ch.TOOL])
    back = 1 - tb.survival(tables, 0, tool, 11.0) / tb.survival(tables, 0, tool, 1.0)
    assert older[1] == pytest.approx(8 * lives * back)
    chains[0, ch.WAITING], older[:] = 1, 0
    F.add_expected_older(chains, tables, 0, 0, 11.0, 10.0, 8.0, older)
    assert older.tolist() == [8, 8, 8]
    chains[0, ch.WAITING], chains[0, ch.ENDED], older[:] = 0, 1, 0
    F.add_expected_older(chains, tables, 0, 0, 11.0, 10.0, 8.0, older)
    assert older.tolist() == [0, 0, 0]


@settings(max_examples=60, deadline=None)
@given(key=st.integers(0, 2**40), request=st.integers(0, 1000), workers=st.integers(1, 20))
def test_drawn_places_are_an_order_that_outlives_a_worker(key, request, workers):
    more, fewer = (np.zeros((n, len(F.PLACEMENT))) for n in (workers + 1, workers))
    F.draw_places(key, request, F.PL.draw, more)
    F.draw_places(key, request, F.PL.draw, fewer)
    order = np.argsort(more[:, F.PL.draw])
    assert sorted(more[:, F.PL.draw]) == list(range(workers + 1))
    assert [w for w in order if w < workers] == np.argsort(fewer[:, F.PL.draw]).tolist()


def test_draws_are_even():
    drawn = np.array([F.draw(k, r, w) for k in range(20) for r in range(20) for w in range(20)])
    counts = np.histogram(drawn, 16, (0, 1))[0]
    assert drawn.min() >= 0 and drawn.max() < 1
    assert ((counts - 500) ** 2 / 500).sum() < 37.7  # chi-squared, 15 degrees of freedom, .1 %


def test_a_policy_with_memory_finds_again_what_it_left():
    chains, _, g = world()
    row, scratch = np.zeros(len(F.EVICTION)), np.zeros(12)

    def score(x, params, out):
        assert (x[F.EV.event], x[F.EV.event_blocks], x[F.EV.event_total], x[F.EV.event_score]) == (F.EVICT, 3, 7, 0.5)
        out[:] = np.arange(12)
        return 0.0

    F.remember.py_func(chains, g, 0, 0, row, F.EVICT, 3.0, 7.0, 0.5, score, np.zeros(1), scratch)
    x = evict(chains, world()[1], g, now=11.0)
    assert [x[f"mine_{k}"] for k in range(4)] == [0, 1, 2, 3]
    assert [x[f"here_{k}"] for k in range(8)] == list(range(4, 12))


def test_evictions_see_the_index_of_bayes_tables():
    """Whatever is neither dead nor waiting stands in the same order."""
    policy, rng = make("eviction", "bayes-tables"), np.random.default_rng(0)
    chains, tables, g = world(steps=3)
    for _ in range(40):
        tb.observe_return(tables, 0, 0, int(rng.integers(-1, 2)), float(rng.exponential(20.0)), 10.0)
        tb.observe_end(tables, 0, int(rng.integers(-1, 2)), 0, 5, False)
    for idle in (0.0, 1.0, 30.0, 299.0, 5000.0):
        x = evict(chains, tables, g, now=10.0 + idle, blocks=5.0)  # all of which it can use
        row = np.array([x[name] for name in F.EVICTION])
        assert x["ended"] == x["waiting"] == 0
        assert x["until_log"] == pytest.approx(np.log1p(policy.score(row, policy.params, np.zeros(1))))


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
    hashes = [F.feature_hash(), F.tables_hash(), *(F.feature_hash(decision) for decision in F.COLUMNS)]
    assert all(len(h) == 64 for h in hashes) and len(set(hashes)) == 2 + len(F.COLUMNS)


@pytest.mark.parametrize(("old", "new"), [("+ 1.0", "+ 2.0"), ("+ 1.0", "+ 1"), ("+ 1.0", "- 1.0"), ("A = 1", "B = 1"),
                                          ("log(x)", "log1p(x)"), ("def f(x)", "def f(x, y=None)")])
def test_hash_sees_code(old, new):
    assert code_hash(SOURCE) != code_hash(SOURCE.replace(old, new))


@pytest.mark.parametrize("decision", F.COLUMNS)
def test_the_hash_is_of_what_columns_hold(decision):
    """Each column that a network reads takes several values in the fixed history, so that another formula shows; a
    thousandth more in one of them is another hash."""
    rows = fingerprint.rows(decision)
    assert np.isfinite(rows).all() and (np.ptp(rows, axis=0) > 0).all()
    names = tuple(f"c{k}" for k in range(rows.shape[1]))
    hashes = {fingerprint._digest(names, [rows])}
    for k in range(rows.shape[1]):
        other = rows.copy()
        other[:, k] *= 1.001
        hashes.add(fingerprint._digest(names, [other]))
    assert len(hashes) == 1 + rows.shape[1]
    assert F.feature_hash(decision) in F.EARLIER_HASHES, "then shipped checkpoints are refused: train them again"
