"""What is known of memory below the GPU's (`policies.features.tier`), and what admission does with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_sim_cluster import PROFILE, _session, _trace

from saga_rl.errors import UserError
from saga_rl.policies import features as F
from saga_rl.policies.presets import PRESETS, from_specs, preset
from saga_rl.policies.registry import make
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig

POOL = 1000
STOCK, RESERVE = PRESETS["lru"], "reserve-older:tier=3"


def g(tiered: bool):
    chosen = preset("auto")
    return F.make_g(1, 16, POOL, chosen.eviction, chosen.admission, tiered)


def test_a_tier_is_trusted_until_it_was_asked():
    assert F.tier_found(g(True), 0, 5.0) == 1.0
    assert F.tier_found(g(False), 0, 5.0) == 0.0


def test_what_a_tier_gave_back_is_what_it_is_expected_to_give():
    state = g(True)
    F.note_found(state, 0, 500.0, 100.0, 0.0)
    prior = F.PRIOR * POOL
    assert F.tier_found(state, 0, 0.0) == pytest.approx((100 + prior) / (500 + prior))
    F.note_found(state, 0, 1000.0, 0.0, 0.0)  # one pool of lost blocks more: the first look counts half
    assert F.tier_found(state, 0, 0.0) == pytest.approx((50 + prior) / (250 + 1000 + prior))
    before = state.copy()
    F.note_found(state, 0, 0.0, 0.0, 9.0)
    assert (state == before).all(), "who lost nothing says nothing about the tier"
    F.note_found(state, 0, 10.0, 500.0, 0.0)
    assert F.tier_found(state, 0, 0.0) <= 1.0, "more than was lost is not counted"


def test_what_was_measured_is_forgotten():
    state = g(True)
    F.note_found(state, 0, 1000.0, 0.0, 0.0)
    shares = [F.tier_found(state, 0, t) for t in (0.0, F.FORGET_S, 10 * F.FORGET_S)]
    prior = F.PRIOR * POOL
    assert shares[:2] == pytest.approx([prior / (1000 + prior), prior / (500 + prior)])
    assert shares[2] > 0.99


def test_without_a_tier_nothing_is_counted():
    state = g(False)
    F.note_found(state, 0, 500.0, 500.0, 3.0)
    assert (state == g(False)).all()


def test_reserve_counts_what_the_tier_would_not_give_back():
    row = np.zeros(len(F.ADMISSION))
    row[[F.AD.need, F.AD.pinned, F.AD.older_idle, F.AD.older_likely, F.AD.pool]] = 30, 40, 60, 60, 100
    for tier, found, yes in ((0, 1.0, False), (1, 1.0, True), (1, 0.5, True), (1, 0.49, False), (3, 0.5, False),
                             (3, 0.84, True), (3, 0.0, False)):
        policy = make("admission", f"reserve-older:tier={tier},most=1")
        row[F.AD.tier_found] = found
        assert (policy.score(row, policy.params, np.zeros(1)) > 0) == yes
    capped = make("admission", "reserve-older:tier=3,most=.5")
    row[F.AD.tier_found] = 0.01
    assert capped.score(row, capped.params, np.zeros(1)) > 0, "never more than `most`"
    row[F.AD.tier_found] = 0.0
    assert capped.score(row, capped.params, np.zeros(1)) < 0, "without a tier it is as it was"
    with pytest.raises(UserError, match="tier between 0 and 100"):
        make("admission", "reserve-older:tier=-1")


def test_nobody_waits_longer_than_what_his_wait_saves():
    row = np.zeros(len(F.ADMISSION))
    row[[F.AD.need, F.AD.pinned, F.AD.older_idle, F.AD.pool, F.AD.block_tokens]] = 30, 40, 155, 100, 16
    for patience, wait, yes in ((0, 1e9, False), (2, 3.9, False), (2, 4.1, True), (4, 4.1, False), (4, 8.1, True)):
        policy = make("admission", f"reserve-older:patience_s={patience}")  # it would displace 125 blocks, 2,000 tokens
        row[F.AD.wait_s] = wait
        assert (policy.score(row, policy.params, np.zeros(1)) > 0) == yes
    row[[F.AD.need, F.AD.wait_s]] = 61, 1e9
    assert policy.score(row, policy.params, np.zeros(1)) < 0, "there is no room beside what runs"


def trace():
    """Three sessions of one agent each. A holds 60 % of the pool while its tool runs for 100 s, B decodes for long, C
    comes at 20 s and wants 30 %: beside B and A's idle context there is no room for it."""
    return _trace(_session("a", 0.0, (600, 10, 100.0), (10, 10, 0.0)), _session("b", 5.0, (120, 150, 0.0)),
                  _session("c", 20.0, (300, 10, 0.0)))


@pytest.mark.parametrize(("admission", "tokens", "waits"), [
    ("reserve-older", 4000, True), (RESERVE, 0, True), (RESERVE, 4000, False), ("none", 4000, False)])
def test_a_context_that_the_tier_holds_is_not_reserved_for(admission, tokens, waits):
    slow = replace(PROFILE, base_s=0.2)
    config = SimConfig(kv_tokens=1008, profile=slow, offloading="vllm", cpu_tokens=tokens, pcie_tokens_per_s=1e6)
    steps = simulate(trace(), config, from_specs(STOCK | {"ordering": "session-fcfs", "admission": admission}),
                     slo=False).steps
    wait = steps["scheduled_s"][3] - steps["ready_s"][3]
    assert wait > 5.0 if waits else wait < 1.0
