"""The engine model against vLLM's real `Scheduler` in closed loop, iteration by iteration: the same requests with the
same tokens in the same order at the same times, the same preemptions and hits, the same blocks left at the end."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_strings import BLOCK, random_trace
from vllm_twin import named, resident_blocks
from vllm_twin_engine import SchedulerConfig, Served, Turn, VllmEngine
from vllm_twin_limits import aligned_repeats, comparable, foreseen

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.generators import generate
from saga_rl.aeg.importers import import_trace
from saga_rl.aeg.scale import scale_lengths
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cluster import Cluster, simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import CostProfile
from saga_rl.sim.iteration_log import iteration_log

STOCK = replace(preset("lru"), placement=make("placement", "sticky"))
PROFILE = CostProfile("unit", base_s=0.25, per_prefill_token_s=0.013, per_kv_token_s=0.0017, per_seq_s=0.11,
                      per_attn_s=0.0003, per_context_s=0.0002, max_batched_tokens=48)


def ours(trace: Trace, config: SimConfig) -> list[Turn]:
    return [Turn(i.start_s, i.seconds, list(i.tokens), list(i.preempted))
            for i in iteration_log(trace, config, STOCK)]


def assert_same(trace: Trace, config: SimConfig) -> tuple[VllmEngine, Served]:
    """Every number equal, seconds too: both sides add the same terms in the same order."""
    engine = VllmEngine(trace, config)
    served = engine.run()
    mine = ours(trace, config)
    for k, (a, b) in enumerate(zip(mine, served.turns, strict=False)):
        assert a == b, f"iteration {k}"
    assert len(mine) == len(served.turns)
    steps, n = simulate(trace, config, STOCK, slo=False).steps, range(trace.n_steps)
    assert steps["first_token_s"].tolist() == [served.first_s[i] for i in n]
    assert steps["done_s"].tolist() == [served.done_s[i] for i in n]
    assert steps["cached_tokens"].tolist() == [served.cached_tokens[i] for i in n]
    assert steps["preemptions"].tolist() == [served.preemptions[i] for i in n]
    cluster = Cluster(trace, config, STOCK)
    cluster.advance()
    pool = cluster.world.pool
    assert named(resident_blocks(pool)) == engine.watch.resident()
    assert pool.n[0, kv.EVICTED] == len(engine.watch.victims)
    assert not engine.watch.copies
    return engine, served


def pressed(seed: int, good) -> tuple[random.Random, Trace]:
    """The first random trace from `seed` on that is `good`: sessions close together, answers of up to 25 tokens."""
    while True:
        rng = random.Random(seed)
        trace = random_trace(seed, sessions=7, steps=6, hashes=seed % 3 == 0)
        longer = trace.steps.output_tokens + np.array([rng.choice([0, 3, 20]) for _ in range(trace.n_steps)], np.int64)
        sessions = replace(trace.sessions, arrival_s=trace.sessions.arrival_s * rng.choice([0.0, 0.1, 1.0]))
        trace = replace(trace, sessions=sessions, steps=replace(trace.steps, output_tokens=longer))
        if good(trace):
            return rng, trace
        seed += 1


def tight(rng: random.Random, trace: Trace) -> SimConfig:
    """A pool little larger than the longest context, a small token budget, few slots."""
    longest = int((trace.steps.prompt_tokens + trace.steps.output_tokens).max())
    return SimConfig(kv_tokens=BLOCK * (-(-longest // BLOCK) + rng.randint(0, 12)), block_tokens=BLOCK,
                     profile=PROFILE, max_num_seqs=rng.randint(1, 8), max_batched_tokens=rng.choice([8, 13, 48]),
                     reserve_full_prompt=rng.random() < 0.5)


def test_random_sessions():
    seen: Counter[str] = Counter()

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, 2**32))
    def sessions(seed):
        rng, trace = pressed(seed, lambda t: comparable(t, BLOCK))
        config = tight(rng, trace)
        engine, served = assert_same(trace, config)
        seen["preempted"] += sum(served.preemptions.values())
        seen["evicted"] += len(engine.watch.victims)
        seen["hit"] += sum(served.cached_tokens.values()) // BLOCK
        seen["budget used up"] += sum(sum(n for _, n in t.tokens) == config.batched_tokens for t in served.turns)
        seen["slots used up"] += sum(len(t.tokens) == config.max_num_seqs for t in served.turns)

    sessions()
    assert len(seen) == 5
    assert min(seen.values()) > 50, seen


@pytest.mark.parametrize("name", ["swe-bench", "webarena"])
@pytest.mark.parametrize(("contexts", "seqs"), [(1.1, 16), (2.5, 3)])
def test_generated_sessions(name, contexts, seqs):
    assert evicted(name, contexts, seqs) > 2


@pytest.mark.parametrize(("contexts", "seqs"), [(1.1, 16), (2.5, 3)])
def test_generated_retries(contexts, seqs):
    """Agents that go back to an earlier prompt."""
    assert evicted("retry", contexts, seqs) > 0.5


@pytest.mark.parametrize("seqs", [3, 16])
def test_generated_trees(seqs):
    """Agents that go on from one context side by side, with room for all: under pressure a request that ends within a
    segment of others' holds more blocks here (`vllm_twin_limits.whole_holds`)."""
    trace = scale_lengths(generate("tree-of-thought", 5, sessions=6, rate_per_min=60), 1 / 16, time_factor=1 / 16)
    engine, served = assert_same(trace, SimConfig(kv_tokens=400_000, max_num_seqs=seqs, max_batched_tokens=256))
    forks = np.flatnonzero((trace.steps.agent > 0) & (trace.steps.prefix_step >= 0))
    assert not engine.watch.victims and min(served.cached_tokens[i] for i in forks.tolist()) > 0


def evicted(name, contexts, seqs):
    """Pools that are evicted by ten sessions with lengths and times a sixteenth, in one of so many times the longest
    context, which go the same way on both sides."""
    trace = scale_lengths(generate(name, 5, sessions=10, rate_per_min=60), 1 / 16, time_factor=1 / 16)
    assert comparable(trace, 16)
    longest = int((trace.steps.prompt_tokens + trace.steps.output_tokens).max())
    config = SimConfig(kv_tokens=int(contexts * longest), max_num_seqs=seqs, max_batched_tokens=256,
                       profile=replace(PROFILE, base_s=0.01, per_prefill_token_s=1e-4, per_kv_token_s=1e-7,
                                       per_seq_s=1e-4, per_attn_s=1e-8, per_context_s=1e-7))
    engine, _ = assert_same(trace, config)
    return len(engine.watch.victims) / config.pool_blocks


@pytest.mark.parametrize(("fmt", "file", "limit"), [
    ("mooncake", "mooncake/conversation_trace.jsonl.gz", 500), ("mooncake", "mooncake/synthetic_trace.jsonl.gz", 500),
    ("weka", "weka_claude_code/traces.jsonl.gz", 4)])
def test_real_sessions(shared_data, fmt, file, limit):
    """Lengths and times a sixteenth, pool 1.2 times the longest context, on the hardware profile that ships."""
    trace = scale_lengths(import_trace(fmt, shared_data / file, limit=limit), 1 / 16, time_factor=1 / 16)
    assert comparable(trace, 16)
    longest = int((trace.steps.prompt_tokens + trace.steps.output_tokens).max())
    engine, _ = assert_same(trace, SimConfig(kv_tokens=int(1.2 * longest), max_num_seqs=16, max_batched_tokens=512))
    assert len(engine.watch.victims) > 0


# ---------------------------------------------------------------- what deviates, as small as it gets
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_vllm_keeps_a_second_copy_of_nothing_but_an_aligned_repeated_prompts_last_block(seed):
    """Two running requests never compute the same block: an unfinished prefill takes the rest of the token budget, so
    nobody is let in behind it before all of its prompt's blocks are allocated, and with that published."""
    rng, trace = pressed(seed, lambda t: not foreseen(t, BLOCK))
    engine = VllmEngine(trace, tight(rng, trace))
    engine.run()
    prompt = trace.steps.prompt_tokens
    ends = {engine.places.path(i)[int(prompt[i]) // BLOCK - 1] for i in aligned_repeats(trace, BLOCK)}
    assert set(engine.watch.copies) <= ends


def test_settings_of_vllm_that_the_engine_model_takes_for_granted():
    """Defaults of the installed version."""
    options = SchedulerConfig.default_factory()
    assert (options.policy, options.watermark, options.long_prefill_token_threshold) == ("fcfs", 0.0, 0)
    later = ("max_num_active_seqs", "max_num_scheduled_tokens")  # the oldest versions have no such limits
    assert [getattr(options, name, None) for name in later] == [None, None]
    assert options.enable_chunked_prefill
    assert options.scheduler_reserve_full_isl


def test_a_prompt_is_held_back_until_all_of_it_fits():
    """Six blocks of four tokens. While a request that will hold 9 tokens runs, one of 20 comes. vLLM's default waits;
    with `scheduler_reserve_full_isl` off its first chunk is let in, and preempted later."""
    trace = build_trace(TraceMeta("two", "generated:test"), [
        SessionSpec("a", 0.0, [StepSpec(6, 4)]), SessionSpec("b", 0.5, [StepSpec(20, 2)])])
    config = SimConfig(kv_tokens=24, block_tokens=4, profile=PROFILE, max_batched_tokens=8)
    _, waiting = assert_same(trace, config)
    assert waiting.preemptions == {0: 0, 1: 0}
    assert [len(t.tokens) for t in waiting.turns] == [1] * 8
    _, served = assert_same(trace, replace(config, reserve_full_prompt=False))
    assert served.preemptions == {0: 0, 1: 1}


@pytest.mark.parametrize("answer", [1, 4])
def test_a_prompt_that_is_cached_to_its_end_fits_where_it_fitted_before(answer):
    """Four blocks of four tokens; twelve tokens asked twice: the last block is computed anew, in place."""
    trace = build_trace(TraceMeta("again", "generated:test"), [
        SessionSpec("a", 0.0, [StepSpec(12, 1), StepSpec(12, answer, (0,), prefix_step=0, prefix_tokens=12)])])
    config = SimConfig(kv_tokens=16, block_tokens=4, profile=PROFILE, max_batched_tokens=8)
    served = VllmEngine(trace, config).run()
    assert ours(trace, config) == served.turns
    assert simulate(trace, config, STOCK, slo=False).steps["done_s"].tolist() == [served.done_s[0], served.done_s[1]]
