"""The CPU tier, prefetch from it, and KV moved between workers: conservation, times by hand, off means off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hst
from test_sim_cluster import PROFILE, _check_world, _session, _trace
from test_sim_fast_forward import MIX, _policies, _same
from test_sim_naive import PROFILE as SMALL
from test_sim_naive import _sessions

from saga_rl.aeg.generators import generate
from saga_rl.errors import UserError
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cluster import Cluster, simulate
from saga_rl.sim.config import SimConfig

STOCK = preset("lru")
TIER = {"cpu_tokens": 1600, "pcie_tokens_per_s": 1000.0}


def _two_turns(gap: float):
    """Session a comes back after `gap`; b, between, needs nearly the whole pool."""
    return _trace(_session("a", 0.0, (300, 2, gap), (10, 2, 0.0)), _session("b", 20.0, (700, 2, 0.0)))


def test_a_request_waits_for_its_copy_and_computes_the_rest():
    trace = _two_turns(100.0)
    without = simulate(trace, SimConfig(kv_tokens=800, profile=PROFILE), STOCK, slo=False)
    result = simulate(trace, SimConfig(kv_tokens=800, profile=PROFILE, **TIER), STOCK, slo=False)
    # b took 44 of 50 blocks, so a keeps 6 of its 18 full blocks; the other 12 come over PCIe at 1,000 tokens a second.
    assert without.steps["cached_tokens"].tolist() == result.steps["cached_tokens"].tolist() == [0, 6 * 16, 0]
    assert result.metrics["loaded_tokens"] == 12 * 16
    assert result.metrics["recomputed_tokens"] == 0 and without.metrics["recomputed_tokens"] == 12 * 16
    waited = result.steps["first_token_s"][1] - result.steps["ready_s"][1]
    # 192 tokens copied, then 312 - 288 tokens computed in one iteration.
    assert waited == pytest.approx(0.192 + 1.0 + 0.24)
    assert without.steps["first_token_s"][1] - without.steps["ready_s"][1] > waited


def test_a_copy_that_takes_longer_than_computing_is_not_waited_for():
    slow = SimConfig(kv_tokens=800, profile=PROFILE, cpu_tokens=1600, pcie_tokens_per_s=90.0)  # computing: about 100/s
    result = simulate(_two_turns(100.0), slow, STOCK, slo=False)
    assert result.metrics["loaded_tokens"] == 0 and result.metrics["recomputed_tokens"] == 12 * 16


@pytest.mark.parametrize(("rule", "loaded"), [("lru", 13 * 16), ("fifo", 0)])
def test_the_tier_forgets_by_its_own_rule(rule, loaded):
    """a is stored first and used again before c is stored; c then wants most of the tier."""
    a = _session("a", 0.0, (300, 2, 20.0), (1, 2, 120.0), (10, 2, 0.0))
    trace = _trace(a, _session("b", 8.0, (300, 2, 0.0)), _session("c", 60.0, (700, 2, 0.0)))
    tier = 62 * 16  # c wants 43 blocks: 18 of b go (lru), or 18 of the 19 of a (fifo)
    result = simulate(trace, SimConfig(kv_tokens=800, profile=PROFILE, cpu_tokens=tier, cpu_eviction=rule,
                                       pcie_tokens_per_s=1000.0), STOCK, slo=False)
    assert result.metrics["loaded_tokens"] == loaded


FAST = SimConfig(kv_tokens=800, profile=replace(PROFILE, base_s=0.1, per_prefill_token_s=1e-3), cpu_tokens=1600,
                 pcie_tokens_per_s=5000.0, end_hint=True)


def test_prefetch_brings_a_context_back_before_its_chain():
    """With no history a tool is expected to take COLD_TTL_S = 10 s, and b is done long before."""
    trace = _trace(_session("a", 0.0, (300, 2, 40.0), (10, 2, 0.0)), _session("b", 2.0, (700, 2, 0.0)))
    plain = simulate(trace, FAST, STOCK, slo=False)
    result = simulate(trace, replace(FAST, prefetch_tokens=800), STOCK, slo=False)
    assert plain.metrics["loaded_tokens"] == result.metrics["prefetched_tokens"] == 12 * 16
    assert result.metrics["loaded_tokens"] == 0 and result.steps["cached_tokens"][1] == 18 * 16
    saved = plain.steps["first_token_s"][1] - result.steps["first_token_s"][1]
    assert saved == pytest.approx(12 * 16 / 5000.0)


def test_a_request_that_comes_during_its_prefetch_waits_for_it():
    begins = 10.0 - 302 / 5000.0  # after the tool's start: expected return less the time to copy the whole context
    gap = begins + 0.01
    trace = _trace(_session("a", 0.0, (300, 2, gap), (10, 2, 0.0)), _session("b", 2.0, (700, 2, 0.0)))
    result = simulate(trace, replace(FAST, prefetch_tokens=800), STOCK, slo=False)
    waited = result.steps["first_token_s"][1] - result.steps["ready_s"][1]
    assert waited == pytest.approx(192 / 5000.0 - 0.01 + 0.1 + 24 * 1e-3)  # the rest of the copy, then one iteration
    assert result.metrics["prefetched_tokens"] == 192 and result.metrics["loaded_tokens"] == 0


def test_prefetch_keeps_to_its_budget():
    trace = _trace(_session("a", 0.0, (300, 2, 40.0), (10, 2, 0.0)), _session("b", 2.0, (700, 2, 0.0)))
    assert simulate(trace, replace(FAST, prefetch_tokens=64), STOCK, slo=False).metrics["prefetched_tokens"] == 64


def test_kv_moves_with_its_chain():
    trace = _trace(_session("a", 0.0, (300, 2, 30.0), (10, 2, 0.0)), _session("b", 1.0, (40, 20, 0.0)))
    config = SimConfig(workers=2, kv_tokens=800, profile=PROFILE)
    away = replace(STOCK, placement=make("placement", "least-load"))
    results = [simulate(trace, replace(config, link_tokens_per_s=rate), away, slo=False) for rate in (0.0, 1000.0)]
    for r in results:
        assert r.metrics["migrations"] == (r.steps["worker"][0] != r.steps["worker"][1])
    moved = results[1].metrics["moved_tokens"]
    assert moved == (288 if results[1].metrics["migrations"] else 0)
    assert results[0].metrics["moved_tokens"] == 0
    assert results[0].metrics["recomputed_tokens"] - results[1].metrics["recomputed_tokens"] == moved


EXTRA = hst.fixed_dictionaries({
    "cpu_tokens": hst.sampled_from([160, 480, 3200]), "pcie_tokens_per_s": hst.sampled_from([40.0, 300.0, 1e6]),
    "cpu_eviction": hst.sampled_from(["lru", "fifo"]), "prefetch_tokens": hst.sampled_from([0, 64, 640]),
    "link_tokens_per_s": hst.sampled_from([0.0, 100.0, 1e6])})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trace=_sessions(), blocks=hst.integers(15, 60), seqs=hst.integers(1, 6), workers=hst.integers(1, 3), mix=MIX,
       extra=EXTRA)
def test_skipping_iterations_changes_nothing(trace, blocks, seqs, workers, mix, extra):
    _same(trace, SimConfig(workers=workers, kv_tokens=16 * blocks, profile=SMALL, max_num_seqs=seqs, **extra), mix)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trace=_sessions(), blocks=hst.integers(15, 60), workers=hst.integers(1, 3), mix=MIX, extra=EXTRA,
       horizon=hst.floats(1.0, 200.0))
def test_blocks_and_requests_are_conserved(trace, blocks, workers, mix, extra, horizon):
    config = SimConfig(workers=workers, kv_tokens=16 * blocks, profile=SMALL, max_num_seqs=4, **extra)
    for stop in (horizon, np.inf):
        cluster = Cluster(trace, replace(config, horizon_s=stop), _policies(mix))
        cluster.advance()
        _check_world(cluster.world)
        pool = cluster.world.pool
        tier = pool.n[config.workers:]
        assert (tier[:, kv.PINNED] == 0).all() and (tier[:, kv.PRIVATE] == 0).all()
        assert (tier[:, kv.POOL] == config.cpu_tokens // 16).all()
        assert (kv.by_worker(pool, "res").max(axis=0) <= pool.ever).all(), "nothing is held that was never computed"
    assert cluster.world.run.left.sum() == 0, "every step is done"


def test_an_endless_fast_tier_leaves_nothing_to_compute_again():
    trace = generate("webarena", 1, sessions=10, max_context=16_000, rate_per_min=120)
    profile = replace(PROFILE, base_s=0.02, per_prefill_token_s=1e-4, per_kv_token_s=1e-7, max_batched_tokens=512)
    config = SimConfig(kv_tokens=30_000, profile=profile)
    tier = replace(config, cpu_tokens=10_000_000, pcie_tokens_per_s=1e12)
    plain, tiered = (simulate(trace, c, STOCK, slo=False).metrics for c in (config, tier))
    assert plain["recomputed_tokens"] > 10_000
    # What was computed by a request that is still running is stored when it ends; only a preempted prefill's is not.
    assert tiered["recomputed_tokens"] < 0.05 * plain["recomputed_tokens"]
    assert tiered["tct_mean_s"] < plain["tct_mean_s"]


@pytest.mark.parametrize(("bad", "says"), [
    ({"cpu_tokens": -1}, "cpu-tokens"), ({"cpu_tokens": 5}, "one block"), ({"cpu_eviction": "mru"}, "lru"),
    ({"prefetch_tokens": 100}, "no CPU tier"), ({"pcie_tokens_per_s": 0.0}, "pcie"),
    ({"link_tokens_per_s": -1.0}, "link")])
def test_bad_settings_are_named(bad, says):
    with pytest.raises(UserError, match=says):
        SimConfig(**bad)
