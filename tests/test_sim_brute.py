"""Bélády against brute force, on thousands of cases small enough to try every choice of victims.

The prefix cache: overlapping and preempted requests, shared texts, branches, sub-agents, hashes; blocks of running
requests stay, a block goes only after those that continue it. Unit blocks: every string of a size, and random ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_strings import BLOCK, NaiveString, random_reference, random_trace

from saga_rl.policies.registry import make
from saga_rl.sim.reference import Reference
from saga_rl.sim.replay import play
from saga_rl.sim.script import prepare
from saga_rl.sim.unit import next_uses, play_uses

CASES = 3000
SHAPES = {
    "plain": {"sessions": 4},
    "hashes": {"sessions": 3, "hashes": True},
    "branches": {"sessions": 2, "steps": 6},
    "aligned": {"sessions": 3, "aligned": True},
}


def _case(seed: int, shape: str, **kwargs) -> Reference:
    return random_reference(random_trace(seed, **SHAPES[shape]), seed, **kwargs)


def _compare(reference: Reference) -> tuple[int, int, int]:
    """(Bélády's blocks computed again, LRU's, the optimum's), after checking the bound as docs/bound.md states it."""
    prepared = prepare(reference, reference.kv_tokens)
    assert prepared.clipped_blocks == 0
    belady, lru = (play(prepared, make("eviction", name)).recomputed_tokens // BLOCK for name in ("belady", "lru"))
    optimum = NaiveString(reference).optimum() // BLOCK
    assert optimum <= belady <= min(optimum + prepared.capped_lookups, lru)
    assert belady == optimum or prepared.capped_lookups
    return belady, lru, optimum


@pytest.mark.parametrize("shape", SHAPES)
def test_belady_of_the_prefix_cache_is_the_optimum(shape):
    """Exact wherever no lookup is capped, within a block for each that is. Enough cases must bite: something must be
    computed again, and LRU must do worse."""
    lossy = worse = 0
    for seed in range(CASES // len(SHAPES)):
        belady, lru, _ = _compare(_case(10_000 + seed, shape, slack=seed % 2))
        lossy += belady > 0
        worse += lru > belady
    assert lossy > 40 and worse > 30


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from(sorted(SHAPES)), st.integers(0, 4))
def test_belady_of_the_prefix_cache_is_the_optimum_where_hypothesis_looks(seed, shape, slack):
    _compare(_case(seed, shape, slack=slack))


def _least_misses(blocks: tuple[int, ...], capacity: int) -> int:
    """Every set of cached blocks that can be reached (as bits), with the least misses on the way to it."""
    reached = {0: 0}
    for b in blocks:
        after: dict[int, int] = {}
        for cached, missed in reached.items():
            if cached >> b & 1:
                options = [cached]
            elif cached.bit_count() < capacity:
                options, missed = [cached | 1 << b], missed + 1
            else:
                options = [cached & ~(1 << v) | 1 << b for v in range(cached.bit_length()) if cached >> v & 1]
                missed += 1
            for option in options:
                after[option] = min(missed, after.get(option, missed))
        reached = after
    return min(reached.values())


def _strings(length: int, kinds: int) -> Iterator[tuple[int, ...]]:
    """Every string of `length` requests for at most `kinds` blocks, up to the blocks' names."""
    def extend(head: tuple[int, ...], used: int) -> Iterator[tuple[int, ...]]:
        if len(head) == length:
            yield head
            return
        for b in range(min(used + 1, kinds)):
            yield from extend((*head, b), max(used, b + 1))
    yield from extend((), 0)


def _check_unit(blocks: tuple[int, ...], capacity: int) -> tuple[int, int]:
    uses = next_uses(np.array(blocks))
    belady, lru = play_uses(uses, capacity, "belady")[0], play_uses(uses, capacity, "lru")[0]
    assert belady == _least_misses(blocks, capacity) <= lru, (blocks, capacity)
    return belady, lru


def test_unit_belady_is_the_optimum_on_every_string_of_eight_requests():
    count = worse = 0
    for blocks in _strings(8, 4):
        for capacity in range(1, 4):
            belady, lru = _check_unit(blocks, capacity)
            count += 1
            worse += lru > belady
    assert count == 3 * 2795 and worse > 1000  # 2795 = partitions of 8 requests into at most 4 blocks


def test_unit_belady_is_the_optimum_on_random_strings():
    rng = np.random.default_rng(0)
    worse = 0
    for _ in range(CASES):
        blocks = tuple(rng.integers(0, rng.integers(2, 8), rng.integers(1, 20)).tolist())
        belady, lru = _check_unit(blocks, int(rng.integers(1, 6)))
        worse += lru > belady
    assert worse > 500


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=24).map(tuple), st.integers(1, 6))
def test_unit_belady_is_the_optimum_where_hypothesis_looks(blocks, capacity):
    _check_unit(blocks, capacity)
