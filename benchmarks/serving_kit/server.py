"""Two real servers, stock and ours, under traffic that no agent sends: what a request costs more, and throughput.

Independent chats: no session, no shared prefix, nothing to gain from any policy. Both servers are up at once and take
turns, so what else the machine does meets both.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from saga_rl.experiments.bench.measure import machine
from saga_rl.experiments.bench.servers import KEY, MODEL, Server
from saga_rl.processes import free_port

__all__ = ["machine", "measure"]
STOCK = "stock"
WORDS = [f"word{i}" for i in range(64)]
POOL_TOKENS, BLOCK_TOKENS = 16_384, 32
FLAGS = ("--host", "127.0.0.1", "--served-model-name", MODEL, "--dtype", "float32", "--enforce-eager",
         "--block-size", str(BLOCK_TOKENS), "--num-gpu-blocks-override", str(POOL_TOKENS // BLOCK_TOKENS + 1),
         "--max-model-len", "2080", "--max-num-seqs", "32", "--max-num-batched-tokens", "2048",
         "--disable-uvicorn-access-log")
AT_ONCE = 12
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    # vLLM would bind the threads of both engines to the same core: it knows of one engine a NUMA node.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
}
"""Of CPU engines."""
HEADERS = {"Authorization": f"Bearer {KEY}"}


def chat(rng: np.random.Generator, words: int, answer: int) -> dict[str, Any]:
    """A question of `words` random words, answered in `answer` tokens."""
    return {"model": MODEL, "max_tokens": answer, "temperature": 0, "ignore_eos": True,
            "messages": [{"role": "user", "content": " ".join(rng.choice(WORDS, words))}]}


async def one(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> float:
    """Seconds to the whole answer. Raises on any other status than 200."""
    begin = time.perf_counter()
    async with http.post(f"{url}/v1/chat/completions", json=body) as answer:
        text = await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {text[:300]!r}")
    return time.perf_counter() - begin


async def latencies(urls: dict[str, str], requests: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """(requests,) seconds by server: one request at a time, the same one at each server, who is first changes."""
    rng, times = np.random.default_rng(seed), {name: np.zeros(requests) for name in urls}
    async with aiohttp.ClientSession(headers=HEADERS) as http:
        for k in range(-10, requests):
            body = chat(rng, 60, 1)
            for name in (list(urls) if k % 2 else list(urls)[::-1]):
                seconds = await one(http, urls[name], body)
                if k >= 0:
                    times[name][k] = seconds
    return times


async def burst(url: str, bodies: list[dict[str, Any]]) -> float:
    """Tokens a second of answers, `AT_ONCE` requests at a time."""
    places = asyncio.Semaphore(AT_ONCE)

    async def placed(body: dict[str, Any]) -> None:
        async with places:
            await one(http, url, body)

    async with aiohttp.ClientSession(headers=HEADERS, timeout=aiohttp.ClientTimeout(total=600)) as http:
        begin = time.perf_counter()
        await asyncio.gather(*(placed(b) for b in bodies))
        return sum(b["max_tokens"] for b in bodies) / (time.perf_counter() - begin)


def interval(values: NDArray[np.float64], of: Any, seed: int) -> tuple[float, float, float]:
    """`of` the values, and its 95 % bootstrap interval."""
    rng = np.random.default_rng(seed)
    draws = [of(values[rng.integers(0, len(values), len(values))]) for _ in range(1000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(of(values)), float(low), float(high)


def measure(ours: str, model: Path, folder: Path, requests: int, rounds: int, a_round: int, console: Console,
            seed: int = 0) -> dict[str, Any]:
    """ours: the policy beside stock's. `latency_ms`: p50 by server; `more_ms`: median of paired differences and its
    interval; `throughput`: ratio of ours to stock over `rounds` pairs of rounds and its interval, and tokens/s."""
    with ExitStack() as stack:
        servers = {}
        for name in (STOCK, ours):
            port = free_port()
            words = ["--policy", name, "--port", str(port), *FLAGS]
            servers[name] = stack.enter_context(
                Server(name, str(model), words, port, folder / f"server-{name}.log", name, ENVIRONMENT))
            servers[name].ready()
            console.print(f"server {name}: up")
        urls = {name: s.url for name, s in servers.items()}
        times = asyncio.run(latencies(urls, requests, seed))
        rng, rates = np.random.default_rng(seed + 1), {name: np.zeros(rounds) for name in urls}
        for k in range(-1, rounds):  # the first pair warms up
            lengths = np.clip(rng.lognormal(4.6, 0.7, a_round), 8, 250).astype(int)  # of 7 tokens
            bodies = [chat(rng, int(n), int(rng.integers(8, 64))) for n in lengths]
            for name in (list(urls) if k % 2 else list(urls)[::-1]):
                rate = asyncio.run(burst(urls[name], bodies))
                if k >= 0:
                    rates[name][k] = rate
    more = interval(1e3 * (times[ours] - times[STOCK]), np.median, seed)
    ratio = interval(np.log(rates[ours] / rates[STOCK]), np.mean, seed)
    return {"policy": ours, "requests": requests, "rounds": rounds, "requests_a_round": a_round, "at_once": AT_ONCE,
            "latency_ms": {n: {"p50": 1e3 * float(np.median(t)), "p99": 1e3 * float(np.quantile(t, 0.99))}
                           for n, t in times.items()},
            "more_ms": more, "tokens_per_s": {n: float(r.mean()) for n, r in rates.items()},
            "throughput": tuple(float(np.exp(x)) for x in ratio),
            "met": {"p50 < 0.5 ms": more[0] < 0.5, "1.00 +- 0.02": abs(float(np.exp(ratio[0])) - 1.0) <= 0.02}}
