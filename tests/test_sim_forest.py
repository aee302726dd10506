"""The prefix forest says of every two steps which leading blocks they share, exactly as their tokens do."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_strings import BLOCK, naive_blocks, random_trace

from saga_rl.aeg.forest import Forest, build_forest
from saga_rl.sim.openloop.script import refine


def expand(forest: Forest, step: int) -> list[tuple[int, int]]:
    """(segment, offset) of each full block of the step's context."""
    out: list[tuple[int, int]] = []
    for seg in forest.path[forest.path_offsets[step]:forest.path_offsets[step + 1]]:
        assert forest.seg_start[seg] == len(out)
        out += [(int(seg), k) for k in range(forest.seg_blocks[seg])]
    return out[:forest.context_blocks[step]]


def assert_same_sharing(forest: Forest, naive: list[list]) -> None:
    paths = [expand(forest, i) for i in range(len(naive))]
    as_forest: dict = {}
    as_naive: dict = {}
    for path, ids in zip(paths, naive, strict=True):
        assert len(path) == len(ids)
        for place, block in zip(path, ids, strict=True):
            assert as_forest.setdefault(place, block) == block, "one place of the forest holds two contents"
            assert as_naive.setdefault(block, place) == place, "one content lies at two places of the forest"


def assert_well_formed(forest: Forest) -> None:
    for seg, up in enumerate(forest.seg_parent):
        assert up < seg
        assert forest.seg_start[seg] == (0 if up < 0 else forest.seg_start[up] + forest.seg_blocks[up])
    for i in range(len(forest.chain)):
        path = forest.path[forest.path_offsets[i]:forest.path_offsets[i + 1]]
        assert [int(forest.seg_parent[s]) for s in path] == [-1, *path[:-1].tolist()][:len(path)]


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32))
def test_lengths_give_the_blocks_that_tokens_give(seed):
    trace = random_trace(seed, sessions=4, steps=6)
    forest = build_forest(trace, BLOCK)
    assert_well_formed(forest)
    assert_same_sharing(forest, naive_blocks(trace))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32))
def test_hashes_give_the_blocks_that_tokens_give(seed):
    trace = random_trace(seed, sessions=4, steps=6, hashes=True)
    forest = build_forest(trace, BLOCK)
    assert_well_formed(forest)
    assert_same_sharing(forest, naive_blocks(trace))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.data())
def test_cuts_change_no_block(seed, data):
    trace = random_trace(seed)
    forest = build_forest(trace, BLOCK)
    long = np.flatnonzero(forest.seg_blocks > 1).tolist()
    cuts = [(s, data.draw(st.integers(1, int(forest.seg_blocks[s]) - 1))) for s in long for _ in range(2)]
    fine = refine(forest, np.array(cuts, np.int64).reshape(-1, 2))
    assert len(fine.seg_parent) == len(forest.seg_parent) + len(set(cuts))
    assert_well_formed(fine)
    assert_same_sharing(fine, naive_blocks(trace))


def test_a_prompt_never_hits_its_last_token():
    forest = build_forest(random_trace(5), BLOCK)
    trace = random_trace(5)
    assert (forest.hit_blocks * BLOCK < trace.steps.prompt_tokens).all()
