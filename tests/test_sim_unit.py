"""Unit-block replay: hit for hit what plain Python does, and miss for miss what libCacheSim counts."""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_strings import BLOCK, NaiveString, naive_blocks, random_reference, random_trace

from saga_rl.aeg.generators import generate
from saga_rl.aeg.importers import import_trace
from saga_rl.errors import UserError
from saga_rl.policies.registry import make
from saga_rl.sim.config import SimConfig
from saga_rl.sim.openloop.record import record_reference
from saga_rl.sim.openloop.replay import play
from saga_rl.sim.openloop.script import prepare
from saga_rl.sim.openloop.unit import belady_misses, block_string, hits, lru_misses, misses, next_uses, play_uses
from saga_rl.sim.reference import END

ROOT = Path(__file__).resolve().parents[1]
POLICIES = ("lru", "belady")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The benchmark: what it times is what is compared here."""
    pytest.importorskip("libcachesim")
    spec = importlib.util.spec_from_file_location("replay_speed", ROOT / "benchmarks" / "replay_speed.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain_lru(blocks: list[int], capacity: int) -> list[bool]:
    cache: OrderedDict[int, None] = OrderedDict()
    out = []
    for b in blocks:
        out.append(b in cache)
        cache[b] = None
        cache.move_to_end(b)
        if len(cache) > capacity:
            cache.popitem(last=False)
    return out


def plain_belady(blocks: list[int], capacity: int) -> list[bool]:
    next_use, out = {}, []
    for t, b in enumerate(blocks):
        out.append(b in next_use)
        if b not in next_use and len(next_use) == capacity:
            del next_use[max(next_use, key=next_use.__getitem__)]
        next_use[b] = next((k for k in range(t + 1, len(blocks)) if blocks[k] == b), len(blocks) + b)
    return out


def agree(bench: ModuleType, folder: Path, blocks: np.ndarray, capacities: list[int]) -> None:
    """Equal miss counts under both policies at every capacity."""
    uses, file = next_uses(blocks), folder / "string.oracleGeneral"
    bench.write_oracle_general(file, blocks, uses)
    for capacity in capacities:
        for policy in POLICIES:
            theirs, _ = bench.libcachesim(file, len(blocks), capacity, policy, 14)
            assert play_uses(uses, capacity, policy)[0] == theirs, (policy, capacity)
            assert misses(blocks, capacity, policy) == theirs


strings = st.integers(1, 40).flatmap(lambda kinds: st.lists(st.integers(0, kinds), min_size=1, max_size=120))


@settings(max_examples=300, deadline=None)
@given(strings, st.integers(1, 45))
def test_hits_are_those_of_plain_python(blocks, capacity):
    assert hits(blocks, capacity, "lru").tolist() == plain_lru(blocks, capacity)
    assert hits(blocks, capacity, "belady").tolist() == plain_belady(blocks, capacity)


@settings(max_examples=300, deadline=None)
@given(strings, st.integers(1, 45), st.integers(-2**62, 2**62), st.sampled_from([1, 7, 2**20 + 7, 2**40, 2**55]))
def test_names_are_only_names(blocks, capacity, shift, factor):
    renamed = [(b * factor + shift + 2**63) % 2**64 - 2**63 for b in blocks]
    for policy in POLICIES:
        assert np.array_equal(hits(blocks, capacity, policy), hits(renamed, capacity, policy))
    unsigned = np.array([r % 2**64 for r in renamed], np.uint64)
    assert lru_misses(unsigned, capacity) == lru_misses(blocks, capacity)
    assert np.array_equal(next_uses(unsigned), next_uses(np.array(blocks, np.int16)))


@pytest.mark.parametrize("spread", [1, 2**41 + 1])
def test_next_uses_of_a_long_string_of_near_and_of_far_names(spread):
    """Long enough that the hash table grows more than once."""
    blocks = np.random.default_rng(0).integers(0, 30_000, 90_000) * spread
    order = np.argsort(blocks, kind="stable")
    want = np.full(len(blocks), len(blocks))
    same = blocks[order][1:] == blocks[order][:-1]
    want[order[:-1][same]] = order[1:][same]
    assert np.array_equal(next_uses(blocks), want)


@settings(max_examples=200, deadline=None)
@given(blocks=strings, capacity=st.integers(1, 45))
def test_libcachesim_counts_the_same_on_random_strings(bench, tmp_path_factory, blocks, capacity):
    agree(bench, tmp_path_factory.getbasetemp(), np.array(blocks, np.int64), [capacity])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), exponent=st.floats(0.5, 1.6), far=st.booleans())
def test_libcachesim_counts_the_same_on_zipf(bench, tmp_path_factory, seed, exponent, far):
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, 501) ** exponent
    names = rng.integers(1, 2**63 - 1, 500) if far else np.arange(500)
    blocks = names[rng.choice(500, 20_000, p=share / share.sum())]
    assert belady_misses(blocks, 50) < lru_misses(blocks, 50)
    agree(bench, tmp_path_factory.getbasetemp(), blocks, [1, 2, 50, 499, 600])


@pytest.mark.parametrize("noise", [0, 7])
def test_libcachesim_counts_the_same_on_loops(bench, tmp_path, noise):
    """The worst case of LRU: every request of a loop that is one block too long misses."""
    blocks = np.tile(np.arange(65), 40)
    if noise:
        blocks[::noise] = np.random.default_rng(1).integers(0, 200, len(blocks[::noise]))
    else:
        assert lru_misses(blocks, 64) == len(blocks) and belady_misses(blocks, 64) < len(blocks) // 10
    agree(bench, tmp_path, blocks, [1, 30, 63, 64, 65, 66, 150])


@pytest.fixture(scope="module")
def reference():
    return record_reference(generate("swe-bench", 3, sessions=8), SimConfig(kv_tokens=150_000, population=4))


def test_libcachesim_counts_the_same_on_swe_bench(bench, tmp_path, reference):
    blocks = block_string(reference)
    pool = reference.kv_tokens // reference.forest.block_tokens
    assert len(np.unique(blocks)) < belady_misses(blocks, pool) < lru_misses(blocks, pool) < len(blocks)
    agree(bench, tmp_path, blocks, [pool // 8, pool, 3 * pool])


@pytest.mark.parametrize("block_tokens, limit", [(512, None), (16, 1500)])
def test_libcachesim_counts_the_same_on_mooncake(bench, tmp_path, shared_data, block_tokens, limit):
    trace = import_trace("mooncake", shared_data / "mooncake" / "conversation_trace.jsonl.gz", limit=limit)
    blocks = block_string(trace, block_tokens)
    few = len(np.unique(blocks)) // 50
    assert len(np.unique(blocks)) < belady_misses(blocks, few) < lru_misses(blocks, few) < len(blocks)
    agree(bench, tmp_path, blocks, [few, 5 * few])


def test_libcachesim_counts_the_same_on_weka(bench, tmp_path, shared_data):
    trace = import_trace("weka", shared_data / "weka_claude_code" / "traces.jsonl.gz", limit=5)
    blocks = block_string(trace, 64)
    agree(bench, tmp_path, blocks, [len(np.unique(blocks)) // 10, len(np.unique(blocks)) // 2])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_a_reference_asks_for_the_blocks_of_its_events(seed):
    reference = random_reference(random_trace(seed, hashes=seed % 3 == 0), seed)
    want, begun = [], {}
    for kind, step, path, _, _, _ in NaiveString(reference).events:
        want += path[begun.pop(step):] if kind == END else path
        if kind != END:
            begun[step] = len(path)
    got = block_string(reference).tolist()
    assert len(got) == len(want) and len(set(zip(got, want, strict=True))) == len(set(got)) == len(set(want))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_unit_belady_is_below_the_prefix_cache(seed):
    """What the prefix cache does is one way to serve the unit string, so that no fewer misses than unit Bélády's are
    possible with prefixes, pinned blocks and tails first. Its misses: blocks first seen, blocks computed again, and
    known ones outside a lookup (past its limit, or generated a second time)."""
    reference = random_reference(random_trace(seed, sessions=4), seed)
    naive = NaiveString(reference)
    outside = sum(b in known and b not in looked_up for (_, _, path, looked_up, _, _), known
                  in zip(naive.events, naive.known_before(), strict=True) for b in path)
    blocks = block_string(reference)
    got = play(prepare(reference, reference.kv_tokens), make("eviction", "belady")).recomputed_tokens // BLOCK
    assert belady_misses(blocks, naive.pool) <= len(set(blocks.tolist())) + got + outside


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_a_trace_asks_in_order_of_its_recorded_times(seed):
    trace = random_trace(seed, hashes=seed % 3 == 0)
    times = np.random.default_rng(seed).integers(0, 5, trace.n_steps).astype(np.float64)
    naive = naive_blocks(trace)
    want = [b for _, i in sorted(zip(times, range(trace.n_steps), strict=True)) for b in naive[i]]
    got = block_string(replace(trace, steps=replace(trace.steps, start_s=times)), BLOCK).tolist()
    assert len(got) == len(want) and len(set(zip(got, want, strict=True))) == len(set(got)) == len(set(want))


def test_an_empty_string_and_a_cache_for_everything():
    assert misses([], 3, "lru") == misses([], 3, "belady") == 0
    blocks = np.random.default_rng(0).integers(0, 9, 100)
    assert {misses(blocks, capacity, p) for capacity in (9, 10**18) for p in POLICIES} == {9}


@pytest.mark.parametrize("blocks, capacity, policy, says", [
    ([1, 2], 0, "lru", "capacity: is 0; give at least 1 block"), ([1, 2], -3, "belady", "capacity: is -3"),
    ([1, 2], 1.5, "lru", "capacity: is 1.5; give a whole number"), ([1.0, 2.0], 1, "lru", "array of float64"),
    ([[1, 2]], 1, "belady", "with 2 dimensions"), (["a"], 1, "lru", "flat array of integers"),
    ([True, False], 1, "lru", "array of bool"), ([1, 2], 1, "lur", "no unit-block policy named 'lur'.*lru"),
])
def test_bad_input_is_told(blocks, capacity, policy, says):
    with pytest.raises(UserError, match=says):
        misses(blocks, capacity, policy)


def test_a_trace_without_times_has_no_order():
    with pytest.raises(UserError, match="record a reference"):
        block_string(random_trace(1))
    with pytest.raises(UserError, match="block_tokens: is 0"):
        block_string(random_trace(1), 0)
