"""The simulator's prefix cache against vLLM's own `KVCacheManager` and `BlockPool` (stock LRU queue): same hits, same
victims in the same order, same blocks left, move by move, on random histories and on real traces."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sim_strings import BLOCK, random_trace
from vllm_twin import contexts
from vllm_twin_caches import VllmCache
from vllm_twin_limits import whole_holds
from vllm_twin_play import Play

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.forest import build_forest
from saga_rl.aeg.generators import generate
from saga_rl.aeg.importers import import_trace
from saga_rl.aeg.scale import scale_lengths
from saga_rl.aeg.trace import Trace, TraceMeta


def test_random_histories():
    """Chains, branches, sub-agents, shared texts, content known by hash; chunks and answers of any size."""
    seen: Counter[str] = Counter()

    @settings(max_examples=400, deadline=None)
    @given(st.integers(0, 2**32), st.booleans())
    def history(seed, hashes):
        rng = random.Random(seed)
        trace = random_trace(seed, sessions=5, steps=6, hashes=hashes)
        assume(not len(whole_holds(build_forest(trace, BLOCK))))
        longest = int((trace.steps.prompt_tokens + trace.steps.output_tokens).max())
        play = Play(trace, -(-longest // BLOCK) + rng.randint(0, 12), BLOCK)
        for _ in range(400):
            if not play.act(rng.randrange):
                break
            play.compare_resident()
        seen.update(play.count)

    history()
    assert min(seen.values()) > 100, seen


def by_time(trace: Trace, steps: int) -> list[int]:
    """The first `steps` steps in order of when they were recorded, or else of arrival and what comes before."""
    t = trace.steps
    at = t.start_s
    if np.isnan(at).any():
        each = t.tool_s + t.think_s + 0.02 * t.output_tokens
        before = np.cumsum(each) - each
        at = (trace.sessions.arrival_s - before[trace.session_offsets[:-1]])[t.session] + before
    return np.argsort(at, kind="stable").tolist()[:steps]


def assert_agree(trace: Trace, steps: int, pool_blocks: int, width: int) -> Play:
    """Serve the trace's first `steps` steps in chunks of 2,048 tokens, answers in bursts of 64, `width` at a time."""
    assert not len(whole_holds(build_forest(trace)))
    play = Play(trace, pool_blocks, 16)
    play.serve(by_time(trace, steps), width, chunk=2048, answer=64)
    play.compare_resident()
    assert len(play.done) == steps
    assert play.kept_out["aligned"] == 0
    assert play.count["evicted"] > 2 * pool_blocks
    assert play.count["hit"] > pool_blocks / 4
    return play


@pytest.mark.parametrize(("width", "preempts"), [(1, False), (8, True)])
@pytest.mark.parametrize("name", ["swe-bench", "webarena"])
def test_generated_sessions(name, width, preempts):
    """Eight sessions with all lengths an eighth, in a pool of 1.5 times the longest context."""
    trace = scale_lengths(generate(name, 3, sessions=8, rate_per_min=30), 1 / 8)
    longest = int((trace.steps.prompt_tokens + trace.steps.output_tokens).max())
    play = assert_agree(trace, trace.n_steps, 3 * longest // 32, width)
    assert (play.count["preempted"] > 0) == preempts


@pytest.mark.parametrize(("file", "limit", "pool_blocks", "width"), [
    ("conversation", 400, 8_000, 1), ("conversation", 400, 8_000, 8), ("synthetic", 400, 9_000, 8)])
def test_mooncake(shared_data, file, limit, pool_blocks, width):
    """The first 400 requests of each trace, in the order of their times."""
    trace = import_trace("mooncake", shared_data / "mooncake" / f"{file}_trace.jsonl.gz", limit=limit)
    assert_agree(trace, trace.n_steps, pool_blocks, width)


@pytest.mark.parametrize("width", [1, 8])
def test_weka(shared_data, width):
    """The first four sessions, sub-agents among them, with all lengths an eighth."""
    trace = import_trace("weka", shared_data / "weka_claude_code" / "traces.jsonl.gz", limit=4, rate_per_min=60.0)
    assert_agree(scale_lengths(trace, 1 / 8), trace.n_steps, 4_000, width)


def test_tokens_and_forest_name_the_same_blocks():
    """What the twins' contents are worth: a shared text, a prefix of another step, hashes in whole blocks."""
    trace = build_trace(TraceMeta("c", "generated:test", hash_block_tokens=4), [
        SessionSpec("a", 0.0, [StepSpec(12, 3, shared_prefix="policy", prefix_tokens=4, hashes=[7, 8])]),
        SessionSpec("b", 1.0, [StepSpec(11, 3, shared_prefix="policy", prefix_tokens=4, hashes=[7, 8])]),
    ])
    one, two = contexts(trace, BLOCK)
    assert np.array_equal(one[:8], two[:8])
    assert not np.any(one[8:14] == two[8:14])
    both = VllmCache(trace, 20, BLOCK)
    both.start(0, 20)
    assert both.start(1, 20) == 2
