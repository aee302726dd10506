"""The parts of `benchmarks/fidelity.py` that need no engine: comparison, fit, logs, arguments."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from fidelity_kit import command, compare, fit, order  # noqa: E402
from fidelity_kit.log import END, GROW, START, EngineLog, compositions  # noqa: E402
from fidelity_kit.settings import NOMINAL, Setup, shorter  # noqa: E402

from saga_rl.errors import UserError  # noqa: E402
from saga_rl.policies.presets import preset  # noqa: E402
from saga_rl.sim.cluster import simulate  # noqa: E402
from saga_rl.sim.cost.profile import CostProfile  # noqa: E402
from saga_rl.sim.iteration_log import iteration_log  # noqa: E402

FIGURES = {"tct_mean_s": 10.0, "tct_p95_s": 20.0, "ttft_mean_s": 0.5, "hit_tokens": 1000, "hit_share": 0.5,
           "preemptions": 0, "recomputed_tokens": 30}
SETUP = shorter(Setup(), 12, 1.0)
POOL = 2048
"""KV tokens at which the twelve sessions evict a lot and preempt nobody."""
EXACT = 1e-6


@pytest.fixture(scope="module")
def twin():
    """A simulated run on one worker, told as an engine's log."""
    trace = SETUP.trace(0)
    config = dataclasses.replace(SETUP.config(NOMINAL, POOL), workers=1)
    result = simulate(trace, config, preset("lru"), slo=False)
    assert result.metrics["preemptions"] == 0 and result.metrics["evictions"] > 100
    t, have, events, spans = trace.steps, {}, [], []
    for k, it in enumerate(iteration_log(trace, config, preset("lru"))):
        spans.append((it.start_s, it.start_s + it.seconds))
        for step, n in it.tokens:
            kind = GROW if step in have else START
            have.setdefault(step, int(result.steps["cached_tokens"][step]))
            events.append((k, kind, step, have[step], n, int(t.prompt_tokens[step])))
            have[step] += n
        events += [(k, END, step, have[step], 0, 0) for step, _ in it.tokens
                   if have[step] == t.prompt_tokens[step] + t.output_tokens[step] - 1]
    log = EngineLog(result.steps["ready_s"], result.steps["first_token_s"], result.steps["done_s"],
                    result.steps["cached_tokens"].astype(np.int64), result.steps["preemptions"].astype(np.int64),
                    np.array(spans), np.array(events, np.int64), 0.0)
    return trace, result, log


def test_errors_ratios_spread_and_targets():
    runs = [FIGURES | {"tct_mean_s": x, "tct_p95_s": 18.0, "hit_tokens": h} for x, h in
            ((9.0, 1000), (10.0, 1000), (9.5, 1002))]
    out = compare.compare(FIGURES, runs)
    mean = out["tct_mean_s"]
    assert mean["ratio"] == pytest.approx(10 / 9.5) and mean["error"] == pytest.approx(10 / 9.5 - 1)
    assert not mean["met"] and mean["within_spread"]
    assert mean["measured"] == {"mean": 9.5, "min": 9.0, "max": 10.0, "mean_sd": pytest.approx(0.5 / 3 ** 0.5)}
    assert not out["tct_p95_s"]["met"] and not out["tct_p95_s"]["within_spread"]  # 11 % above
    assert out["hit_tokens"]["met"] is False  # one run hit other tokens
    assert out["preemptions"]["ratio"] is None and out["ttft_mean_s"]["met"] is None


def test_targets_are_met_up_to_their_border():
    out = compare.compare(FIGURES | {"tct_mean_s": 10.49, "tct_p95_s": 18.01}, [FIGURES, FIGURES])
    assert out["tct_mean_s"]["met"] and out["tct_p95_s"]["met"] and out["hit_tokens"]["met"]
    assert compare.compare(FIGURES, [FIGURES])["tct_mean_s"]["measured"]["mean_sd"] is None
    with pytest.raises(UserError, match="no measured run"):
        compare.compare(FIGURES, [])


def test_figures_are_those_of_the_simulator(twin):
    trace, result, log = twin
    run, same = compare.measured(trace, [log], POOL // SETUP.block_tokens, SETUP.block_tokens)
    ours = compare.figures(trace, run)
    for key in ("tct_mean_s", "tct_p95_s", "hit_share", "preemptions", "recomputed_tokens"):
        assert ours[key] == pytest.approx(result.metrics[key], rel=EXACT), key
    assert ours["ttft_mean_s"] == pytest.approx(
        float((result.steps["first_token_s"] - result.steps["ready_s"]).mean()))
    assert same.starts == trace.n_steps and same.differing == 0 and same.unfit == 0
    apart = compare.step_by_step(run, dataclasses.replace(run, done_s=run.done_s + 1e-3))
    assert (apart["other_times"], apart["other_hits"]) == (trace.n_steps, 0)
    assert apart["largest_difference_s"] == pytest.approx(1e-3)


def test_a_step_that_was_not_served_is_no_figure(twin):
    trace, _, log = twin
    done = log.done_s.copy()
    done[3] = np.nan
    run, _ = compare.measured(trace, [dataclasses.replace(log, done_s=done)], POOL // 32, 32)
    with pytest.raises(UserError, match=f"1 of {trace.n_steps} steps"):
        compare.figures(trace, run)


def test_another_order_of_events_is_noticed(twin):
    """A hit that the cache cannot have made, and a pool in which the log does not fit."""
    trace, _, log = twin
    events = log.events.copy()
    at = np.flatnonzero((events[:, 1] == START) & (events[:, 3] >= 2 * SETUP.block_tokens))[0]
    events[at, 3] -= SETUP.block_tokens
    events[at, 4] += SETUP.block_tokens
    assert order.replay(trace, [dataclasses.replace(log, events=events)], POOL // 32, 32).differing >= 1
    assert order.replay(trace, [log], POOL // 32 // 8, 32).unfit > 0


def test_the_fit_recovers_the_constants_behind_a_log(twin):
    _, _, log = twin
    rows, seconds = fit.iterations([log])
    assert len(rows) == len(log.spans) and compositions(log).sum() == pytest.approx(rows.sum())
    got = fit.fit_profile(rows, seconds, SETUP.max_batched_tokens)
    assert got.residual_share < EXACT and got.explained > 1 - EXACT
    for row, s in zip(rows[:200], seconds[:200], strict=True):
        assert got.profile.seconds(*row) == pytest.approx(s, rel=1e-5) == pytest.approx(NOMINAL.seconds(*row))
    assert got.profile.per_kv_token_s == pytest.approx(NOMINAL.per_kv_token_s, rel=1e-3)
    assert got.profile.per_attn_s == pytest.approx(NOMINAL.per_attn_s, rel=1e-3)


def test_the_fitted_times_add_up_to_the_measured(twin):
    """Noise of any shape moves no total: what the weights are for."""
    _, _, log = twin
    rows, seconds = fit.iterations([log])
    noisy = seconds * np.random.default_rng(0).lognormal(0.0, 0.5, len(seconds))
    got = fit.fit_profile(rows, noisy, SETUP.max_batched_tokens)
    assert got.regions["all"]["total"] == pytest.approx(0.0, abs=1e-4)
    assert sum(r["share"] for n, r in got.regions.items() if n != "all") == pytest.approx(1.0)
    assert sum(r["points"] for n, r in got.regions.items() if n != "all") == len(rows)
    assert all(v >= 0 for v in got.profile.vector())


def test_slower_times_are_slower_everywhere():
    profile = CostProfile("x", 1e-3, 1e-5, 1e-7, 1e-4, 1e-9, per_context_s=1e-8, batch_tokens=(1.0, 8.0),
                          batch_s=(0.0, 1e-3))
    row = (5, 40.0, 7, 100, 3)
    assert compare.slowed(profile, 1.01).seconds(*row) == pytest.approx(1.01 * profile.seconds(*row))


def test_pools_follow_from_demand_and_level():
    assert SETUP.pool_tokens(8960, 1.4) == 3200 and SETUP.pool_tokens(8960, 1.4) % SETUP.block_tokens == 0
    trace = SETUP.trace(0)
    shares = compare.sticky_shares(trace, SETUP.config(NOMINAL, 1 << 20))
    assert sorted(s for share in shares for s in share) == list(range(trace.n_sessions))


@pytest.mark.parametrize("argv, says", [
    (["--levels", "0"], "--levels"), (["--levels", "1.4", "nan"], "--levels"), (["--repeats", "0"], "--repeats"),
    (["--sessions", "3"], "--sessions"), (["--seed", "-1"], "--seed"), (["--fit-seconds", "0"], "--fit-seconds"),
    (["--workload", "swe"], "swe-bench"), (["--out", "no/such/folder"], "no/such/folder"),
    (["--levels", "50"], "50 leaves"),
])
def test_bad_arguments_end_with_one_line_and_status_2(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        command.main(argv)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert says in said[-1] and "Traceback" not in " ".join(said)
    assert list(tmp_path.iterdir()) == []
