"""What the sources of the queue-based eviction baselines claim, on cases small enough to follow by hand.

Independent implementations agree victim by victim where a score can do all that the source does: LRU as GreedyDual with
equal costs, LFU with and without aging, GreedyDual with sizes. libCacheSim counts the same misses for LRU and LFU, and
for S3-FIFO, ARC and GDSF, which our files read with the liberties they name, nearly the same.
"""

from __future__ import annotations

import numpy as np
import pytest
from eviction_pool import EvictionPool
from hypothesis import given, settings
from hypothesis import strategies as st
from policies_rows import score

from saga_rl.errors import UserError
from saga_rl.policies.baselines.eviction import arc, greedy_dual, lfu, s3_fifo
from saga_rl.policies.registry import make
from saga_rl.policies.state import chains as ch

QUEUE_BASED = ("s3-fifo", "arc", "lfu", "greedy-dual")
INFORMED = ("tail-lru", "kvflow", "continuum", "bayes-tables")
PLAIN = "protect=0,hint=0"
strings = st.lists(st.integers(0, 7), min_size=1, max_size=60)
quick = settings(max_examples=60, deadline=None)


# ---------------------------------------------------------------- references: who goes, chain by chain
def lru_victims(string: list[int], capacity: int) -> list[int]:
    held: list[int] = []
    out = []
    for name in string:
        if name in held:
            held.remove(name)
        elif len(held) == capacity:
            out.append(held.pop(0))
        held.append(name)
    return out


def lfu_victims(string: list[int], capacity: int, aging: bool) -> list[int]:
    count: dict[int, int] = {}
    key: dict[int, tuple[int, int]] = {}  # key, then time of the last request
    base, out = 0, []
    for t, name in enumerate(string):
        if name not in key and len(key) == capacity:
            gone = min(key, key=key.__getitem__)
            base = key[gone][0] if aging else 0
            del key[gone], count[gone]
            out.append(gone)
        count[name] = count.get(name, 0) + 1
        key[name] = (base + count[name], t)
    return out


def greedy_dual_victims(string: list[tuple[int, int]], capacity: int, cost) -> list[tuple[int, int]]:
    """Requests (name, size) -> (victim, blocks taken). H = L + count x cost(size) / size; L = H of the last victim."""
    size: dict[int, int] = {}
    count: dict[int, int] = {}
    h: dict[int, tuple[float, int]] = {}
    base, out = 0.0, []
    for t, (name, want) in enumerate(string):
        want = max(want, size.pop(name, 0))
        while sum(size.values()) + want > capacity:
            gone = min(size, key=h.__getitem__)
            taken = min(size[gone], sum(size.values()) + want - capacity)
            size[gone] -= taken
            base = max(base, h[gone][0])
            out.append((gone, taken))
            if size[gone] == 0:
                del size[gone], count[gone]
        size[name], count[name] = want, count.get(name, 0) + 1
        h[name] = (base + count[name] * cost(want) / want, t)
    return out


# ---------------------------------------------------------------- exact agreement
@quick
@given(string=strings, capacity=st.integers(1, 6))
def test_lfu_takes_what_a_plain_lfu_takes(string, capacity):
    for aging in (0, 1):
        pool = EvictionPool(f"lfu:aging={aging},{PLAIN}", capacity, 8)
        assert pool.play(string) == lfu_victims(string, capacity, bool(aging))


@quick
@given(string=strings, capacity=st.integers(1, 6))
def test_greedy_dual_with_equal_costs_is_lru(string, capacity):
    """Cao and Irani: GreedyDual-Size with one size and one cost is LRU."""
    pool = EvictionPool(f"greedy-dual:frequency=0,{PLAIN}", capacity, 8)
    assert pool.play(string) == lru_victims(string, capacity)


@quick
@given(string=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=50),
       capacity=st.integers(4, 9), linear=st.sampled_from([0.0, 2.0]))
def test_greedy_dual_takes_what_a_plain_one_takes(string, capacity, linear):
    def cost(blocks: int) -> float:
        return 3.0 + linear * blocks + 5.0 * blocks * blocks

    pool = EvictionPool(f"greedy-dual:fixed=3,linear={linear},square=5,{PLAIN}", capacity, 6, block_tokens=1000)
    assert [v for name, size in string for v in pool.use(name, size)] == greedy_dual_victims(string, capacity, cost)


def zipf(seed: int, names: int, requests: int, scans: bool) -> list[int]:
    """A skewed string; `scans`: before every 500th request, the same 60 names that nothing else asks for."""
    p = 1.0 / np.arange(1, names + 1)
    drawn = np.random.default_rng(seed).choice(names, requests, p=p / p.sum()).tolist()
    if not scans:
        return drawn
    return [n for i, name in enumerate(drawn) for n in ([*range(names, names + 60), name] if i % 500 == 0 else [name])]


def libcachesim_misses(algorithm: str, string: list[int], capacity: int) -> int:
    theirs = pytest.importorskip("libcachesim")
    cache, missed = getattr(theirs, algorithm)(cache_size=capacity, hashpower=12), 0
    for t, name in enumerate(string):
        request = theirs.Request()
        request.obj_id, request.obj_size, request.clock_time = name + 1, 1, t
        missed += not cache.get(request)
    return missed


@pytest.mark.parametrize("scans", [False, True])
@pytest.mark.parametrize(("spec", "algorithm", "apart"), [
    (f"greedy-dual:frequency=0,{PLAIN}", "LRU", 0.0), (f"lfu:aging=0,{PLAIN}", "LFU", 0.0),
    (f"s3-fifo:{PLAIN}", "S3FIFO", 0.1), (f"arc:{PLAIN}", "ARC", 0.06), (f"greedy-dual:{PLAIN}", "GDSF", 0.03)])
def test_misses_against_libcachesim(spec, algorithm, apart, scans):
    string = zipf(3, 150, 1500, scans)
    pool = EvictionPool(spec, 40, 210)
    pool.play(string)
    theirs = libcachesim_misses(algorithm, string, 40)
    assert abs(pool.misses - theirs) <= apart * theirs, (pool.misses, theirs)


# ---------------------------------------------------------------- S3-FIFO
def test_s3_fifo_lets_one_hit_wonders_pass():
    """Ten blocks, one of them the small queue's share. What was used again is in the main queue and stays."""
    pool = EvictionPool(f"s3-fifo:{PLAIN}", 10, 60)
    for _ in range(3):  # two hits
        pool.play([0, 1, 2, 3])
    assert all(pool.mine(c)[s3_fifo.STATE] == s3_fifo.MAIN for c in range(4))
    assert pool.play(list(range(10, 40))) == list(range(10, 34))  # 6 places for 30 newcomers, first in first out
    assert set(pool.victim_order()) >= {0, 1, 2, 3}


def test_s3_fifo_one_hit_is_not_enough():
    pool = EvictionPool(f"s3-fifo:{PLAIN}", 3, 10)
    assert pool.play([0, 1, 2, 0, 3, 4]) == [0, 1]  # LRU would have taken 1 and 2


def test_s3_fifo_ghost_enters_the_main_queue():
    pool = EvictionPool(f"s3-fifo:{PLAIN}", 3, 10)
    assert pool.play([0, 1, 2, 3]) == [0]
    assert pool.mine(0)[s3_fifo.STATE] == s3_fifo.GHOST
    assert pool.play([0]) == [1]
    assert pool.mine(0)[s3_fifo.STATE] == s3_fifo.MAIN
    assert pool.play([4, 5, 6]) == [2, 3, 4]  # newcomers pass 0 by


def test_s3_fifo_old_ghosts_are_forgotten():
    """Remembered while at most .9 of 10 blocks have left the small queue since, its own room included."""
    for after, state in ((8, s3_fifo.MAIN), (9, s3_fifo.SMALL)):
        pool = EvictionPool(f"s3-fifo:{PLAIN}", 10, 40)
        assert pool.play(list(range(11 + after))) == list(range(1 + after))
        pool.use(0)
        assert pool.mine(0)[s3_fifo.STATE] == state


def test_s3_fifo_main_queue_gives_hits_another_round():
    """0, 1, 2 enter the main queue in this order; 0 is hit once there. With the small queue empty, 1 goes first."""
    pool = EvictionPool(f"s3-fifo:{PLAIN}", 3, 10)
    for _ in range(3):
        pool.play([0, 1, 2])
    assert pool.victim_order() == [0, 1, 2]
    pool.use(0)
    assert pool.victim_order() == [1, 2, 0]
    before = pool.mine(0)[s3_fifo.PLACE]
    for _ in range(9):
        pool.use(0)
    assert pool.mine(0)[s3_fifo.PLACE] - before <= s3_fifo.MOST_HITS * 0.9 * 3  # at most 3 hits count


# ---------------------------------------------------------------- ARC
def arc_p(pool: EvictionPool) -> float:
    return float(pool.here()[arc.P - arc.T])


def test_arc_target_follows_the_ghosts():
    """Four blocks. 0 and 1 are used twice (T2); 2..5 once. 2 goes from T1 (p = 0) and comes back: recency was worth
    more, p = 1. Then T1 has its share, T2 is cut, and what it lost comes back: p falls again."""
    pool = EvictionPool(f"arc:{PLAIN}", 4, 12)
    assert pool.play([0, 1, 0, 1, 2, 3]) == []
    assert pool.play([4]) == [2] and arc_p(pool) == 0
    assert pool.play([2]) == [3] and arc_p(pool) == 1  # 2 was in B1; |B2| = 0, a step of one
    assert pool.mine(2)[arc.LIST] == 2
    assert pool.play([5]) == [0]  # T1 = {4} is not above its target, so T2's oldest
    assert pool.play([0]) == [4] and arc_p(pool) == 0  # 0 was in B2; T1 = {4, 5} was above 1


def test_arc_step_is_the_ratio_of_the_ghost_lists():
    pool = EvictionPool(f"arc:{PLAIN}", 8, 40)
    pool.play([0, 1, 2, 3] * 2 + [4, 5, 6, 7, 8, 9])  # T2 = 0..3; 4, 5 left T1
    lists = pool.here()
    assert lists[:4].tolist() == [4, 4, 2, 0]  # T1, T2, B1, B2
    lists[arc.B + 1 - arc.T] = 6  # as if six had left T2
    pool.use(4)
    assert arc_p(pool) == pytest.approx(6 / 3)  # 6 had left T1 meanwhile: |B1| = 3


def test_arc_resists_a_scan_where_lru_does_not():
    string = [0, 1, 2, 3] * 3 + list(range(10, 40)) + [0, 1, 2, 3]
    misses = {}
    for spec in (f"arc:{PLAIN}", "lru"):
        pool = EvictionPool(spec, 8, 40)
        pool.play(string)
        misses[spec] = pool.misses
    assert misses == {f"arc:{PLAIN}": 4 + 30, "lru": 4 + 30 + 4}


def test_arc_moves_for_the_part_that_was_lost():
    """A chain that lost 2 of its 3 blocks from T1 and comes back moves p by 2, and is a hit."""
    pool = EvictionPool(f"arc:{PLAIN}", 8, 5)
    for _ in range(2):
        pool.use(4, 4)
    pool.use(0, 3)
    assert pool.use(1, 3) == [(0, 2)]
    assert pool.use(0, 3) == [(1, 2)]
    assert arc_p(pool) == 2
    assert pool.mine(0)[arc.LIST] == 2


# ---------------------------------------------------------------- GreedyDual, LFU
def test_greedy_dual_takes_the_larger_of_equals_and_keeps_what_is_dear_a_block():
    """Chain 0 has 1 block, chain 1 has 4. A miss that costs the same whatever its size: the larger goes. Prefill that
    grows faster than linearly: a block of the long one costs more to get back, so the short one goes."""
    for costs, first in (("fixed=1,linear=0,square=0", 1), ("fixed=0,linear=1,square=1", 0)):
        pool = EvictionPool(f"greedy-dual:{costs},{PLAIN}", 6, 3, block_tokens=1000)
        pool.use(0, 1)
        pool.use(1, 4)
        assert pool.victim_order()[0] == first


def test_greedy_dual_ages_what_was_dear():
    """Chain 0 is worth 4 x a newcomer, but is never used again: after 4 victims' worth of inflation it goes."""
    pool = EvictionPool(f"greedy-dual:fixed=0,linear=0,square=1,{PLAIN}", 6, 40, block_tokens=1000)
    pool.use(0, 4)  # H = 16 / 4
    assert pool.mine(0)[greedy_dual.H] == 4
    victims = [v for c in range(1, 12) for v in pool.use(c, 1)]  # H = L + 1 each, two places
    assert victims == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (0, 1), (0, 1), (0, 1)]


def test_lfu_aging_frees_what_was_popular_once():
    string = [0] * 5 + [n for n in range(1, 9) for _ in range(2)]
    assert 0 not in EvictionPool(f"lfu:aging=0,{PLAIN}", 2, 10).play(string)
    assert 0 in EvictionPool(f"lfu:aging=1,{PLAIN}", 2, 10).play(string)


# ---------------------------------------------------------------- all of them: the queue and the hint
@pytest.mark.parametrize("name", [*QUEUE_BASED, *INFORMED])
def test_the_queue_goes_last_and_from_its_back(name):
    pool = EvictionPool(name, 9, 4)
    for c in range(4):
        pool.use(c, 2)
    pool.wait(0)
    pool.wait(1)
    assert pool.victim_order()[-2:] == [1, 0]
    idle = {"idle_s": 1e6, "recency": 1, "residual_s": 1e6, "p_end": 1, "context": 1, "tokens": 1e6,
            "useful": 1e6}
    assert score(make("eviction", name), **idle) > score(make("eviction", name), waiting=1, **idle)


@pytest.mark.parametrize("name", [*QUEUE_BASED, *INFORMED])
def test_what_ended_goes_first(name):
    pool = EvictionPool(name, 9, 4)
    pool.use(0, 2)
    pool.use(1, 2)
    pool.use(2, 2, ended=True)
    assert pool.victim_order()[0] == 2


@pytest.mark.parametrize("name", [*QUEUE_BASED, "tail-lru"])
def test_the_published_form_knows_neither(name):
    pool = EvictionPool(f"{name}:{PLAIN}", 9, 3)
    for c in range(3):
        pool.use(c, 2, ended=c == 2)
    before = pool.victim_order()
    pool.chains[0, ch.WAITING] = 1
    pool.chains[2, ch.ENDED] = 0
    assert pool.victim_order() == before


def test_a_preempted_request_is_one_use():
    """Chain 0 begins, is preempted and begins again: one use, as chain 1's."""
    for name, place in (("lfu", lfu.F), ("greedy-dual", greedy_dual.F), ("s3-fifo", s3_fifo.HITS), ("arc", arc.LIST)):
        pool = EvictionPool(name, 9, 3)
        pool.use(0, preempted=True)
        pool.use(0)
        pool.use(1)
        assert pool.mine(0)[place] == pool.mine(1)[place], name
        pool.use(0)
        assert pool.mine(0)[place] == pool.mine(1)[place] + 1, name


def test_what_goes_for_its_end_does_not_age_the_others():
    """Chain 0 ended; it was dear. Were L to rise to its H, chain 1, dear too, would be as good as a newcomer."""
    for hint, base in ((1, 0.0), (0, 1.0)):
        pool = EvictionPool(f"greedy-dual:hint={hint},frequency=0,fixed=1,linear=0,square=0", 2, 4)
        pool.use(0, ended=True)
        pool.use(1)
        assert pool.use(2) == [(0, 1)]
        assert pool.here()[greedy_dual.L - greedy_dual.L] == base


@pytest.mark.parametrize("spec", ["arc:protect=0.5", "lfu:aging=2", "s3-fifo:hint=7", "continuum:by_size=0.1"])
def test_switches_are_0_or_1(spec):
    with pytest.raises(UserError, match="neither 0 nor 1"):
        make("eviction", spec)


def test_greedy_dual_needs_a_cost():
    with pytest.raises(UserError, match="all 0"):
        make("eviction", "greedy-dual:fixed=0,linear=0,square=0")
