"""`saga-rl bench` on emulated engines: the real thing, as small as it can be."""

from __future__ import annotations

import json

import pytest
from bench_stand import make, spec

from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.experiments.bench.arms import ARMS
from saga_rl.experiments.bench.run import run
from saga_rl.experiments.bench.settings import Settings

PROFILE = "h100-llama3.1-8b-tp1"


@pytest.mark.vllm
def test_two_arms_on_emulated_engines(tmp_path):
    """One engine an arm, three sessions, one repeat."""
    pytest.importorskip("vllm", reason="vLLM is not installed (extra serve or serve-cpu)")
    write_trace(make(*(spec(f"s{k}", 3, first=600) for k in range(3))), tmp_path / "t.parquet")
    s = Settings(tuple(ARMS[n] for n in ("stock", "likely")), (str(tmp_path / "t.parquet"),), emulate=PROFILE,
                 engines=1, kv_tokens=2048, window=1024, concurrency=3, repeats=1, time_scale=10.0, expiry_s=1.0)
    run(s, tmp_path / "out", at_once=1)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["complete"] and read_trace(tmp_path / "t.parquet").n_sessions == 3
    for a in result["arms"].values():
        assert a["failed_runs"] == 0 and a["sessions_done"] == 3 and 0 < a["hit_share"] < 1
