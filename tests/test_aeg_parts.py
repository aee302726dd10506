"""Splitting keeps groups whole, scaling keeps a trace valid and its structure, figures are what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import equal
from saga_rl.aeg.scale import scale_lengths
from saga_rl.aeg.split import split
from saga_rl.aeg.stats import infinite_cache_hits, stats
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.aeg.validate import check
from saga_rl.errors import UserError


def grouped(sizes: list[int]) -> Trace:
    sessions = [SessionSpec(f"{g}-{k}", float(k), [StepSpec(10, 1)], f"g{g}")
                for g, n in enumerate(sizes) for k in range(n)]
    return build_trace(TraceMeta("t", "s"), sessions)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=3, max_size=60), st.integers(0, 5))
def test_split_is_a_partition_by_group(sizes: list[int], seed: int) -> None:
    trace = grouped(sizes)
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    try:
        parts = split(trace, shares, seed)
    except UserError as e:
        assert "would be empty" in str(e)
        assert len(sizes) < 12
        return
    ids = [i for p in parts.values() for i in p.sessions.session_id]
    assert sorted(ids) == sorted(trace.sessions.session_id)
    groups = [set(p.sessions.group) for p in parts.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    for name, part in parts.items():
        assert abs(part.n_sessions - shares[name] * trace.n_sessions) <= max(sizes)
        check(part)
    again = split(trace, shares, seed)
    assert all(equal(parts[k], again[k]) for k in parts)


def test_split_depends_on_the_seed() -> None:
    trace = grouped([1] * 40)
    a, b = (split(trace, {"x": 0.5, "y": 0.5}, seed)["x"].sessions.session_id for seed in (1, 2))
    assert a != b


@pytest.mark.parametrize("shares", [{"a": 0.5}, {"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}, {}, {"../a": 1.0}])
def test_split_refuses_bad_fractions(shares: dict[str, float]) -> None:
    with pytest.raises(UserError, match="fraction"):
        split(grouped([1, 1, 1]), shares, 0)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["swe-bench", "webarena", "burstgpt"]), st.integers(0, 50),
       st.floats(0.002, 3.0), st.floats(0.01, 5.0))
def test_scaling_keeps_a_trace_valid(name: str, seed: int, factor: float, time_factor: float) -> None:
    trace = generate(name, seed, sessions=3, max_context=24_000, deadline_per_step_s=2.0)
    small = scale_lengths(trace, factor, time_factor=time_factor)
    check(small)
    t, u = trace.steps, small.steps
    assert u.tool_s == pytest.approx(t.tool_s * time_factor)
    context, scaled = t.prompt_tokens + t.output_tokens, u.prompt_tokens + u.output_tokens
    assert (np.abs(scaled - context * factor) <= 2).all()
    assert (np.abs(u.prefix_tokens - t.prefix_tokens * factor) <= 2).all()
    if factor * t.output_tokens.min() > 1:
        whole = np.flatnonzero(t.prefix_step >= 0)
        assert (u.prefix_tokens[whole] == scaled[whole - 1]).all(), "a whole context stays a whole context"
    assert small.meta.notes["length_factor"] == factor


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(500, 20_000))
def test_the_factor_that_scaling_names_fits(seed: int, limit: int) -> None:
    trace = generate("swe-bench", seed, sessions=2)
    with pytest.raises(UserError, match="use a factor of") as e:
        scale_lengths(trace, 1.0, limit)
    named = float(e.value.mend.split("factor of ")[1].split()[0])
    fitting = scale_lengths(trace, named, limit)
    assert (fitting.steps.prompt_tokens + fitting.steps.output_tokens).max() <= limit


def test_scaling_blocks_with_ids() -> None:
    steps = [StepSpec(1024, 10, hashes=(1, 2)),
             StepSpec(1600, 10, (0,), prefix_step=0, prefix_tokens=1024, hashes=(5, 6))]
    trace = build_trace(TraceMeta("t", "s", hash_block_tokens=512), [SessionSpec("a", 0.0, steps)])
    small = scale_lengths(trace, 1 / 32)
    assert small.meta.hash_block_tokens == 16 and small.steps.prefix_tokens.tolist() == [0, 32]
    with pytest.raises(UserError, match="1/512"):
        scale_lengths(trace, 0.3)


@pytest.mark.parametrize(("factor", "time_factor"),
                         [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0), (1.0, float("inf"))])
def test_scaling_refuses_bad_factors(factor: float, time_factor: float) -> None:
    with pytest.raises(UserError, match="factor"):
        scale_lengths(grouped([1]), factor, time_factor=time_factor)


def test_infinite_cache_hits_follow_time_not_rows() -> None:
    late = [StepSpec(100, 10, shared_prefix="sys", prefix_tokens=60, think_s=100.0),
            StepSpec(130, 10, (0,), shared_prefix="sys", prefix_tokens=90)]
    early = [StepSpec(80, 10, shared_prefix="sys", prefix_tokens=70)]
    trace = build_trace(TraceMeta("t", "s"), [SessionSpec("a", 0.0, late), SessionSpec("b", 5.0, early)])
    assert infinite_cache_hits(trace).tolist() == [0, 70, 60]  # a's second step comes after b


def test_figures() -> None:
    trace = generate("swe-bench", 3, sessions=30)
    figures = stats(trace)
    json.dumps(figures, allow_nan=False)
    t = trace.steps
    assert figures["sessions"] == 30 and figures["steps"] == trace.n_steps
    assert figures["prompt_output_ratio"] == pytest.approx(t.prompt_tokens.sum() / t.output_tokens.sum())
    assert sum(v["calls"] for v in figures["tool_s"].values()) == int((t.tool >= 0).sum())
    cold = t.prompt_tokens.sum() - t.prefix_tokens.sum() + t.prefix_tokens[0]  # the first session finds nothing
    assert figures["infinite_cache_hit_share"] == pytest.approx(1 - cold / t.prompt_tokens.sum())
    empty = stats(trace.select([]))
    assert empty["sessions"] == 0 and empty["infinite_cache_hit_share"] is None
