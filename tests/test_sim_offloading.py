"""The block-level model of vLLM's CPU tier, beside an independent one in plain Python."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from test_sim_cluster import PROFILE

from saga_rl.aeg.generators import generate
from saga_rl.aeg.scale import scale_lengths
from saga_rl.errors import UserError
from saga_rl.policies.presets import preset
from saga_rl.sim.cache.block_ring import ABSENT, leave, make_rings, use, use_first
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig


def test_a_ring_is_an_ordered_dictionary():
    rng = np.random.default_rng(3)
    base, after, before = make_rings(1, np.array([4, 6, 10]))
    assert base.tolist() == [0, 4, 10, 20]
    ring, plain = (after[0], before[0]), OrderedDict[int, None]()
    for b in rng.integers(0, 20, 2_000).tolist():
        if b in plain and rng.random() < 0.5:
            leave(*ring, b)
            del plain[b]
            continue
        if b in plain:
            leave(*ring, b)
        plain.pop(b, None)
        plain[b] = None
        if rng.random() < 0.2:
            use_first(*ring, b)
            plain.move_to_end(b, last=False)
        else:
            use(*ring, b)
        oldest, seen = int(after[0, 20]), []
        while oldest != 20:
            seen.append(oldest)
            oldest = int(after[0, oldest])
        assert seen == list(plain)
        assert (after[0, :20] != ABSENT).sum() == len(plain)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_tier_of_vllm_conserves_and_helps(ahead):
    trace = scale_lengths(generate("swe-bench", 5, sessions=10, rate_per_min=60), 1 / 32, time_factor=1 / 16)
    longest = int((trace.steps.prompt_tokens + trace.steps.output_tokens).max())
    tight = SimConfig(kv_tokens=2 * longest, profile=PROFILE, population=6, async_scheduling=ahead)
    tier = replace(tight, offloading="vllm", cpu_tokens=10**6, pcie_tokens_per_s=1e9)
    bare, with_tier = (simulate(trace, c, preset("lru"), slo=False) for c in (tight, tier))
    m = with_tier.metrics
    assert m["sessions_done"] == trace.n_sessions
    assert m["loaded_tokens"] > 0 and m["stored_tokens"] <= trace.steps.prompt_tokens.sum()
    assert m["tct_mean_s"] < bare.metrics["tct_mean_s"]
    again = simulate(trace, tier, preset("lru"), slo=False)
    assert again.tct_s.tolist() == with_tier.tct_s.tolist()


@pytest.mark.parametrize("name", ["lru", "likely"])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_lazy_tier_that_holds_everything_leaves_nothing_to_compute_twice(name, ahead):
    """All that the GPU evicts is below it, as long as nobody is presumed to have ended."""
    trace = scale_lengths(generate("swe-bench", 5, sessions=10, rate_per_min=60), 1 / 32, time_factor=1 / 16)
    longest = int((trace.steps.prompt_tokens + trace.steps.output_tokens).max())
    tight = SimConfig(kv_tokens=2 * longest, profile=PROFILE, population=6, async_scheduling=ahead, expiry_s=1e9)
    tier = replace(tight, offloading="lazy", cpu_tokens=10**6, pcie_tokens_per_s=1e9)
    bare, roomy = (simulate(trace, c, preset(name), slo=False).metrics for c in (tight, tier))
    assert bare["recomputed_tokens"] > 0
    assert roomy["recomputed_tokens"] == 0
    assert roomy["loaded_tokens"] > 0


def test_a_lazy_tier_stores_what_its_gpu_evicts_and_nothing_else():
    """Where all fits the GPU nothing is stored. Where it does not, a small tier stores each block again that it had to
    drop, a large one once for each time that it left the GPU without a copy below."""
    trace = scale_lengths(generate("swe-bench", 5, sessions=10, rate_per_min=60), 1 / 32, time_factor=1 / 16)
    longest = int((trace.steps.prompt_tokens + trace.steps.output_tokens).max())
    tight = SimConfig(kv_tokens=2 * longest, profile=PROFILE, population=6, offloading="lazy", cpu_tokens=10**6)
    roomy = simulate(trace, replace(tight, kv_tokens=10**7), preset("lru"), slo=False).metrics
    assert roomy["stored_tokens"] == roomy["loaded_tokens"] == 0
    whole, half = (simulate(trace, replace(tight, cpu_tokens=n), preset("lru"), slo=False).metrics
                   for n in (10**6, longest))
    tokens = int((trace.steps.prompt_tokens + trace.steps.output_tokens + 16).sum())
    assert 0 < whole["stored_tokens"] <= tokens
    assert half["recomputed_tokens"] > 0


def test_a_way_of_offloading_that_does_not_exist():
    with pytest.raises(UserError, match="vllm"):
        SimConfig(offloading="vlm")
    with pytest.raises(UserError, match="does not have"):
        SimConfig(offloading="vllm", cpu_tokens=1000, prefetch_tokens=100)
