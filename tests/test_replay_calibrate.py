"""The cost fit gives back the constants of a server whose cost is known."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_server import FakeServer

from saga_rl.runtime.calibrate import TERMS, Sample, fit, measure, profile_from, request_row

ROWS = [request_row(n, 1, 1, 512) for n in (64, 900, 3000, 6000)]
ROWS += [request_row(n, 64, k, 512) for n in (64, 4096) for k in (1, 4)]


def sampled(constants: np.ndarray, noise: np.ndarray) -> list[Sample]:
    seconds = np.array(ROWS) @ constants * (1 + noise)
    return [Sample(f"situation {i}", row, float(s)) for i, (row, s) in enumerate(zip(ROWS, seconds, strict=True))]


constants = st.tuples(st.floats(1e-3, 2e-2), st.floats(1e-3, 5e-2), st.floats(1e-5, 1e-3), st.floats(1e-8, 1e-6),
                      st.floats(1e-5, 1e-2), st.floats(1e-9, 1e-7)).map(np.array)


@settings(max_examples=30, deadline=None)
@given(constants)
def test_exact_times_give_exact_predictions(true: np.ndarray):
    x, error = fit(sampled(true, np.zeros(len(ROWS))))
    assert error < 1e-6
    for row in [request_row(2000, 1, 1, 512), request_row(1000, 10, 2, 512)]:
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
    request, iterations, tokens, kv, seq, attention = request_row(1200, 1, 1, 512)
    assert (request, iterations, tokens, kv, seq) == (1, 3, 1200, 0, 0)
    assert attention == pytest.approx(1200 ** 2 / 2)
    # Four short prompts share one chunk; nine more tokens of each come in nine iterations.
    assert request_row(100, 10, 4, 512) == (1, 1 + 9, 400, 4 * 9 * 105, 36, 4 * 100 ** 2 / 2)


def test_a_server_of_known_speed_is_measured_as_such():
    async def go():
        server = FakeServer(first_s=0.05, per_token_s=0.01, max_model_len=2000)
        async with server.serve() as url:
            return server, await measure(url, decode_tokens=16, repeats=1)

    server, samples = asyncio.run(go())
    x, _ = fit(samples)
    for s in samples:
        answer = int(s.label.split()[-2])
        known = 0.05 + 0.01 * (answer - 1)
        assert known <= s.seconds < known + 1.0
    assert all(r["cached"] == 0 for r in server.requests), "prompts must be cold"
    assert x["request"] + x["base"] > 0


def test_a_profile_can_be_read_by_the_simulator(tmp_path):
    from saga_rl.sim.cost import load_profile

    samples = sampled(np.array([.01, .005, 1e-4, 1e-7, 1e-3, 0]), np.zeros(len(ROWS)))
    profile_from(samples, "fitted", 40_000, 512, url="here").save(tmp_path / "p.json")
    back = load_profile(tmp_path / "p.json")
    assert back.per_prefill_token_s == pytest.approx(1e-4, rel=1e-3) and back.kv_tokens == 40_000
    assert back.provenance["request_s"] == pytest.approx(.01, rel=1e-3)
