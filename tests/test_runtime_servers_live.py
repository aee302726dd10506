"""Two API servers over two real engines: they share nothing, and a session still stays on one engine."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from test_runtime_serve import Server

from saga_rl.runtime.tiny_model import build_tiny_model

pytest.importorskip("vllm", reason="vLLM is not installed (extra serve or serve-cpu)")

SESSIONS, STEPS = 12, 4


@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_a_session_stays_on_one_engine_whichever_server_takes_its_requests(tmp_path):
    import httpx

    numbers = tmp_path / "numbers"
    server = Server(build_tiny_model(tmp_path / "model", layers=2, max_len=1024), tmp_path / "log", "--policy", "saga",
                    "-dp", "2", "--api-server-count", "2", "--metrics", str(numbers))

    async def one(k: int, at_once: asyncio.Semaphore) -> list[int]:
        out = []
        for step in range(STEPS):
            async with at_once, httpx.AsyncClient() as client:  # a new connection each time: any server may take it
                r = await client.post(f"http://127.0.0.1:{server.port}/v1/completions", timeout=300, json={
                    "model": server.model, "prompt": f"session {k} " * (20 + 10 * step), "max_tokens": 4,
                    "ignore_eos": True, "session_id": f"s{k}"})
            out.append(r.status_code)
        return out

    async def scene() -> list[list[int]]:
        at_once = asyncio.Semaphore(6)
        return await asyncio.gather(*(one(k, at_once) for k in range(SESSIONS)))

    try:
        server.wait()
        assert asyncio.run(scene()) == [[200] * STEPS] * SESSIONS
        time.sleep(2.5)  # counters are handed over every second
        routers = [json.loads((numbers / f"router-{k}.json").read_text()) for k in (0, 1)]
        engines = [json.loads((numbers / f"engine-{k}.json").read_text()) for k in (0, 1)]
    finally:
        server.stop()
    assert sum(r.get("placements", 0) for r in routers) == SESSIONS * STEPS
    assert all(r.get("placements", 0) > 0 for r in routers), routers
    assert sum(e["requests"] for e in engines) == SESSIONS * STEPS
    assert sum(e["chains"] for e in engines) == SESSIONS  # one that had been on both would count twice
    assert all(e["chains"] > 0 for e in engines)
    assert "there are several API servers" in server.log.read_text()
