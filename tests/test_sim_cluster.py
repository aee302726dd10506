"""The closed loop: conservation, causality, determinism, and figures that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hst
from numba import typeof

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.aeg.trace import TraceMeta
from saga_rl.errors import UserError
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cluster import PLACE, PLACEMENTS, Cluster, simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import CostProfile
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.state import make_world
from saga_rl.sim.results.metrics import metrics

PROFILE = CostProfile("unit", base_s=1.0, per_prefill_token_s=0.01, per_kv_token_s=0.001, max_batched_tokens=100)
META = TraceMeta("test", "generated:test")


def _trace(*sessions: SessionSpec):
    return build_trace(META, list(sessions))


def _session(name: str, arrival: float, *steps: tuple[int, int, float]) -> SessionSpec:
    """Steps (new tokens, output, gap): each prompt continues the whole context before it."""
    out, context = [], 0
    for k, (new, output, gap) in enumerate(steps):
        out.append(StepSpec(context + new, output, parents=[k - 1] if k else [], tool="t" if gap else None, tool_s=gap,
                            prefix_step=k - 1, prefix_tokens=context))
        context += new + output
    return SessionSpec(name, arrival, out)


def _small(seed: int, n: int = 12):
    trace = generate("webarena", seed=seed, sessions=n, max_context=20_000, rate_per_min=60)
    return trace, SimConfig(workers=2, kv_tokens=60_000, profile=replace(PROFILE, base_s=0.02, per_prefill_token_s=1e-4,
                                                                         per_kv_token_s=1e-7, max_batched_tokens=512))


def test_one_session_takes_exactly_what_the_cost_model_says():
    trace = _trace(_session("a", 5.0, (150, 3, 7.0), (20, 2, 0.0)))
    result = simulate(trace, SimConfig(kv_tokens=1600, profile=PROFILE), preset("lru"))
    # Step 1: chunks of 100 and 50 tokens, then two decodes that read 150 and 151 tokens of KV.
    first = (1 + 1.0) + (1 + 0.5) + (1 + 0.150) + (1 + 0.151)
    # Step 2: 173 tokens of prompt, 152 of them in cache = 9 blocks of 16; 29 computed; one decode over 173.
    second = (1 + 0.29) + (1 + 0.173)
    assert result.tct_s[0] == pytest.approx(first + 7.0 + second, abs=1e-9)
    assert result.steps["cached_tokens"].tolist() == [0, 144]
    assert result.steps["ready_s"].tolist() == [5.0, pytest.approx(5.0 + first + 7.0)]
    assert result.metrics["prefilled_tokens"] == 150 + 29
    assert result.metrics["recomputed_tokens"] == 0
    assert result.metrics["slo_attainment"] == 1.0


def test_lru_takes_tail_blocks_of_what_was_released_first():
    trace = _trace(_session("a", 0.0, (300, 2, 100.0), (10, 2, 0.0)), _session("b", 20.0, (300, 2, 0.0)),
                   _session("c", 40.0, (300, 2, 0.0)))
    result = simulate(trace, SimConfig(kv_tokens=800, profile=PROFILE), preset("lru"), slo=False)
    # 301 tokens leave 18 full blocks cached each; c wants 19 of the 14 free ones, so a loses its last 5.
    assert result.steps["cached_tokens"].tolist() == [0, 13 * 16, 0, 0]
    assert result.metrics["recomputed_tokens"] == 5 * 16


@pytest.mark.parametrize("name", ["lru", "saga", "saga+"])
def test_runs_are_byte_identical(name):
    trace, config = _small(3)
    a, b = (simulate(trace, config, preset(name)) for _ in range(2))
    assert {**a.metrics, "wall_s": 0} == {**b.metrics, "wall_s": 0}
    for key in a.steps:
        assert a.steps[key].tobytes() == b.steps[key].tobytes()


@pytest.mark.parametrize("name", ["lru", "saga", "saga+"])
def test_no_event_before_its_cause(name):
    trace, config = _small(4)
    s = simulate(trace, config, preset(name), slo=False).steps
    assert np.all(s["ready_s"] <= s["scheduled_s"])
    assert np.all(s["scheduled_s"] < s["first_token_s"])
    assert np.all(s["first_token_s"] <= s["done_s"])
    t = trace.steps
    for i in range(trace.n_steps):
        for p in t.parents[t.parent_offsets[i]:t.parent_offsets[i + 1]]:
            p += trace.session_offsets[t.session[i]]
            gap = t.tool_s[p] + t.think_s[p] if t.agent[p] == t.agent[i] else 0.0
            assert s["ready_s"][i] >= s["done_s"][p] + gap - 1e-9


def _check_world(world) -> None:
    """I1, I2, I4, I5 and the bookkeeping that stands on them."""
    pool, tree, run = world.pool, world.tree, world.run
    n, all_res, all_ref, all_kids = pool.n, *(kv.by_worker(pool, name) for name in ("res", "ref", "kids"))
    assert np.all(n[:, kv.FREE] + n[:, kv.PRIVATE] + n[:, kv.RESIDENT] == n[:, kv.POOL])
    assert np.all(n >= 0)
    for w in range(len(n)):
        assert all_res[w].sum() == n[w, kv.RESIDENT]
        assert all_res[w][all_ref[w] > 0].sum() == n[w, kv.PINNED]
        idle = set(pool.idle[w, :n[w, kv.IDLE]].tolist())
        assert idle == set(np.flatnonzero((all_res[w] > 0) & (all_ref[w] == 0)).tolist())
        resident = np.flatnonzero(all_res[w] > 0)
        for seg in resident:
            up = tree.parent[seg]
            assert up < 0 or all_res[w, up] == tree.blocks[up], "a resident block's ancestors are resident"
        kids = np.bincount(tree.parent[resident][tree.parent[resident] >= 0], minlength=len(tree.parent))
        assert np.array_equal(kids, all_kids[w])
        for k in range(run.w[w, st.N_RUNNING] if w < len(run.w) else 0):
            step = run.running[w, k]
            held, base = run.i[step, st.HELD], tree.path_off[step]
            blocks = sum(all_res[w, tree.path[base + j]] for j in range(held))
            full = (run.i[step, st.COMPUTED] + run.i[step, st.SCHEDULED]) // world.limits[st.BLOCK]
            assert blocks >= full, "a running request's blocks are there"
            assert all(all_ref[w, tree.path[base + j]] > 0 for j in range(held))
    states = np.bincount(run.i[:, st.STATE], minlength=5)
    assert states[st.RUNNING] == run.w[:, st.N_RUNNING].sum()
    assert states[st.LOADING] == run.w[:, st.N_LOADING].sum()
    assert states[st.WAITING] == run.w[:, st.N_WAITING].sum()
    assert states[st.DONE] == run.count[st.STEPS_DONE]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=hst.integers(0, 1000), eviction=hst.sampled_from(["lru", "wa-lru", "wa-lru-literal", "youngest"]),
       admission=hst.sampled_from(["none", "grow", "reserve-older"]),
       ordering=hst.sampled_from(["fcfs", "session-fcfs", "afs"]), choice=hst.randoms(use_true_random=False))
def test_blocks_and_requests_are_conserved_at_every_placement(seed, eviction, admission, ordering, choice):
    trace, config = _small(seed, 8)
    policies = replace(preset("lru"), eviction=make("eviction", eviction), admission=make("admission", admission),
                       ordering=make("ordering", ordering))
    cluster = Cluster(trace, replace(config, kv_tokens=40_000), policies, pause=PLACEMENTS)
    more = cluster.advance() == PLACE
    while more:
        _check_world(cluster.world)
        more = cluster.advance(choice.randrange(2)) == PLACE
    _check_world(cluster.world)
    assert metrics(cluster.world, None, 0.0)["llm_steps"] == trace.n_steps


def test_infinite_memory_computes_nothing_twice():
    trace, config = _small(5)
    total = int((trace.steps.prompt_tokens + trace.steps.output_tokens).sum())
    m = simulate(trace, replace(config, workers=1, kv_tokens=2 * total), preset("lru"), slo=False).metrics
    assert m["evictions"] == 0 and m["preemptions"] == 0
    # Only requests that compute a shared prefix at the same moment may do it twice.
    assert m["recomputed_tokens"] == 0
    hits = round(m["hit_share"] * int(trace.steps.prompt_tokens.sum()))
    assert m["prefilled_tokens"] + hits == int(trace.steps.prompt_tokens.sum())


def test_preemption_gives_every_block_back_and_every_answer_ends():
    sessions = [_session(f"s{i}", 0.0, (100, 200, 0.0)) for i in range(4)]
    trace = _trace(*sessions)
    cluster = Cluster(trace, SimConfig(kv_tokens=800, profile=PROFILE), preset("lru"))
    cluster.advance()
    _check_world(cluster.world)
    assert cluster.world.run.count[st.PREEMPTED] > 0
    assert cluster.world.run.count[st.SESSIONS_DONE] == 4


@pytest.mark.parametrize("name", ["lru", "saga", "saga+"])
def test_online_policies_do_not_see_the_future(name):
    """Change everything that happens after some moment: what was decided before stays as it was."""
    trace, config = _small(6)
    before = simulate(trace, config, preset(name), slo=False).steps
    cut = float(np.median(before["ready_s"]))
    later = before["ready_s"] > cut
    t = trace.steps
    altered = replace(trace, steps=replace(t, output_tokens=np.where(later, t.output_tokens // 2 + 1, t.output_tokens),
                                           tool_s=np.where(later, t.tool_s * 3 + 1, t.tool_s)))
    after = simulate(altered, config, preset(name), slo=False).steps
    for key in ("worker", "scheduled_s", "first_token_s", "done_s"):
        seen = before["ready_s"] <= cut if key == "worker" else before[key] <= cut
        assert np.array_equal(before[key][seen], after[key][seen])


def test_a_trace_from_a_file_needs_no_second_compilation(tmp_path):
    """Numba compiles for types, and a read-only array is another type: the loop takes minutes on a slow machine."""
    trace = generate("swe-bench", 1, sessions=3)
    write_trace(trace, tmp_path / "t.parquet")
    made, read = (make_world(t, SimConfig(), preset("lru")) for t in (trace, read_trace(tmp_path / "t.parquet")))
    assert typeof(made) == typeof(read)


def test_a_session_larger_than_the_pool_is_refused():
    trace = _trace(_session("big", 0.0, (5000, 10, 0.0)))
    with pytest.raises(UserError, match="big"):
        simulate(trace, SimConfig(kv_tokens=1600, profile=PROFILE), preset("lru"))


def test_closed_population_keeps_that_many_sessions_at_once():
    trace, config = _small(7, 10)
    cluster = Cluster(trace, replace(config, workers=1, population=3), preset("lru"))
    cluster.advance()
    run = cluster.world.run
    events = sorted([(t, 1) for t in run.begin_s] + [(t, -1) for t in run.done_s])
    level, most = 0, 0
    for _, d in events:
        level += d
        most = max(most, level)
    assert most == 3 and run.count[st.SESSIONS_DONE] == 10


def test_sub_agents_run_beside_their_parent_and_release_the_join():
    steps = [StepSpec(100, 2, tool="spawn"), StepSpec(80, 5, parents=[0], agent=1),
             StepSpec(60, 9, parents=[0], agent=2),
             StepSpec(120, 2, parents=[0, 1, 2], prefix_step=0, prefix_tokens=102)]
    r = simulate(_trace(SessionSpec("a", 0.0, steps)), SimConfig(kv_tokens=4800, profile=PROFILE), preset("lru")).steps
    assert r["ready_s"][1] == r["ready_s"][2] == r["done_s"][0]
    assert r["ready_s"][3] == max(r["done_s"][1], r["done_s"][2])


def test_an_oracle_is_refused_in_closed_loop():
    trace = _trace(_session("a", 0.0, (50, 2, 0.0)))
    with pytest.raises(UserError, match="saga-rl bound"):
        simulate(trace, SimConfig(kv_tokens=1600, profile=PROFILE), replace(preset("lru"), eviction=make("eviction",
                                                                                                        "belady")))
