"""The compiled engine against one written a second time, block by block in plain Python: same times, same hits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hst
from naive_engine import NaiveWorker

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.trace import TraceMeta
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import CostProfile

PROFILE = CostProfile("unit", base_s=1.0, per_prefill_token_s=0.013, per_kv_token_s=0.0017, per_seq_s=0.11,
                      per_attn_s=0.0003, per_context_s=0.0005, batch_tokens=(1.0, 10.0, 48.0), batch_s=(0.2, 0.25, 0.9),
                      max_batched_tokens=48)
STOCK = replace(preset("lru"), placement=make("placement", "sticky"))


@hst.composite
def _sessions(draw):
    """Chains that grow, branch back to earlier contexts, and fork sub-agents that the main agent waits for."""
    out = []
    for s in range(draw(hst.integers(1, 5))):
        steps: list[StepSpec] = []
        context: list[int] = []
        for k in range(draw(hst.integers(1, 5))):
            new, output = draw(hst.integers(1, 60)), draw(hst.integers(1, 20))
            back = draw(hst.integers(0, k - 1)) if k and draw(hst.integers(0, 3)) == 0 else k - 1
            kept = 0 if k == 0 else draw(hst.integers(0, context[back])) if back < k - 1 else context[back]
            prompt = min(kept + new, 200)
            kept = min(kept, prompt)
            fork = k > 0 and draw(hst.integers(0, 4)) == 0 and steps[-1].agent == 0
            steps.append(StepSpec(prompt, output, parents=[k - 1] if k else [], agent=k if fork else 0,
                                  tool="t", tool_s=draw(hst.integers(0, 40)) / 3.0,
                                  prefix_step=back if kept else -1, prefix_tokens=kept))
            context.append(prompt + output)
        out.append(SessionSpec(f"s{s}", draw(hst.integers(0, 60)) / 7.0, steps,
                               tenant=draw(hst.sampled_from(["a", "b", "c"]))))
    return build_trace(TraceMeta("naive", "generated:test"), out)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trace=_sessions(), blocks=hst.integers(15, 60), seqs=hst.integers(1, 6), whole=hst.booleans())
def test_compiled_engine_agrees_with_the_naive_one(trace, blocks, seqs, whole):
    config = SimConfig(kv_tokens=16 * blocks, profile=PROFILE, max_num_seqs=seqs, reserve_full_prompt=whole)
    naive = NaiveWorker(trace, config)
    first, done, hits = naive.run()
    result = simulate(trace, config, STOCK, slo=False)
    n = range(trace.n_steps)
    assert result.metrics["preemptions"] == naive.preemptions
    assert result.steps["cached_tokens"].tolist() == [hits[i] for i in n]
    np.testing.assert_allclose(result.steps["first_token_s"], [first[i] for i in n], rtol=0, atol=1e-7)
    np.testing.assert_allclose(result.steps["done_s"], [done[i] for i in n], rtol=0, atol=1e-7)
