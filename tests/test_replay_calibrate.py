"""The cost fit gives back the constants of a server whose cost is known."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_server import FakeServer

from saga_rl.replay.calibrate import TERMS, Sample, fit, measure, profile_from, request_row
from saga_rl.replay.situations import mixed_row, request_sample

ROWS = [request_row(n, 1, 1, 512) for n in (64, 900, 3000, 6000)]
ROWS += [request_row(n, 64, k, 512) for n in (64, 4096) for k in (1, 4)]
ROWS += [request_row(n, 1, 1, 512, cached) for n, cached in ((3000, 2944), (6000, 5888), (6000, 5376))]
ROWS += [request_row(64, 64, 16, 512), mixed_row(64, 64, 4, 512, 900)]


def sampled(constants: np.ndarray, noise: np.ndarray) -> list[Sample]:
    seconds = np.array(ROWS) @ constants * (1 + noise)
    return [Sample(f"situation {i}", row, float(s)) for i, (row, s) in enumerate(zip(ROWS, seconds, strict=True))]


constants = st.tuples(st.floats(1e-3, 2e-2), st.floats(1e-3, 5e-2), st.floats(1e-5, 1e-3), st.floats(1e-8, 1e-6),
                      st.floats(1e-5, 1e-2), st.floats(1e-9, 1e-7), st.floats(1e-9, 1e-6)).map(np.array)


@settings(max_examples=30, deadline=None)
@given(constants)
def test_exact_times_give_exact_predictions(true: np.ndarray):
    x, error = fit(sampled(true, np.zeros(len(ROWS))))
    assert error < 1e-6
    for row in [request_row(2000, 1, 1, 512), request_row(1000, 10, 2, 512), request_row(2000, 1, 1, 512, 1024)]:
        assert np.dot(row, [x[t] for t in TERMS]) == pytest.approx(np.dot(row, true), rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(constants, st.lists(st.floats(-.3, .3), min_size=len(ROWS), max_size=len(ROWS)))
def test_noise_never_makes_a_constant_negative_nor_the_fit_worse_than_the_truth(true: np.ndarray, noise: list[float]):
    x, error = fit(sampled(true, np.array(noise)))
    assert all(v >= 0 for v in x.values())
    # The true constants are one candidate; the best fit cannot be worse.
    worst = np.sqrt(np.mean([(1 / (1 + e) - 1) ** 2 for e in noise]))
    assert error <= worst + 1e-9


def test_chunks_are_counted_as_the_engine_runs_them():
    request, iterations, tokens, kv, seq, attention, context = request_row(1200, 1, 1, 512)
    assert (request, iterations, tokens, kv, seq) == (1, 3, 1200, 0, 0)
    assert attention == pytest.approx(1200 ** 2 / 2)
    assert context == 512 + 1024
    # Four short prompts share one chunk; nine more tokens of each come in nine iterations.
    assert request_row(100, 10, 4, 512) == (1, 1 + 9, 400, 4 * 9 * 105, 36, 4 * 100 ** 2 / 2, 0)
    # Of a cached prompt only the rest is computed, but it looks at everything before it.
    assert request_row(1200, 1, 1, 512, 1024) == (1, 1, 176, 0, 0, 176 * (1024 + 88), 1024)
    # A prompt that joins costs no iterations of its own, and its chunks are smaller by the decodes beside them.
    assert mixed_row(100, 10, 4, 512, 600) == (1, 1 + 9, 400 + 600, 4 * 9 * 105, 36,
                                               4 * 100 ** 2 / 2 + 600 ** 2 / 2, 508)


def test_a_sample_knows_how_far_it_reaches():
    s = request_sample(1.0, 1200, 1, 1, 512, 128)
    assert s.region == "prefill with context" and s.seen == {"prefill_tokens": 512, "context_tokens": 128 + 1024}
    s = request_sample(1.0, 100, 10, 4, 512)
    assert s.seen == {"prefill_tokens": 400, "context_tokens": 0, "decode_seqs": 4, "decode_kv_tokens": 440}


def measured(server: FakeServer, **options) -> tuple[FakeServer, list[Sample], list[str]]:
    said: list[str] = []

    async def go():
        async with server.serve() as url:
            return await measure(url, decode_tokens=16, repeats=1, say=said.append, **options)

    return server, asyncio.run(go()), said


def test_a_server_of_known_speed_is_measured_as_such():
    server, samples, _ = measured(FakeServer(first_s=0.05, per_token_s=0.01, max_model_len=2000))
    x, _ = fit(samples)
    for s in samples:
        answer = int(s.label.split()[-2])
        known = 0.05 + 0.01 * (answer - 1)
        assert known <= s.seconds < known + 1.0
    assert x["request"] + x["base"] > 0
    regions = {s.region for s in samples}
    assert regions == {"prefill", "prefill with context", "decode, small batch", "decode, large batch", "mixed"}
    hits = [r["cached"] for r in server.requests if r["cached"]]
    cached = [s for s in samples if s.region == "prefill with context"]
    assert len(hits) == len(cached), "all other prompts must be cold"
    # The row holds what the server said that it found, block by block, not what we hoped for.
    assert sorted(s.row[TERMS.index("context")] for s in cached) == sorted(hits)


def test_what_does_not_fit_is_left_out_and_said():
    server, samples, said = measured(FakeServer(per_token_s=.01, max_model_len=2000), kv_tokens=2000, batches=(1, 4))
    assert server.most_running <= 5
    assert not any("4 x 1982" in s.label for s in samples)
    assert [t for t in said if "more than" in t] == [
        "left out: 4 x 1982 tokens, 16 answered: more than 2,000 KV tokens"]


def test_a_server_that_does_not_say_what_it_cached_is_believed_only_if_it_was_faster():
    _, samples, said = measured(FakeServer(first_s=0.05, max_model_len=2000, details=False), batches=(1,))
    assert not any(s.region == "prefill with context" for s in samples)
    assert sum("does not say what it found" in t for t in said) == 4


def test_a_profile_can_be_read_by_the_simulator(tmp_path):
    from saga_rl.sim.cost.profile import load_profile

    samples = sampled(np.array([.01, .005, 1e-4, 1e-7, 1e-3, 0, 2e-7]), np.zeros(len(ROWS)))
    profile_from(samples, "fitted", 40_000, 512, url="here").save(tmp_path / "p.json")
    back = load_profile(tmp_path / "p.json")
    assert back.per_prefill_token_s == pytest.approx(1e-4, rel=1e-3) and back.kv_tokens == 40_000
    assert back.per_context_s == pytest.approx(2e-7, rel=1e-2)
    assert back.provenance["request_s"] == pytest.approx(.01, rel=1e-3)
    assert back.provenance["error_by_region"]["all"]["p95"] < 1e-6


def test_the_command_writes_a_profile_with_ranges_and_errors(tmp_path):
    from typer.testing import CliRunner

    from saga_rl.cli.main import app
    from saga_rl.sim.cost.profile import load_profile

    server = FakeServer(first_s=0.02, per_token_s=0.004, max_model_len=1200)
    out = tmp_path / "live.json"

    async def go():
        async with server.serve() as url:
            return await asyncio.to_thread(CliRunner().invoke, app, [
                "profile", "fit", url, "-o", str(out), "--kv-tokens", "100000", "--max-num-seqs", "4", "--repeats",
                "1"])

    done = asyncio.run(go())
    assert done.exit_code == 0, done.output
    p = load_profile(out)
    assert p.kv_tokens == 100_000 and p.provenance["kind"] == "fitted"
    assert p.fitted["decode_seqs"] == (1, 4) and "mixed" in p.provenance["error_by_region"]
    assert server.most_running <= 5
    assert p.outside({"decode_seqs": 100}) == [
        "live: 100 sequences decoded in an iteration, fitted up to 4: extrapolated"]
