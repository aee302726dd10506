"""Bélády against brute force, on thousands of cases small enough to try every choice of victims.

The prefix cache: overlapping and preempted requests, shared texts, branches, sub-agents, hashes; blocks of running
requests stay, a block goes only after those that continue it. Unit blocks: every string of a size, and random ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_strings import BLOCK, NaiveString, random_reference, random_trace

from saga_rl.aeg.forest import build_forest
from saga_rl.aeg.trace import Trace
from saga_rl.policies.registry import make
from saga_rl.sim.openloop.replay import play
from saga_rl.sim.openloop.script import prepare
from saga_rl.sim.openloop.unit import next_uses, play_uses
from saga_rl.sim.reference import END, READY, START, Reference

CASES = 6000
"""Of the prefix cache, over all shapes and crowds; half as many random strings of unit blocks."""
SHAPES = {
    "plain": {"sessions": 4},
    "hashes": {"sessions": 3, "hashes": True},
    "branches": {"sessions": 2, "steps": 6},
    "aligned": {"sessions": 3, "aligned": True},
}
CROWDS = (None, 1, 2)
"""Requests that run at once: None = any number, with preemptions. The fewer, the smaller the pool, the more is idle."""


def _case(seed: int, shape: str, slack: int, crowd: int | None) -> Reference:
    trace = random_trace(seed, **SHAPES[shape])
    return random_reference(trace, seed, slack=slack) if crowd is None else _few_at_once(trace, seed, slack, crowd)


def _few_at_once(trace: Trace, seed: int, slack: int, most: int) -> Reference:
    """A string with at most `most` requests running, on a pool `slack` blocks larger than the smallest possible."""
    rng = random.Random(seed)
    st, off = trace.steps, trace.session_offsets
    waits_for = [{int(off[st.session[i]] + p) for p in st.parents[st.parent_offsets[i]:st.parent_offsets[i + 1]]}
                 for i in range(trace.n_steps)]
    events: list[tuple[int, int, int, int]] = []
    running: list[int] = []
    begun: set[int] = set()
    while running or len(begun) < trace.n_steps:
        ready = [i for i in range(trace.n_steps) if i not in begun and waits_for[i] <= begun - set(running)]
        if ready and len(running) < most and (not running or rng.random() < 0.6):
            step = rng.choice(ready)
            prompt = int(st.prompt_tokens[step])
            events += [(READY, step, prompt, 0), (START, step, prompt, 0)]
            running.append(step)
            begun.add(step)
        else:
            step = running.pop(rng.randrange(len(running)))
            events.append((END, step, int(st.prompt_tokens[step] + st.output_tokens[step]) - 1, 1))
    kind, step_of, tokens, final = (np.array(column) for column in zip(*events, strict=True))
    whole = Reference(trace, build_forest(trace, BLOCK), 10**6, kind.astype(np.int8), step_of.astype(np.int32),
                      np.arange(len(kind), dtype=np.float64), tokens, final.astype(np.int8))
    return replace(whole, kv_tokens=(prepare(whole, 10**6).smallest_pool_blocks + slack) * BLOCK)


def _compare(reference: Reference) -> tuple[int, int, int]:
    """(Bélády's blocks computed again, LRU's, the optimum's), after checking the bound as docs/explanation/bound.md
    states it."""
    prepared = prepare(reference, reference.kv_tokens)
    assert prepared.clipped_blocks == 0
    belady, lru = (play(prepared, make("eviction", name)).recomputed_tokens // BLOCK for name in ("belady", "lru"))
    optimum = NaiveString(reference).optimum() // BLOCK
    assert optimum <= belady <= min(optimum + prepared.capped_lookups, lru)
    assert belady == optimum or prepared.capped_lookups
    return belady, lru, optimum


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_belady_of_the_prefix_cache_is_the_optimum(shape, crowd):
    """Exact wherever no lookup is capped, within a block for each that is. Enough cases must bite: something must be
    computed again, and LRU must do worse."""
    lossy = worse = 0
    for seed in range(CASES // len(SHAPES) // len(CROWDS)):
        belady, lru, _ = _compare(_case(10_000 + seed, shape, seed % 2, crowd))
        lossy += belady > 0
        worse += lru > belady
    assert lossy > 20 and worse > 20


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from(sorted(SHAPES)), st.integers(0, 4), st.sampled_from(CROWDS))
def test_belady_of_the_prefix_cache_is_the_optimum_where_hypothesis_looks(seed, shape, slack, crowd):
    _compare(_case(seed, shape, slack, crowd))


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
    for _ in range(CASES // 2):
        blocks = tuple(rng.integers(0, rng.integers(2, 8), rng.integers(1, 20)).tolist())
        belady, lru = _check_unit(blocks, int(rng.integers(1, 6)))
        worse += lru > belady
    assert worse > 500


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=24).map(tuple), st.integers(1, 6))
def test_unit_belady_is_the_optimum_where_hypothesis_looks(blocks, capacity):
    _check_unit(blocks, capacity)
