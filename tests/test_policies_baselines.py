"""Placement and admission baselines do what their sources claim, on rows that the real row functions fill."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.errors import UserError
from saga_rl.policies import features as F
from saga_rl.policies.registry import make
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb

quick = settings(max_examples=150, deadline=None)
counts = st.lists(st.integers(0, 300), min_size=1, max_size=12)


# ---------------------------------------------------------------- placement
def places(in_flight, key=0, request=0, prompt=4000, context=0, home=-1, queued=None, turn=None) -> np.ndarray:
    """(workers, columns) rows for one request. A worker: 1,000 tokens/s of prefill, 100 slots, 100,000 KV tokens."""
    n = len(in_flight)
    chains = ch.make_chains(1)
    if home >= 0:
        chains[0, ch.STEPS], chains[0, ch.CONTEXT] = 1, context
    rows = np.zeros((n, len(F.PLACEMENT)))
    for w in range(n):
        F.placement_row(chains, 0, 0.0, float(prompt), w == home, float(in_flight[w]), 100.0, 0.0, 1e5,
                        float(queued[w]) if queued else 0.0, 1000.0, 0.0, float(turn[w]) if turn else 0.0,
                        sum(in_flight) / n, rows[w])
    F.draw_places(key, request, F.P_DRAW, rows)
    F.draw_places(key, 0, F.P_RING, rows)
    return rows


def chosen(spec: str, rows: np.ndarray) -> int:
    policy = make("placement", spec)
    return int(np.argmax([policy.score(r, policy.params, np.zeros(1)) for r in rows]))


@given(start=st.lists(st.integers(0, 50), min_size=2, max_size=6))
@settings(max_examples=30, deadline=None)
def test_round_robin_visits_all_in_turn_whatever_the_load(start):
    n, last, went = len(start), {}, []
    for placed in range(3 * n):
        turn = [placed - last[w] if w in last else 10**6 for w in range(n)]
        went.append(chosen("round-robin", places(start, turn=turn)))
        last[went[-1]] = placed
    assert went == 3 * list(range(n))


@quick
@given(loads=st.lists(st.integers(0, 99), min_size=2, max_size=9), key=st.integers(0, 10**6))
def test_power_of_two_takes_the_lighter_of_two(loads, key):
    rows = places(loads, key=key, request=1)
    pair = np.argsort(rows[:, F.P_DRAW])[:2]
    assert chosen("power-of-two", rows) in pair
    assert loads[chosen("power-of-two", rows)] == min(loads[w] for w in pair)


def test_power_of_two_draws_anew_for_each_request():
    drawn = np.zeros(4)
    for request in range(2000):
        drawn[chosen("power-of-two", places([5, 5, 5, 99], key=7, request=request))] += 1
    assert drawn[3] == 0  # never the lighter one
    assert drawn[:3] == pytest.approx([2000 / 3] * 3, rel=0.2)


@quick
@given(loads=counts, key=st.integers(0, 10**6), c=st.sampled_from([1.0, 1.1, 1.25, 2.0]))
def test_consistent_hash_bounds_the_load(loads, key, c):
    rows = places(loads, key=key)
    w = chosen(f"consistent-hash:c={c}", rows)
    m, n = sum(loads), len(loads)
    assert loads[w] + 1 <= np.floor(c * m / n) + 1  # some worker always satisfies it: the one with the fewest
    assert loads[w] + 1 <= np.ceil(c * (m + 1) / n)  # the paper's bound
    assert all(loads[v] > c * m / n for v in range(n) if rows[v, F.P_RING] < rows[w, F.P_RING])  # skipped for a reason


def test_consistent_hash_moves_only_the_chains_of_a_worker_that_leaves():
    owners = []
    for chain in range(200):
        rows = places([3] * 5, key=chain)
        w = chosen("consistent-hash", rows)
        owners.append(w)
        left = [v for v in range(5) if v != 2]
        now = left[chosen("consistent-hash", rows[left])]
        assert now == w or w == 2
        assert chosen("consistent-hash", places([3] * 5, key=chain, request=9)) == w  # nor does another request move it
    assert all(20 <= owners.count(w) <= 60 for w in range(5))


def test_consistent_hash_overflows_and_returns():
    ring = np.argsort(places([0] * 4, key=5)[:, F.P_RING])
    load = [4, 4, 4, 4]
    load[ring[0]] = 8  # mean 5, bound 6.25
    assert chosen("consistent-hash", places(load, key=5)) == ring[1]
    load[ring[0]], load[ring[1]] = 5, 3  # mean 4, bound 5
    assert chosen("consistent-hash", places(load, key=5)) == ring[0]


@pytest.mark.parametrize(("queued", "where"), [(2900, 1), (3100, 0)])
def test_prefix_aware_weighs_the_hit_against_the_queue(queued, where):
    # at home 1,000 of 4,000 tokens are new: 1 s; elsewhere 4 s
    rows = places([1, 1], context=3000, home=1, queued=[0, queued])
    assert chosen("prefix-aware", rows) == where
    assert chosen("prefix-aware:hit=0", rows) == 0  # the shortest queue
    assert chosen("prefix-aware:hit=1000", rows) == 1  # the longest prefix


def test_prefix_aware_passes_over_a_worker_far_above_the_mean():
    # only if above the mean by more than 64 requests *and* 1.5 times
    assert chosen("prefix-aware", places([1, 1, 97], context=3000, home=2)) == 2  # by 64 (mean 33), 2.9 times
    assert chosen("prefix-aware", places([1, 1, 100], context=3000, home=2)) == 0  # by 66, 2.9 times
    assert chosen("prefix-aware", places([301, 301, 400], context=3000, home=2)) == 2  # by 66, 1.2 times
    assert chosen("prefix-aware:excess=3", places([1, 1, 8], context=3000, home=2)) == 0
    assert chosen("prefix-aware:excess=3,ratio=3", places([1, 1, 8], context=3000, home=2)) == 2


@quick
@given(loads=counts, home=st.integers(0, 11))
def test_prefix_aware_always_has_somewhere_to_go(loads, home):
    rows = places(loads, context=3000, home=home % len(loads))
    w = chosen("prefix-aware:excess=0,ratio=1", rows)
    assert loads[w] <= sum(loads) / len(loads)


def test_saga_steals_only_when_told_to():
    assert not make("placement", "saga").steals
    assert make("placement", "saga:theta=20,steal=1").steals


# ---------------------------------------------------------------- admission
class Door:
    """A worker's admission: what `features` tells a policy, and what the policy remembers. Pool: 100 blocks."""

    def __init__(self, spec: str) -> None:
        self.policy = make("admission", spec)
        self.g = F.make_g(1, 16, 100, make("eviction", "lru"), self.policy)
        self.row = np.zeros(len(F.ADMISSION))
        self.chains, self.tables = ch.make_chains(1), tb.make_tables(1, 1, 1)

    def admits(self, need=0, older=0, growth=0, pinned=0, new=1, live=0, active=0, likely=0, lost=0) -> bool:
        self.chains[0, ch.STEPS] = 1 - new
        F.admission_row(self.chains, self.tables, self.g, 0, 0, 0.0, 0.0, need, 0.0, 0.0, older, growth, 100.0, pinned,
                        live, 0.0, 0.0, active, np.array([likely, 0.0, 0.0]), lost, np.nan, self.row)
        return self.policy.score(self.row, self.policy.params, np.full(self.policy.scratch, np.nan)) > 0

    def begin(self, found: float, times=1, **x) -> None:
        for _ in range(times):
            self.admits(**x)
            F.remember_admission(self.g, 0, self.row, found, 50.0, self.policy.score, self.policy.params,
                                 np.full(self.policy.scratch, np.nan))

    def limit(self) -> int:
        """How many chains may be under way for a new one still to be let in, plus one."""
        return next(n for n in range(1000) if not self.admits(active=n))


def test_limit_counts_chains_and_holds_new_ones_only():
    door = Door("limit:sessions=3")
    assert door.limit() == 3
    assert door.admits(new=0, active=50)


def test_limit_live_leaves_room_for_one_more_of_the_mean():
    door = Door("limit-live")
    assert door.admits(live=80, active=4, need=20)  # mean 20
    assert not door.admits(live=81, active=4, need=5)
    assert not door.admits(live=80, active=4, need=21)  # its own need, where that is more
    assert door.admits(live=0, active=0, need=100)
    assert door.admits(live=100, active=1, need=90, new=0)
    assert not Door("limit-live:share=0.9").admits(live=80, active=4, need=5)


def test_aimd_falls_by_a_factor_and_climbs_by_steps():
    door = Door("aimd:start=8,step=2,cut=0.5,low=0.8,period=4")
    assert door.limit() == 8
    door.begin(30, times=3, new=0, lost=20, active=8)
    assert door.limit() == 8  # not before the period is over
    door.begin(30, new=0, lost=20, active=8)
    assert door.limit() == 4  # .6 found
    door.begin(0, times=8, new=0, lost=20, active=8)
    assert door.limit() == 4  # the cut has not taken effect yet: 8 are still under way
    for limit in (6, 8, 10):
        door.begin(40, times=4, new=0, lost=10, active=limit - 2)
        assert door.limit() == limit
    door.begin(40, times=4, new=0, lost=10, active=3)
    assert door.limit() == 10  # the limit is not what holds chains back
    for _ in range(6):
        door.begin(0, times=4, new=0, lost=10, active=0)
    assert door.limit() == 1
    assert door.admits(new=0, active=9)


def test_aimd_looks_at_what_could_have_been_found():
    door = Door("aimd:start=8,step=1,cut=0.5,period=1")
    door.begin(0, times=9, new=1, active=8)  # new chains have nothing to find
    assert door.limit() == 8
    door.begin(50, new=0, lost=0, active=8)
    assert door.limit() == 9


def test_reserve_older_weighs_by_the_chance_of_an_end():
    x = {"pinned": 30, "growth": 10, "older": 30, "likely": 12.5}
    assert Door("reserve-older").admits(need=30, **x)
    assert not Door("reserve-older").admits(need=31, **x)
    assert Door("reserve-older:likely=1").admits(need=47.5, **x)
    assert not Door("reserve-older:likely=1").admits(need=48, **x)


def test_pause_resume_holds_what_lost_its_kv_until_it_fits():
    door = Door("pause-resume:margin=0.1")
    assert door.admits(new=0, lost=0, need=50, live=100)  # all there: goes on
    assert door.admits(new=0, lost=40, need=45, live=45)
    assert not door.admits(new=0, lost=40, need=46, live=45)  # paused
    assert not door.admits(new=1, need=46, live=45)
    assert Door("pause-resume:margin=0").admits(new=1, need=55, live=45)


# ---------------------------------------------------------------- what may be promised and set
@pytest.mark.parametrize(("decision", "spec", "steady"), [
    ("ordering", "las", True), ("ordering", "las:starve=2", False), ("ordering", "srpt", False),
    ("admission", "reserve-older", True), ("admission", "reserve-older:likely=1", False), ("admission", "limit", False),
])
def test_what_time_changes_is_not_promised(decision, spec, steady):
    assert make(decision, spec).steady is steady


@pytest.mark.parametrize(("decision", "spec", "named"), [
    ("placement", "consistent-hash:c=0.9", "c is 0.9"), ("placement", "saga:steal=0.5", "steal is 0.5"),
    ("placement", "saga:stael=1", "choose one of: steal"), ("placement", "prefix-aware:ratio=0.5", "ratio is 0.5"),
    ("ordering", "las:factor=1", "factor is 1"), ("ordering", "las:base_s=0", "base_s is 0"),
    ("ordering", "dlpm:quantum=0", "quantum is 0"), ("admission", "limit:sessions=0", "sessions is 0"),
    ("admission", "aimd:cut=1.5", "cut is 1.5"), ("admission", "aimd:periods=9", "choose one of: period"),
    ("admission", "reserve-older:likely=2", "likely is 2"), ("admission", "pause-resume:margin=1", "margin is 1"),
])
def test_bad_parameters_are_named(decision, spec, named):
    with pytest.raises(UserError, match=named):
        make(decision, spec)
