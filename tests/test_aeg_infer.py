"""Inference on hand-made streams whose probabilities are known: what must come out, when, and from what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.generators import generate
from saga_rl.aeg.importers import import_trace
from saga_rl.aeg.inference import predict as f
from saga_rl.aeg.inference.drift import RUN, adaptation
from saga_rl.aeg.inference.score import end, gap, next_tool, observation, right, score
from saga_rl.aeg.inference.stream import TYPES, Stream, joined, slowed, stream
from saga_rl.aeg.io import write_trace
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.cli.aeg import ARMS, measure, register
from saga_rl.errors import UserError
from saga_rl.policies.state.tables import COLD_TASKS, WINDOW

A, B, C = 0, 1, 2
PIT = [f.PIT_LOW, f.PIT_HIGH]


def flow(chains: list[list[int]], gaps: np.ndarray | float = 1.0, types: list[int] | None = None,
         begin: list[float] | None = None) -> Stream:
    """Chains by the tools that their steps call, one after the other unless they `begin` at once; a call takes 1 s."""
    n = sum(map(len, chains))
    chain = np.repeat(np.arange(len(chains)), [len(c) for c in chains])
    gap_s = np.broadcast_to(np.asarray(gaps, float), (n,))
    start, after, at, i = np.zeros(n), np.full(n, -1), 0.0, 0
    for k, c in enumerate(chains):
        at = at if begin is None else begin[k]
        for j in range(len(c)):
            start[i] = at
            after[i] = i + 1 if j + 1 < len(c) else -1
            at += 1.0 + gap_s[i]
            i += 1
    prompt = np.concatenate([100.0 * (1 + np.arange(len(c))) for c in chains])
    tools = np.array([t for c in chains for t in c])
    kinds = np.zeros(len(chains), np.int64) if types is None else np.array(types)
    zero = np.zeros(len(chains), np.int64)
    session = np.arange(len(chains))
    return Stream(chain, start, start + 1.0, prompt, np.full(n, 10.0), tools, after, session, zero, kinds,
                  ["A", "B", "C"], [f"type {k}" for k in range(kinds.max() + 1)])


def test_a_cycle_is_known_after_its_first_round() -> None:
    s = flow([[A, B, C] * 3] * 2)
    p, _ = f.predictions(s, hints=True)
    # a transition counts from the request after it on: A to B, B to C and C to A as steps 2, 3 and 4 are sent
    assert right(s, p).tolist() == [False] * 3 + [True] * 5 + [False] + [True] * 8 + [False]
    assert p[3, f.CONFIDENCE] == 1.0 and p[0, f.CONFIDENCE] == 0.0
    figures = next_tool(s, p, 0.7, np.ones(18, bool))
    assert figures and figures["n"] == 16 and figures["accuracy"] == 13 / 16
    assert figures["coverage"] == 13 / 16 and figures["accuracy_at_theta"] == 1.0
    assert figures["same_tool_again"] == 0.0


def test_an_end_is_expected_where_chains_end() -> None:
    s = flow([[A, B, C]] * 200)
    p, _ = f.predictions(s, hints=True)
    last = p[-3:, f.P_END]
    # 199 ended chains: (own + 10 x the tool's smoothed rate) / (199 + 10), the tool's towards the pooled one
    base = (199 + 0.3) / (199 + 398 + 2 + 10)
    after_a = (0 + 10 * (0 + 10 * base) / (200 + 10 - 1)) / (199 + 10)
    after_c = (199 + 10 * (199 + 10 * base) / (199 + 10)) / (199 + 10)
    assert last[0] == pytest.approx(after_a, rel=0.02) and last[2] == pytest.approx(after_c, rel=0.02)
    figures = end(s, p, np.ones(600, bool))
    assert figures and figures["share"] == pytest.approx(1 / 3) and figures["brier"] < 0.1 * figures["brier_of_share"]


@pytest.mark.parametrize("hints", [True, False])
def test_log_uniform_gaps_are_calibrated(hints: bool) -> None:
    n = 6000
    s = flow([[A] * n], np.exp(np.random.default_rng(0).uniform(np.log(0.01), np.log(100.0), n)))
    p, _ = f.predictions(s, hints=hints)
    warm = np.arange(n) >= WINDOW
    figures = gap(s, p, warm)
    assert figures
    for level, share in zip(figures["levels"], figures["share_below_level"], strict=True):
        # binomial for n gaps, and as much again for n / WINDOW quantiles that were each read off WINDOW gaps
        spread = np.sqrt(level * (1 - level) * 2 / n)
        assert abs(share - level) < 4 * spread, level
    # a bin of the tables is 1.8 % of these gaps, and the quantile stands in its middle
    assert figures["share_within"]["p95"] == pytest.approx(0.95, abs=0.02)
    assert figures["share_within"]["p50"] == pytest.approx(0.50, abs=0.03)


def test_scores_by_hand() -> None:
    s = flow([[A, A], [A]], gaps=2.0)
    p = np.zeros((3, f.COLUMNS))
    p[:, f.P_END] = [0.25, 0.75, 0.75]
    p[:, f.OBS], p[:, f.OBS_ALL] = 45.0, 180.0
    p[:, f.PIT_HIGH] = 0.5
    everything = np.ones(3, bool)
    ends = end(s, p, everything)
    assert ends and ends["brier"] == pytest.approx(0.0625) and ends["brier_of_share"] == pytest.approx(2 / 9)
    assert [(r["n"], r["stated"], r["observed"]) for r in ends["reliability"]] == [(1, 0.25, 0.0), (2, 0.75, 1.0)]
    seen = observation(s, p, everything)  # 200 tokens of prompt follow a context of 110
    assert seen and seen["actual_mean_tokens"] == 90.0
    assert seen["by_tool"]["median_relative_error"] == 0.5 and seen["all_tools"]["median_relative_error"] == 1.0
    assert seen["by_tool"]["overlap_error"] == pytest.approx(110 / 155 - 110 / 200)
    times = gap(s, p, everything)  # the one gap lies in the lower half
    assert times and times["n"] == 1 and times["share_below_level"][4] == pytest.approx(0.5)
    assert times["share_below_level"][9:] == [1.0] * 10
    assert next_tool(s, p, 0.7, np.array([False, True, True])) is None


def test_an_agent_type_is_warm_after_exactly_30_ends() -> None:
    s = flow([[A, B]] * 40 + [[A, B]] * 29, types=[0] * 40 + [1] * 29)
    p, _ = f.predictions(s, hints=True)
    assert p[1::2, f.DONE].tolist() == [*range(40), *range(29)]
    tiers = score(s, p, 0.7)
    assert (tiers["cold"]["steps"], tiers["warm"]["steps"]) == (2 * 30 + 2 * 29, 2 * 10)
    # from then on the type's own record counts: B ended it every time
    assert p[2 * COLD_TASKS + 1, f.P_END] > p[2 * COLD_TASKS - 1, f.P_END] + 0.05
    presumed = f.predictions(s, hints=False, expiry_s=10.0)[0]
    assert presumed[1, f.DONE] == 0 and presumed[2 * 35 + 1, f.DONE] < 35, "an end is presumed only after the silence"


@pytest.mark.parametrize(("factor", "returns"), [(10.0, 13), (0.1, 244)])
def test_p95_follows_a_change_as_its_window_turns_over(factor: float, returns: int) -> None:
    """The P95 of two values is the larger one while it has 5 % of the window: (k + .5) / 257 >= .05."""
    s, cut = slowed(flow([[A] * 1600]), factor)
    row = adaptation(s, cut)["p95"]["A"]
    assert row["returns"] == returns
    assert row["before_s"] == pytest.approx(1.0, rel=0.1) and row["level_s"] == pytest.approx(factor, rel=0.1)


def test_next_tool_follows_a_change_of_habits() -> None:
    one, other = flow([[A, B, C] * 20] * 4), flow([[A, C, B] * 20] * 30)
    both, cut = joined(one, other)
    assert both.types == one.types and both.tools == one.tools
    figures = adaptation(both, cut)["next_tool"]
    assert figures["before"] > 0.9 and figures["first_run"] == 0.0 and figures["level"] == 1.0
    assert RUN <= figures["steps"] < figures["steps_after"]
    unlike = replace(other, types=["another"])
    assert adaptation(*joined(one, unlike))["next_tool"]["steps"] == RUN, "another type has its own record"


chains_of_tools = st.lists(st.lists(st.integers(-1, 2), min_size=1, max_size=8), min_size=1, max_size=8)


@st.composite
def flows(draw: st.DrawFn) -> Stream:
    chains = draw(chains_of_tools)
    n = sum(map(len, chains))
    gaps = np.array(draw(st.lists(st.sampled_from([0.0, 0.5, 7.0, 30.0, 400.0]), min_size=n, max_size=n)))
    begin = [float(b) for b in draw(st.lists(st.integers(0, 300), min_size=len(chains), max_size=len(chains)))]
    types = draw(st.lists(st.integers(0, 1), min_size=len(chains), max_size=len(chains)))
    return flow(chains, gaps, types, begin)


@settings(max_examples=60, deadline=None)
@given(flows(), st.booleans())
def test_the_inferred_graph_conserves_what_was_seen(s: Stream, hints: bool) -> None:
    """Row by row, chains that went on and chains that ended; what was presumed and taken back leaves nothing."""
    _, t = f.predictions(s, hints=hints, expiry_s=20.0)
    kind = s.agent_type[s.chain]
    first = np.ones(len(s.chain), bool)
    first[s.after[s.after >= 0]] = False
    second = np.isin(np.arange(len(first)), s.after[first])
    for a in range(len(s.types)):
        for tool in range(-1, 3):
            mine = (kind == a) & (s.tool == tool)
            ends, returns = (mine & (s.after < 0)).sum(), (mine & (s.after >= 0)).sum()
            assert t.calls[0, a, tool + 1, -2:].tolist() == [ends, ends + returns]
        assert t.calls[0, a, :, :-2].sum() == ((kind == a) & ~first & ~second).sum()
    assert t.returns[0, -1] == (s.after >= 0).sum() and t.ends[0, -1] == (s.after < 0).sum()


@settings(max_examples=60, deadline=None)
@given(flows(), st.floats(0.1, 0.9), st.booleans())
def test_no_prediction_knows_the_future(s: Stream, share: float, cut_off: bool) -> None:
    now = float(np.quantile(s.end_s, share))
    known, running = s.end_s <= now, s.end_s > now
    if cut_off:  # nobody asks again
        keep = np.flatnonzero(s.start_s <= now)
        place = np.full(len(s.chain) + 1, -1)
        place[keep] = np.arange(len(keep))
        other = Stream(s.chain[keep], s.start_s[keep], s.end_s[keep], s.prompt[keep], s.output[keep], s.tool[keep],
                       place[s.after[keep]], s.session, s.tenant, s.agent_type, s.tools, s.types)
    else:  # everything comes later and is something else
        keep = np.arange(len(s.chain))
        later = np.where(running, now + 3.0 * (s.end_s - now), s.end_s)
        start = np.where(s.start_s > now, now + 3.0 * (s.start_s - now), s.start_s)
        other = replace(s, start_s=start, end_s=later, prompt=np.where(s.start_s > now, 7 * s.prompt, s.prompt),
                        tool=np.where(running, (s.tool + 2) % 3, s.tool), output=np.where(running, 99.0, s.output))
    one, two = (f.predictions(x, hints=False, expiry_s=20.0)[0] for x in (s, other))
    same = [c for c in range(f.COLUMNS) if c not in PIT]
    np.testing.assert_array_equal(two[known[keep]][:, same], one[keep][known[keep]][:, same])


def two_agents() -> Trace:
    steps = [StepSpec(100, 10, (), 0, "A", 2.0, 1.0, shared_prefix="main text", prefix_tokens=5),
             StepSpec(50, 10, (0,), 1, "B", 1.0, shared_prefix="helper text", prefix_tokens=5),
             StepSpec(70, 10, (1,), 1), StepSpec(120, 50, (0, 2), 0)]
    recorded = [replace(s, start_s=10.0 * i + 100.0, end_s=10.0 * i + 104.0) for i, s in enumerate(steps)]
    sessions = [SessionSpec("a", 5.0, steps), SessionSpec("b", 100.0, recorded)]
    return build_trace(TraceMeta("t", "generated:test"), sessions)


def test_a_stream_is_timed_by_the_record_or_by_the_graph() -> None:
    s = stream(two_agents())
    call = 2.0 + 10 / 50
    assert s.start_s[:4].tolist() == pytest.approx([5.0, 5.0 + call, 6.0 + 2 * call, 6.0 + 3 * call])
    assert s.start_s[4:].tolist() == [100.0, 110.0, 120.0, 130.0] and s.end_s[4] == 104.0
    assert s.after.tolist() == [3, 2, -1, -1, 7, 6, -1, -1]
    assert s.gap_s[4] == 26.0 and np.isinf(s.gap_s[3])
    assert [len(stream(two_agents(), t).types) for t in TYPES] == [1, 2, 2]
    assert stream(two_agents(), "text").types == ["main text", "helper text"]


def test_the_command(tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    write_trace(generate("webarena", 1, sessions=40), tmp_path / "t.parquet")
    args = [str(tmp_path / "t.parquet"), "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg"),
            "--then", str(tmp_path / "t.parquet")]
    out = CliRunner().invoke(app, args, catch_exceptions=False)
    assert out.exit_code == 0 and "next tool right" in out.output
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["arms"].keys() == ARMS.keys() and "trace_sha256" in result["provenance"]
    for tiers in result["arms"].values():
        assert tiers["cold"]["steps"] + tiers["warm"]["steps"] == tiers["all"]["steps"] == result["steps"]
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(("option", "word"), [(("--theta", "0"), "--theta"), (("--types", "agnet"), "agent"),
                                              (("--slow", "inf"), "--slow"), (("--expiry-s", "-1"), "--expiry-s"),
                                              (("--then", "absent.parquet"), "no such file")])
def test_bad_input_writes_nothing(tmp_path: Path, option: tuple[str, str], word: str) -> None:
    app = typer.Typer()
    register(app)
    write_trace(two_agents(), tmp_path / "t.parquet")
    args = [str(tmp_path / "t.parquet"), "--json", str(tmp_path / "a.json"), *option]
    result = CliRunner().invoke(app, args)
    assert isinstance(result.exception, UserError) and word in str(result.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_real_katas(shared_data: Path) -> None:
    trace = import_trace("katas", shared_data / "claude_code_katas" / "calls.jsonl.gz", limit=80)
    result = measure(trace, types="agent")
    every = result["arms"]["presumed"]["all"]
    assert result["agent_types"] == 2 and every["steps"] == trace.n_steps
    assert every["gap"]["n"] == every["next_tool"]["n"] == trace.n_steps - result["chains"]
    assert every["end"]["share"] == pytest.approx(result["chains"] / trace.n_steps)
