"""What no policy can override holds for random scores: the service gap, the KV floors, the right to be served."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hst
from numba import njit
from test_sim_naive import PROFILE

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.generators import generate
from saga_rl.aeg.trace import TraceMeta
from saga_rl.errors import UserError
from saga_rl.policies.base import SCORE, DECISIONS, Policy, PolicySet
from saga_rl.policies.constraints import Constraints, read_constraints
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import service as sv
from saga_rl.sim.cluster import Cluster, simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.live_sessions import hush
from saga_rl.sim.results.fairness import jain

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@njit(SCORE)
def _noise(x, params, scratch):
    """A score without sense: it depends on every column, in a way that the weights decide."""
    total = 0.0
    for i in range(len(x)):
        if np.isfinite(x[i]):
            total += params[i % len(params)] * np.log1p(abs(x[i]))
    return math.sin(total)


@hst.composite
def policies(draw) -> PolicySet:
    weights = hst.lists(hst.floats(-50, 50), min_size=7, max_size=7).map(np.array)
    return PolicySet(*(Policy(decision, "noise", _noise, draw(weights)) for decision in DECISIONS))


@hst.composite
def traces(draw):
    out = []
    for s in range(draw(hst.integers(2, 8))):
        steps, context = [], 0
        for k in range(draw(hst.integers(1, 4))):
            prompt, output = context + draw(hst.integers(1, 60)), draw(hst.integers(1, 20))
            steps.append(StepSpec(prompt, output, parents=[k - 1] if k else [], tool="t",
                                  tool_s=draw(hst.integers(0, 40)) / 3.0, prefix_step=k - 1 if k else -1,
                                  prefix_tokens=context))
            context = prompt + output
        out.append(SessionSpec(f"s{s}", draw(hst.integers(0, 30)) / 7.0, steps,
                               tenant=draw(hst.sampled_from(["a", "b", "c"]))))
    return build_trace(TraceMeta("tenants", "generated:test"), out)


@quick
@given(trace=traces(), mix=policies(), gap=hst.sampled_from([0.0, 20.0, 300.0]), seqs=hst.integers(1, 4),
       blocks=hst.integers(24, 60), workers=hst.integers(1, 2), afs=hst.sampled_from([math.inf, 0.5]))
def test_no_scores_break_the_service_gap(trace, mix, gap, seqs, blocks, workers, afs):
    config = SimConfig(workers=workers, kv_tokens=16 * blocks, profile=PROFILE, max_num_seqs=seqs,
                       constraints=Constraints(gap, afs_preempt_s=afs))
    metrics = simulate(trace, config, mix, slo=False).metrics
    assert metrics["sessions_done"] == trace.n_sessions
    if len(trace.tenants) > 1:
        assert metrics["service_gap_tokens"] <= metrics["service_gap_bound_tokens"]


@quick
@given(trace=traces(), mix=policies(), floor=hst.sampled_from([0.05, 0.2, 0.3]), seqs=hst.integers(1, 4),
       blocks=hst.integers(24, 60), batch=hst.sampled_from([16, 48]))
def test_no_scores_break_the_floors(trace, mix, floor, seqs, blocks, batch):
    """Where even a request that is alone has room beside all others' floors, no floor is ever broken."""
    config = SimConfig(kv_tokens=16 * blocks, profile=replace(PROFILE, max_batched_tokens=batch), max_num_seqs=seqs,
                       constraints=Constraints(kv_floors={"*": floor}))
    metrics = simulate(trace, config, mix, slo=False).metrics
    assert metrics["sessions_done"] == trace.n_sessions
    longest = int((trace.steps.prompt_tokens + trace.steps.output_tokens).max()) // 16 + 1
    others = floor * (len(trace.tenants) - 1) * blocks
    if longest + others <= blocks - 1:
        assert metrics["floor_breaks"] == 0


def _two(prompt_a: int, prompt_b: int):
    """Tenant a leaves a context behind, tenant b then needs room."""
    return build_trace(TraceMeta("two", "generated:test"), [
        SessionSpec("a", 0.0, [StepSpec(prompt_a, 1, tool="t", tool_s=1000.0),
                               StepSpec(prompt_a + 8, 1, parents=[0], prefix_step=0, prefix_tokens=prompt_a)],
                    tenant="a"),
        SessionSpec("b", 100.0, [StepSpec(prompt_b, 1)], tenant="b")])


@pytest.mark.parametrize(("floor", "kept"), [(0.0, 0), (0.5, 10), (0.8, 16)])
def test_a_floor_keeps_what_it_says(floor, kept):
    trace = _two(16 * 16, 16 * 18 if floor == 0 else 16 * (20 - kept))
    config = SimConfig(kv_tokens=16 * 20, profile=PROFILE, constraints=Constraints(kv_floors={"a": floor}))
    result = simulate(trace, config, preset("lru"), slo=False)
    back = 1  # a's second step
    assert result.metrics["floor_breaks"] == 0 and result.metrics["sessions_done"] == 2
    assert result.steps["cached_tokens"][back] == 16 * (kept if floor else 2)


def test_the_only_request_takes_what_it_needs_and_it_is_counted():
    trace = _two(16 * 16, 16 * 10)
    config = SimConfig(kv_tokens=16 * 20, profile=PROFILE, constraints=Constraints(kv_floors={"a": 0.8}))
    result = simulate(trace, config, preset("lru"), slo=False)
    assert result.metrics["sessions_done"] == 2 and result.metrics["floor_breaks"] == 16 - 10 + 1 - 1


def test_least_served_first_among_tenants_that_wait():
    s = sv.make_service(1, 3)
    sv.queued(s, 0, 0)
    sv.charge(s, 0, 0, 100, 5)
    assert s[0, 0, sv.COUNTER] == 110 and sv.least(s, 0) == 110
    sv.queued(s, 0, 1)  # lifted to the one that waits: it earned nothing by being away
    assert s[0, 1, sv.COUNTER] == 110 and sv.spread(s, 0) == 0
    sv.charge(s, 0, 1, 50, 0)
    assert sv.spread(s, 0) == 50 and sv.allowed(s, 0, 0, 0.0) and not sv.allowed(s, 0, 1, 49.0)
    assert sv.allowed(s, 0, 1, 50.0)
    sv.left(s, 0, 0, True)
    sv.left(s, 0, 1, True)
    sv.queued(s, 0, 2)  # nobody waits: lifted to who was served last
    assert s[0, 2, sv.COUNTER] == 160


def test_the_afs_rule_makes_the_tenant_with_less_share_yield():
    """Session a runs alone for long; b, due soon, waits for the only slot and gets it after half a second."""
    trace = build_trace(TraceMeta("yield", "generated:test"), [
        SessionSpec("a", 0.0, [StepSpec(16, 400)], tenant="a", deadline_s=1e6),
        SessionSpec("b", 10.0, [StepSpec(16, 2)], tenant="b", deadline_s=11.0)])
    config = SimConfig(kv_tokens=16 * 64, profile=PROFILE, max_num_seqs=1)
    plain = simulate(trace, config, preset("lru"), slo=False)
    ruled = simulate(trace, replace(config, constraints=Constraints(afs_preempt_s=0.5)), preset("lru"), slo=False)
    assert plain.metrics["afs_preemptions"] == 0 and plain.steps["scheduled_s"][1] > plain.steps["done_s"][0] - 1e-9
    assert ruled.metrics["afs_preemptions"] == 1 and ruled.steps["preemptions"].tolist() == [1, 0]
    assert 10.5 < ruled.steps["scheduled_s"][1] < 10.5 + 2 * (1 + 0.2 + 0.11 + 0.0017 * 416)
    assert ruled.steps["done_s"][1] < ruled.steps["done_s"][0]


def test_what_is_counted_is_what_is_true():
    """Chains that a worker counts as served and under way, recounted from the definition at a random moment."""
    trace = generate("burstgpt", 2, sessions=20, rate_per_min=120)
    for horizon in (20.0, 80.0, 200.0, 500.0):
        for hint in (True, False):
            config = SimConfig(workers=2, kv_tokens=140_000, horizon_s=horizon, end_hint=hint, expiry_s=30.0)
            cluster = Cluster(trace, config, preset("lru"))
            cluster.advance()
            run, x = cluster.world.run, cluster.world.chains
            hush.py_func(cluster.world, run.total[st.NOW])
            heard = (x[:, ch.WAITING] == 1) | (x[:, ch.RUNNING] == 1) | (run.total[st.NOW] - x[:, ch.LAST] <= 30.0)
            begun = ((x[:, ch.STEPS] > 0) | (x[:, ch.RUNNING] == 1)) & (x[:, ch.ENDED] != 1)
            active = begun & heard
            assert run.w[:, st.ACTIVE].sum() == active.sum() > 0
            assert run.live[0] == run.w[:, st.HOMED].sum()


def test_jain():
    assert jain(np.ones(4)) == 1.0 and jain(np.array([1.0, 0, 0, 0])) == 0.25


@pytest.mark.parametrize(("gap", "floors", "afs", "message"), [
    (-1.0, [], None, "service gap: is -1"), (None, ["0.95"], None, "KV floor of tenant '\\*': is 0.95"),
    (None, ["a=x"], None, "'a=x' holds no number"), (None, [], 0.0, "AFS preemption: after 0 s"),
    (float("nan"), [], None, "service gap: is nan")])
def test_bad_constraints_are_named(gap, floors, afs, message):
    with pytest.raises(UserError, match=message):
        read_constraints(gap, floors, afs)


def test_floors_that_cannot_be_kept_are_refused():
    assert Constraints(kv_floors={"*": 0.1, "b": 0.3}).floors(["a", "b", "c"], 100).tolist() == [10, 30, 10]
    with pytest.raises(UserError, match=r"claim 1\.20 of the pool for 3 tenants"):
        Constraints(kv_floors={"*": 0.4}).floors(["a", "b", "c"], 100)
    with pytest.raises(UserError, match="no tenant named 'aa'"):
        Constraints(kv_floors={"aa": 0.4}).floors(["a", "b"], 100)


def test_an_idle_worker_takes_a_queued_session():
    """Four sessions, two homed on each worker; the second worker's are soon done, the first one's want its one slot for
    long, and its second one's context takes 22 s to compute again."""
    trace = build_trace(TraceMeta("steal", "generated:test"), [SessionSpec(f"s{k}", 5.0 * k, [
        StepSpec(32, 2, tool="t", tool_s=50.0),
        StepSpec(640, 2 if k % 2 else 900, parents=[0], prefix_step=0, prefix_tokens=34)]) for k in range(4)])
    config = SimConfig(workers=2, kv_tokens=16 * 600, profile=PROFILE, max_num_seqs=1)
    runs = {}
    for spec in ("saga:theta=1000000", "saga:theta=1000000,steal=1"):
        chosen = replace(preset("lru"), placement=make("placement", spec))
        runs[spec] = simulate(trace, config, chosen, slo=False)
    still, moved = runs.values()
    assert still.metrics["steals"] == 0
    assert moved.metrics["sessions_done"] == still.metrics["sessions_done"] == 4
    assert still.steps["worker"].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert moved.metrics["steals"] == moved.metrics["migrations"] == 1
    taken = 5  # the second step of the third session
    assert moved.steps["worker"].tolist() == [0, 0, 1, 1, 0, 1, 1, 1]
    waited = moved.steps["scheduled_s"][taken] - moved.steps["ready_s"][taken]
    assert waited >= 640 / config.profile.prefill_tokens_per_s
    assert moved.metrics["tct_mean_s"] < still.metrics["tct_mean_s"]
    with pytest.raises(UserError, match="there is one worker"):
        simulate(trace, replace(config, workers=1), chosen)
