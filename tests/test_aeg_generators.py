"""The workloads come out with the figures that the SAGA paper states."""

from __future__ import annotations

import numpy as np
import pytest

from saga_rl.aeg.generators import generate, generator_names
from saga_rl.aeg.generators.latency import QUANTILES_S, TAIL, latency_s
from saga_rl.aeg.io import equal
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError


@pytest.fixture(scope="module")
def large() -> dict[str, Trace]:
    return {"swe-bench": generate("swe-bench", 11, sessions=3000), "webarena": generate("webarena", 11, sessions=3000),
            "burstgpt": generate("burstgpt", 11, sessions=2500)}


@pytest.mark.parametrize("tool", list(QUANTILES_S))
def test_latency_quantiles(tool: str) -> None:
    seconds = latency_s(tool, np.random.default_rng(1).standard_normal(400_000))
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
    for measured, stated in zip((p50, p95, p99), QUANTILES_S[tool], strict=True):
        assert measured == pytest.approx(stated, rel=0.08)
    assert seconds.max() <= TAIL * QUANTILES_S[tool][2] * (1 + 1e-9)


def test_latency_is_monotone() -> None:
    z = np.linspace(-6, 6, 5000)
    for tool in QUANTILES_S:
        assert (np.diff(latency_s(tool, z)) >= 0).all()


@pytest.mark.parametrize(("name", "mean", "low", "high"), [("swe-bench", 37, 10, 150), ("webarena", 18, 3, 60)])
def test_steps(large: dict[str, Trace], name: str, mean: float, low: int, high: int) -> None:
    steps = np.diff(large[name].session_offsets)
    assert steps.mean() == pytest.approx(mean, rel=0.04)
    assert steps.min() >= low and steps.max() <= high


@pytest.mark.parametrize(("name", "new", "out"), [("swe-bench", (2000, 4000), (100, 500)),
                                                  ("webarena", (4000, 8000), (50, 200))])
def test_lengths(large: dict[str, Trace], name: str, new: tuple[int, int], out: tuple[int, int]) -> None:
    t = large[name].steps
    grown = t.prefix_step >= 0
    appended = (t.prompt_tokens - t.prefix_tokens)[grown]
    assert appended.min() == new[0] and appended.max() == new[1]
    assert appended.mean() == pytest.approx(sum(new) / 2, rel=0.01)
    assert t.output_tokens.min() == out[0] and t.output_tokens.max() == out[1]


@pytest.mark.parametrize(("name", "rate"), [("swe-bench", 8.0), ("webarena", 8.0), ("burstgpt", 92.0)])
def test_arrivals_are_poisson(large: dict[str, Trace], name: str, rate: float) -> None:
    gaps = np.diff(large[name].sessions.arrival_s)
    assert 60 / gaps.mean() == pytest.approx(rate, rel=0.06)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.07)


def test_burstgpt_tenants(large: dict[str, Trace]) -> None:
    trace = large["burstgpt"]
    assert len(trace.tenants) == 10
    counts = np.bincount(trace.sessions.tenant)
    steps = np.diff(trace.session_offsets)
    for kind, tenants, rate, mean in (("heavy", 3, 16, 100), ("medium", 4, 8, 30), ("light", 3, 4, 10)):
        mine = [i for i, n in enumerate(trace.tenants) if n.startswith(kind)]
        assert len(mine) == tenants
        assert counts[mine].sum() / trace.n_sessions == pytest.approx(tenants * rate / 92, rel=0.15)
        assert steps[np.isin(trace.sessions.tenant, mine)].mean() == pytest.approx(mean, rel=0.08)


@pytest.mark.parametrize("name", ["swe-bench", "webarena", "burstgpt"])
def test_structure(large: dict[str, Trace], name: str) -> None:
    trace = large[name]
    t = trace.steps
    last = trace.session_offsets[1:] - 1
    assert (t.tool[last] == -1).all() and (t.tool_s[last] == 0).all()
    assert (np.delete(t.tool, last) >= 0).all()
    assert set(trace.tools) == {"code", "file", "web", "database"}
    assert np.isnan(trace.sessions.deadline_s).all() and (t.think_s == 0).all()
    context = t.prompt_tokens + t.output_tokens
    assert context.max() <= 131_072
    grown = np.flatnonzero(t.prefix_step >= 0)
    assert (t.prefix_tokens[grown] == context[grown - 1]).all()
    compacted = np.setdiff1d(np.flatnonzero(t.prefix_step < 0), trace.session_offsets[:-1])
    assert len(compacted) and (t.shared_prefix[compacted] >= 0).all() and (t.prefix_tokens[compacted] > 0).all()
    assert (t.prompt_tokens[compacted] < context[compacted - 1]).all()


@pytest.mark.parametrize("name", generator_names())
def test_deterministic(name: str) -> None:
    assert equal(generate(name, 4, sessions=6), generate(name, 4, sessions=6))
    assert not equal(generate(name, 4, sessions=6), generate(name, 5, sessions=6))


def test_humans_and_deadlines() -> None:
    trace = generate("swe-bench", 2, sessions=200, hitl_share=0.1, deadline_per_step_s=3.0)
    think = trace.steps.think_s
    calls = trace.steps.tool >= 0
    assert (think[calls] > 0).mean() == pytest.approx(0.1, rel=0.1)
    assert np.median(think[think > 0]) == pytest.approx(120, rel=0.1)
    spent = np.add.reduceat(trace.steps.tool_s + think, trace.session_offsets[:-1])
    wanted = trace.sessions.arrival_s + spent + 3.0 * np.diff(trace.session_offsets)
    assert trace.sessions.deadline_s == pytest.approx(wanted)


@pytest.mark.parametrize(("params", "word"), [
    ({"sessions": 0}, "sessions"), ({"rate_per_min": 0.0}, "rate_per_min"), ({"hitl_share": 1.5}, "hitl_share"),
    ({"max_context": 4000}, "max_context"), ({"deadline_per_step_s": -1.0}, "deadline_per_step_s"),
    ({"session": 1}, "sessions"),
])
def test_bad_parameters(params: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        generate("swe-bench", 0, **params)


def test_unknown_name_lists_the_nearest_first() -> None:
    with pytest.raises(UserError, match="choose one of: swe-bench"):
        generate("swebench", 0)
