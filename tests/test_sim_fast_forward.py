"""Runs of iterations taken in one go are exactly the iterations taken singly, and sparse pools exactly dense ones."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as hst
from test_sim_naive import PROFILE, _sessions

from saga_rl.aeg.generators import generate
from saga_rl.policies.base import DECISIONS, PolicySet
from saga_rl.policies.registry import make, names
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cluster import Cluster, simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.engine import state as st
from saga_rl.sim.iteration_log import iteration_log

OPEN = ("learned", "belady", "ends-known", "returns-known")
"""A checkpoint's, and those that must know the future of a fixed string."""
MIX = hst.tuples(*(hst.sampled_from([n for n in names(decision) if n not in OPEN])
                   for decision in DECISIONS)).map(
    lambda mix: ("clairvoyant", *mix[1:]) if mix[-1] == "reserve-clairvoyant" else mix)  # that one wants to be told
"""Whatever is registered, so that no new policy's promise (`Policy.steady` and its neighbours) goes unlooked at."""


def _policies(mix) -> PolicySet:
    return PolicySet(*(make(decision, name) for decision, name in zip(DECISIONS, mix, strict=True)))


def _same(trace, config, mix) -> None:
    one = simulate(trace, replace(config, single_steps=True), _policies(mix), slo=False)
    run = simulate(trace, config, _policies(mix), slo=False)
    for name, column in one.steps.items():
        np.testing.assert_array_equal(run.steps[name], column, err_msg=name)
    timing = ("wall_s", "events")
    assert {k: v for k, v in one.metrics.items() if k not in timing} == {
        k: v for k, v in run.metrics.items() if k not in timing}


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trace=_sessions(), blocks=hst.integers(15, 60), seqs=hst.integers(1, 6), workers=hst.integers(1, 3), mix=MIX,
       expiry=hst.sampled_from([3.0, 20.0, 300.0]), whole=hst.booleans(), hints=hst.booleans())
def test_runs_are_their_iterations(trace, blocks, seqs, workers, mix, expiry, whole, hints):
    _same(trace, SimConfig(workers=workers, kv_tokens=16 * blocks, profile=PROFILE, max_num_seqs=seqs, expiry_s=expiry,
                           reserve_full_prompt=whole, end_hint=hints), mix)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=hst.integers(0, 1000), mix=MIX, kind=hst.sampled_from(["swe-bench", "webarena", "burstgpt"]),
       population=hst.sampled_from([0, 8]), horizon=hst.sampled_from([float("inf"), 60.0]))
@example(0, ("lru", "sticky", "fcfs", "none"), "swe-bench", 8, float("inf"))
@example(0, ("s3-fifo", "consistent-hash", "afs", "none"), "webarena", 0, float("inf"))
@example(0, ("youngest", "saga", "session-fcfs", "reserve-older"), "swe-bench", 8, float("inf"))
@example(0, ("lru", "sticky", "fcfs", "pause-resume"), "swe-bench", 8, float("inf"))  # chains that compact come back
def test_runs_are_their_iterations_on_workloads(seed, mix, kind, population, horizon):
    trace = generate(kind, seed, sessions=10, max_context=16_000, rate_per_min=120)
    profile = replace(PROFILE, base_s=0.02, per_prefill_token_s=1e-4, per_kv_token_s=1e-7, per_seq_s=1e-4,
                      per_attn_s=1e-9, per_context_s=1e-8, batch_tokens=(1.0, 64.0, 512.0), batch_s=(0.01, 0.012, 0.06),
                      max_batched_tokens=512)
    _same(trace, SimConfig(workers=2, kv_tokens=40_000, profile=profile, population=population, horizon_s=horizon), mix)


@pytest.mark.parametrize("mix", [("lru", "least-load", "fcfs", "none"), ("youngest", "saga", "afs", "reserve-older")])
def test_sparse_pools_are_dense_pools(monkeypatch, mix):
    trace = generate("webarena", 2, sessions=20, max_context=16_000, rate_per_min=600)
    config = SimConfig(workers=3, kv_tokens=40_000)
    tables = {}
    for rows in (kv.DENSE_ROWS, 0):
        monkeypatch.setattr(kv, "DENSE_ROWS", rows)
        cluster = Cluster(trace, config, _policies(mix))
        assert (cluster.world.pool.meta[kv.MASK] == 0) == (rows > 0)
        cluster.advance()
        world = cluster.world
        columns = (kv.by_worker(world.pool, c) for c in ("res", "ref", "kids", "seq"))
        tables[rows] = [world.run.f, world.run.count, *columns]
    for a, b in zip(*tables.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_most_iterations_are_skipped():
    trace = generate("swe-bench", 1, sessions=30)
    cluster = Cluster(trace, SimConfig(workers=2), _policies(("lru", "sticky", "fcfs", "none")))
    cluster.advance()
    count = cluster.world.run.count
    assert count[st.FORWARDED] > 0.9 * count[st.ITERATIONS]


def test_the_iteration_log_holds_every_token():
    trace = generate("webarena", 0, sessions=6, max_context=16_000, rate_per_min=600)
    config = SimConfig(workers=2, kv_tokens=30_000, profile=replace(PROFILE, max_batched_tokens=512))
    policies = _policies(("lru", "sticky", "fcfs", "none"))
    log = iteration_log(trace, config, policies)
    result = simulate(trace, config, policies, slo=False)
    assert [i.start_s for i in log] == sorted(i.start_s for i in log)
    for w in range(config.workers):
        mine = [i for i in log if i.worker == w]
        assert all(a.start_s + a.seconds <= b.start_s for a, b in itertools.pairwise(mine))
    decoded = int((trace.steps.output_tokens - 1).sum())
    computed = sum(n for i in log for _, n in i.tokens)
    lost = sum(len(i.preempted) for i in log)
    assert lost == result.metrics["preemptions"]
    if lost == 0:
        assert computed == decoded + result.metrics["prefilled_tokens"]
    assert max(i.start_s + i.seconds for i in log) == result.steps["done_s"].max()
