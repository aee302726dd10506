"""`saga-rl serve --lazy-offload` on an emulated device: what the pool lost comes back from CPU memory."""

from __future__ import annotations

import pytest
from live_kit import BLOCK, Server, until

from saga_rl.runtime.config import versions

pytestmark = [pytest.mark.emulated, pytest.mark.timeout(2400),
              pytest.mark.skipif(not versions.at_least(0, 32), reason="from vLLM 0.32 on")]


def test_what_the_pool_lost_comes_back(tmp_path):
    server = Server(tmp_path, "--policy", "auto", "--lazy-offload", "--kv-offloading-size", "0.1", window=1024,
                    blocks=64, step_s=0.01)

    def ask(name: str) -> int:
        r = server.http.post("/v1/completions", json={
            "model": "tiny", "prompt": f"{name} tells a long story " * 80, "max_tokens": 4, "ignore_eos": True})
        assert r.status_code == 200, r.text
        usage = r.json()["usage"]
        assert 300 < usage["prompt_tokens"] < 1000
        return (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0

    try:
        server.wait()
        assert ask("first") < BLOCK
        for k in range(8):  # more than the pool holds
            ask(f"other {k}")
        until(lambda: server.engines()[0].get("cpu tier/stored", 0) > 0, "KV is copied to CPU memory")
        assert ask("first") >= 8 * BLOCK
        counts = server.engines()[0]
        assert not any(v for k, v in counts.items() if k.startswith("failed/")), counts
        assert not counts.get("invariants broken"), server.log.read_text()[-2000:]
    finally:
        server.stop()
    assert server.processes() == []
