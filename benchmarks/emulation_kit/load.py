"""A server of emulated engines under a steady load of agents: CPU of its processes, and how late its answers are."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any

import aiohttp

from saga_rl.processes import SERVE, Child, free_port
from saga_rl.sim.cost.profile import load_profile

AGENTS, CONTEXT, GROWTH, ANSWER, TOOL_S = 4, 20_000, 1_500, 150, 2.0
"""An engine's agents; a context at first, what a step adds, an answer (tokens), and a tool (device's seconds)."""


def measure(model: Path, engines: int, seconds: float, scale: float, profile: str, out: Path) -> dict[str, Any]:
    """Start a server, load it for `seconds` real seconds, stop it; one row."""
    port = free_port()
    flags = ["--policy", "likely", "--emulate", profile, "--time-scale", str(scale), "--port", str(port), "--host",
             "127.0.0.1", "--data-parallel-size", str(engines), "--disable-uvicorn-access-log"]
    begin = time.monotonic()
    with Child(f"{engines} engines", [*SERVE, str(model), *flags], out / f"server-{engines}.log",
               {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}) as server:
        asyncio.run(_ready(f"http://127.0.0.1:{port}", server))
        started = time.monotonic() - begin
        cpu, real = _cpu(server.process.pid), time.monotonic()
        steps, late = asyncio.run(_load(f"http://127.0.0.1:{port}", str(model), engines, seconds, scale, profile))
        took = time.monotonic() - real
        used = _cpu(server.process.pid) - cpu
    late.sort()
    return {"engines": engines, "time_scale": scale, "start_s": started, "answers": steps,
            "cores_used": used / took, "decode_late_median": late[len(late) // 2], "decode_late_p95":
            late[int(.95 * (len(late) - 1))]}


async def _ready(url: str, server: Child) -> None:
    async with aiohttp.ClientSession() as http:
        while server.process.poll() is None:
            try:
                async with http.get(f"{url}/health") as r:
                    if r.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(.3)
    raise server.failure("ended before it was ready")


async def _load(url: str, model: str, engines: int, seconds: float, scale: float, profile: str
                ) -> tuple[int, list[float]]:
    """Answers, and for each the time between its tokens over the least that the profile gives for it alone."""
    cost, end = load_profile(profile), time.monotonic() + seconds
    steps, late = 0, []

    async def agent(n: int, http: aiohttp.ClientSession) -> None:
        nonlocal steps
        rng = random.Random(n)
        tokens = [rng.randrange(300, 499) for _ in range(CONTEXT)]
        while time.monotonic() < end:
            body = {"model": model, "prompt": tokens, "max_tokens": ANSWER, "ignore_eos": True, "stream": True,
                    "return_token_ids": True, "session_id": f"s{n}"}
            first = last = 0.0
            got = 0
            async with http.post(f"{url}/v1/completions", json=body) as r:
                async for line in r.content:
                    if b'"token_ids"' in line:
                        last, got = time.monotonic(), got + 1
                        first = first or last
            steps += 1
            if got > 1:
                alone = cost.seconds(kv_read=len(tokens), decoding=1)
                late.append((last - first) * scale / (ANSWER - 1) / alone)
            tokens += [rng.randrange(300, 499) for _ in range(GROWTH)]
            await asyncio.sleep(rng.expovariate(1.0) * TOOL_S / scale)

    async with aiohttp.ClientSession(read_bufsize=1 << 24, connector=aiohttp.TCPConnector(limit=0)) as http:
        await asyncio.gather(*(agent(n, http) for n in range(AGENTS * engines)))
    return steps, late


def _cpu(root: int) -> float:
    """CPU seconds of a process and all below it."""
    ticks, below = 0, {root}
    rows = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            rows[int(entry.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    grown = True
    while grown:
        grown = False
        for pid, (parent, _) in rows.items():
            if parent in below and pid not in below:
                below.add(pid)
                grown = True
    ticks = sum(rows[pid][1] for pid in below if pid in rows)
    return ticks / os.sysconf("SC_CLK_TCK")
