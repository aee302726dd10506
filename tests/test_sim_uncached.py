"""An engine without prefix caching: by hand, against the naive engine, and against vLLM's real scheduler with its own
caching switched off."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hst
from naive_engine import NaiveWorker
from test_sim_naive import PROFILE, STOCK, _sessions

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.errors import UserError
from saga_rl.policies.presets import preset
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cluster import Cluster, alone_tct, simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import CostProfile

HAND = CostProfile("hand", base_s=1.0, per_prefill_token_s=0.01, per_kv_token_s=0.0, per_seq_s=0.0, per_attn_s=0.0,
                   per_context_s=0.0, max_batched_tokens=1000)


def chain(lengths: list[tuple[int, int]]) -> Trace:
    """One agent whose every prompt is the whole context before it and what is new: (new, answer) tokens."""
    steps: list[StepSpec] = []
    context = 0
    for k, (new, output) in enumerate(lengths):
        steps.append(StepSpec(context + new, output, (k - 1,) if k else (), tool="t", tool_s=10.0, prefix_step=k - 1,
                              prefix_tokens=context))
        context += new + output
    return build_trace(TraceMeta("hand", "generated:test"), [SessionSpec("s", 0.0, steps)])


def test_a_chain_by_hand() -> None:
    """Prompts of 100, 152 and 204 tokens with answers of 2. An iteration lasts 1 s and .01 s a prompt token; a second
    one makes the second token; two tools of 10 s. Cached, the second prompt finds 6 blocks of 16 (101 tokens were
    computed), the third 9 (153)."""
    trace = chain([(100, 2), (50, 2), (50, 2)])
    config = SimConfig(kv_tokens=4096, profile=HAND)
    plain = simulate(trace, replace(config, prefix_caching=False), preset("lru"))
    cached = simulate(trace, config, preset("lru"))
    both = 3 * 2 * 1.0 + 2 * 10.0
    assert plain.tct_s[0] == pytest.approx(both + .01 * (100 + 152 + 204))
    assert cached.tct_s[0] == pytest.approx(both + .01 * (100 + (152 - 96) + (204 - 144)))
    m = plain.metrics
    assert (m["prefilled_tokens"], m["recomputed_tokens"], m["hit_share"]) == (456, 96 + 144, 0.0)
    assert m["evictions"] == 0 and m["useful_kv_share"] == 1.0
    assert m["slo_attainment"] == 1.0 == cached.metrics["slo_attainment"], "by the time alone with everything cached"
    assert alone_tct(trace, replace(config, prefix_caching=False))[0] == pytest.approx(cached.tct_s[0])


def unshared(trace: Trace) -> Trace:
    """The trace without a word of who shares what."""
    nothing = np.zeros(trace.n_steps, np.int64)
    return replace(trace, steps=replace(trace.steps, prefix_step=(nothing - 1).astype(np.int32), prefix_tokens=nothing,
                                        shared_prefix=(nothing - 1).astype(np.int32)))


class Forgetful(NaiveWorker):
    """A worker that frees whatever nobody holds."""

    def _release(self, r: object) -> None:
        super()._release(r)
        for block in self._idle():
            del self.cached[block]
            self.free += 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trace=_sessions(), blocks=hst.integers(15, 60), seqs=hst.integers(1, 6), whole=hst.booleans(),
       single=hst.booleans())
def test_it_agrees_with_a_naive_engine_that_forgets(trace: Trace, blocks: int, seqs: int, whole: bool, single: bool
                                                    ) -> None:
    config = SimConfig(kv_tokens=16 * blocks, profile=PROFILE, max_num_seqs=seqs, reserve_full_prompt=whole,
                       prefix_caching=False, single_steps=single)
    naive = Forgetful(unshared(trace), config)
    first, done, hits = naive.run()
    assert not any(hits.values())
    result = simulate(trace, config, STOCK, slo=False)
    n = range(trace.n_steps)
    assert result.metrics["preemptions"] == naive.preemptions and not result.steps["cached_tokens"].any()
    np.testing.assert_allclose(result.steps["first_token_s"], [first[i] for i in n], rtol=0, atol=1e-7)
    np.testing.assert_allclose(result.steps["done_s"], [done[i] for i in n], rtol=0, atol=1e-7)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trace=_sessions(), blocks=hst.integers(15, 60), policy=hst.sampled_from(["lru", "saga", "likely"]),
       workers=hst.integers(1, 2))
def test_no_block_outlives_its_request_and_no_token_is_lost(trace: Trace, blocks: int, policy: str, workers: int
                                                           ) -> None:
    """Under any policy, since there is nothing to evict."""
    config = SimConfig(kv_tokens=16 * blocks, profile=PROFILE, workers=workers, prefix_caching=False)
    cluster = Cluster(trace, config, preset(policy))
    cluster.advance()
    pool = cluster.world.pool
    assert (pool.n[:, kv.FREE] == pool.n[:, kv.POOL]).all() and not pool.n[:, kv.PRIVATE].any()
    assert not pool.n[:, [kv.RESIDENT, kv.PINNED, kv.EVICTED, kv.IDLE]].any() and not pool.res.any()
    m = simulate(trace, config, preset(policy), slo=False).metrics
    assert m["sessions_done"] == trace.n_sessions and m["hit_share"] == 0.0
    prompts = int(trace.steps.prompt_tokens.sum())
    assert m["prefilled_tokens"] == prompts if m["preemptions"] == 0 else m["prefilled_tokens"] >= prompts


@pytest.mark.parametrize("option", ["cpu_tokens", "link_tokens_per_s"])
def test_nothing_can_be_brought_back(option: str) -> None:
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')}.*no-prefix-caching"):
        SimConfig(prefix_caching=False, **{option: 100_000})


@pytest.mark.vllm
def test_it_agrees_with_vllms_own_scheduler() -> None:
    """Its requests in its order at its times, with its preemptions."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from test_sim_vs_scheduler import assert_same, pressed, tight

    seen: Counter[str] = Counter()
    for seed in range(60):
        rng, trace = pressed(97 * seed, lambda t: True)
        assert isinstance(rng, random.Random)
        engine, served = assert_same(trace, replace(tight(rng, trace), prefix_caching=False))
        seen["steps"] += trace.n_steps
        seen["preempted"] += sum(served.preemptions.values())
        assert not any(served.cached_tokens.values()) and not engine.watch.victims
    assert seen["preempted"] > 50, seen
