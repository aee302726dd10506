"""Where the simulator's cache is not vLLM's: each case small, and found by what keeps it out elsewhere."""

from __future__ import annotations

from vllm_twin_caches import SimCache, VllmCache
from vllm_twin_limits import aligned_repeats, foreseen, whole_holds
from vllm_twin_play import Play

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.forest import build_forest
from saga_rl.aeg.trace import Trace, TraceMeta

BLOCK = 4


def one_session(*steps: StepSpec) -> Trace:
    return build_trace(TraceMeta("small", "generated:test"), [SessionSpec("s", 0.0, list(steps))])


def both(trace: Trace, blocks: int) -> tuple[SimCache, VllmCache]:
    return SimCache(trace, blocks, BLOCK), VllmCache(trace, blocks, BLOCK)


def test_a_prompt_cached_to_its_end_at_a_block_boundary_is_copied_by_vllm():
    """Eight tokens, two blocks, asked twice: the second request hits one block, computes the other one again, and vLLM
    then caches it twice; the simulator computes it in place."""
    trace = one_session(StepSpec(8, 2), StepSpec(8, 2, (0,), prefix_step=0, prefix_tokens=8))
    assert aligned_repeats(trace, BLOCK) == [1]
    play = Play(trace, 8, BLOCK)
    play.serve([0], 1, 8, 1)
    assert not play.start(1, 8)
    assert play.kept_out == {"aligned": 1, "together": 0}
    assert play.vllm.start(1, 8) == play.sim.start(1, 8) == 1
    assert play.vllm.watch.copies == [(0, 1)]
    assert play.sim.copies == 0
    play.vllm.end(1, True)
    play.sim.end(1, True)
    assert play.sim.resident() == play.vllm.watch.resident()
    cached = [b for b in play.vllm.kv.block_pool.blocks if b.block_hash is not None]
    assert (len(cached), len(play.sim.resident())) == (3, 2)


def test_a_request_holds_what_another_chain_added_to_its_segment():
    """Step 0 has one block; step 1 of the same agent will go on to two, so the two are one segment. A sub-agent that
    shares both runs before step 1: while step 0 runs, the simulator holds the second block for it."""
    trace = one_session(StepSpec(5, 1), StepSpec(9, 1, (0,), prefix_step=0, prefix_tokens=5),
                        StepSpec(10, 1, agent=1, prefix_step=1, prefix_tokens=9))
    assert whole_holds(build_forest(trace, BLOCK)).tolist() == [0]
    available = []
    for side in both(trace, 8):
        side.start(0, 5)
        side.start(2, 10)
        side.end(2, True)
        available.append(side.available)
    assert available == [5, 6]


def test_an_answer_that_is_cached_before_it_is_given_is_computed_once_more():
    """A sub-agent's prompt begins with part of step 0's answer, for which it need not wait."""
    trace = one_session(StepSpec(5, 4), StepSpec(9, 1, agent=1, prefix_step=0, prefix_tokens=8))
    assert foreseen(trace, BLOCK) == [1]
    for side in both(trace, 8):
        side.start(1, 9)
        side.end(1, True)
        assert side.start(0, 5) == 1
        side.sample(0, 3)
        side.grow(0, 3)
        copies = side.copies if isinstance(side, SimCache) else len(side.watch.copies)
        assert copies == (0 if isinstance(side, SimCache) else 1), "the simulator computes it in place"
