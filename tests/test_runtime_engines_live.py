"""Two real engines behind `saga-rl serve`: a queued request is stolen, an engine is killed, and then the other."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest
from test_runtime_serve import Server

from saga_rl.runtime.tiny_model import build_tiny_model

pytest.importorskip("vllm", reason="vLLM is not installed (extra serve or serve-cpu)")
psutil = pytest.importorskip("psutil", reason="psutil, which comes with vLLM, is not installed")

SLOTS = 3
LONG = 700
"""Tokens of an answer for which others wait longer than their prompts take to compute, on a busy machine, too: after a
slow start the router believes that prompts take seconds."""
MANY = 700
"""Tokens of an answer that is far from its end when its first are heard of, however busy the machine."""
CONFIG = {"saga": {"policy": {"eviction": "youngest", "placement": "saga:theta=100,steal=1", "ordering": "session-fcfs",
                              "admission": "reserve-older"}, "check": "log"}}


class Two(Server):
    """A server over two engines of `SLOTS` running requests each."""

    def __init__(self, folder: Path) -> None:
        self.numbers = folder / "numbers"
        super().__init__(build_tiny_model(folder / "model", layers=2, max_len=1024), folder / "log", "-dp", "2",
                         "--max-num-seqs", str(SLOTS), "--num-gpu-blocks-override", "120",
                         "--metrics", str(self.numbers), "--additional-config", json.dumps(CONFIG))

    def engine(self, rank: int) -> int:
        """Process number of an engine."""
        titles = {p.pid: " ".join(p.cmdline()) for p in psutil.Process(self.process.pid).children(recursive=True)}
        found = [pid for pid, title in titles.items() if f"EngineCore_DP{rank}" in title]
        assert len(found) == 1, titles
        return found[0]

    def counts(self, name: str = "router") -> dict:
        """Counters, those of the last second included."""
        time.sleep(2.5)
        return json.loads((self.numbers / f"{name}.json").read_text())

    async def ask(self, client, session: str, tokens: int, *, rank: int | None = None,
                  first: asyncio.Event | None = None) -> tuple[int, str]:
        """(tokens of the whole answer, 0 if its end never came; the error that came instead), streamed."""
        body = {"model": self.model, "prompt": f"{session} says something " * 12, "max_tokens": tokens, "stream": True,
                "temperature": 0, "ignore_eos": True, "session_id": session,
                "stream_options": {"include_usage": True}}
        headers = {} if rank is None else {"X-data-parallel-rank": str(rank)}
        n, error = 0, ""
        async with client.stream("POST", f"http://127.0.0.1:{self.port}/v1/completions", json=body, headers=headers,
                                 timeout=300) as answer:
            if answer.status_code != 200:
                return 0, (await answer.aread()).decode()
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    error = json.dumps(chunk["error"]) if "error" in chunk else error
                    n = (chunk.get("usage") or {}).get("completion_tokens", n)
                    if first is not None:
                        first.set()
        return n, error


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    s = Two(tmp_path_factory.mktemp("two"))
    try:
        s.wait()
        yield s
    finally:
        s.stop()


def health(server) -> int:
    import httpx

    try:
        return httpx.get(f"http://127.0.0.1:{server.port}/health", timeout=10).status_code
    except httpx.TransportError:
        return 0


def gauges(server, name: str) -> dict[str, float]:
    """One of vLLM's gauges by engine."""
    import httpx

    out = {}
    for line in httpx.get(f"http://127.0.0.1:{server.port}/metrics", timeout=10).text.splitlines():
        if line.startswith(f"vllm:{name}{{"):
            labels, value = line.rsplit(" ", 1)
            out[labels.split('engine="')[1].split('"')[0]] = float(value)
    return out


@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_1_an_idle_engine_takes_a_queued_request_and_the_stream_goes_on(server):
    import httpx

    async def scene():
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None)) as client:
            for k in range(9):  # they live on engine 0 from now on
                assert await server.ask(client, f"s{k}", 1, rank=0) == (1, "")
            return await asyncio.gather(*(server.ask(client, f"s{k}", LONG) for k in range(9)))

    assert asyncio.run(scene()) == [(LONG, "")] * 9
    router = server.counts()
    assert router.get("steals", 0) >= 1, router
    assert server.counts("engine-0")["given up to another engine"] == router["steals"]
    assert server.counts("engine-1")["requests"] == router["steals"]
    assert all("invariants broken" not in server.counts(f"engine-{k}") for k in (0, 1))
    assert [k for k in router if k.startswith("fallback") and "budget" not in k] == []


@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_2_an_engine_is_killed_under_load(server):
    import httpx

    async def scene():
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None)) as client:
            began, engine = [asyncio.Event() for _ in range(4 * SLOTS)], server.engine(0)
            asks = [asyncio.ensure_future(server.ask(client, f"k{k}", MANY, first=began[k], rank=(k % 2, None)[k >= 8]))
                    for k in range(4 * SLOTS)]
            first = [k for k in range(8) if k % 2 == 0]  # these are engine 0's
            while not any(began[k].is_set() for k in first):  # on a busy machine it would be done before it is heard of
                os.kill(engine, signal.SIGCONT)
                await asyncio.sleep(0.05)
                os.kill(engine, signal.SIGSTOP)
                await asyncio.sleep(0.5)
            await asyncio.sleep(2.0)  # what it has said is known before it dies
            assert any(began[k].is_set() and not asks[k].done() for k in first), "it was done before it was killed"
            before = [e.is_set() for e in began]
            os.kill(engine, signal.SIGKILL)
            answers = await asyncio.gather(*asks)
            later = await asyncio.gather(*(server.ask(client, f"k{k}", 5) for k in range(4 * SLOTS)))
            return before, answers, later

    before, answers, later = asyncio.run(scene())
    failed = [k for k, (n, error) in enumerate(answers) if error]
    assert 1 <= len(failed) <= SLOTS, answers
    assert all(before[k] and answers[k][0] == 0 and "Internal server error" in answers[k][1] for k in failed), answers
    assert all(answers[k] == (MANY, "") for k in range(4 * SLOTS) if k not in failed), answers
    assert later == [(5, "")] * 4 * SLOTS
    assert health(server) == 200
    router = server.counts()
    assert router["engines lost"] == 1
    assert router["engines live"] == 1
    assert router["requests failed with an engine"] == len(failed)
    assert router["requests sent again"] >= 1
    assert "invariants broken" not in server.counts("engine-1")
    assert gauges(server, "kv_cache_usage_perc")["1"] == 0  # every block that was taken is free again
    assert gauges(server, "num_requests_running")["1"] == gauges(server, "num_requests_waiting")["1"] == 0
    assert "engine 0 ended (status -9); 1 of 2 serve on" in server.log.read_text()


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_3_the_last_engines_death_ends_the_server_as_ever(server):
    os.kill(server.engine(1), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while health(server) == 200 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert health(server) in (0, 503)
    assert "the last engine ended" in server.log.read_text()
