"""A server under load for a while: does memory grow, are blocks lost, does any request fail?

    python benchmarks/soak.py [--minutes 30] [--sessions-per-min 90] [--policy saga+] [--out runs/soak]

One `saga-rl serve` with one emulated engine, invariants walked as it serves. Sessions arrive as a
Poisson stream: growing contexts, tools of three kinds, four tenants; one in ten is broken off in mid-stream, one in
three never says that it ended. Every five seconds the resident memory of each process and the engine's counters are
read. Growth is the slope of a line through the second half of the samples.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import aiohttp
import matplotlib.pyplot as plt
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from saga_rl.experiments.bench.servers import EMULATED, KEY, MODEL, Server
from saga_rl.learn.script import progress
from saga_rl.processes import free_port
from saga_rl.provenance import provenance
from saga_rl.runtime.emulate.shapes import PROFILE_OF, write_model

SAMPLE_S = 5.0
CONTEXT, POOL, SHAPE = 2048, 24_576, "llama3.1-8b"
TOOLS = {"bash": 0.2, "search": 0.8, "human": 6.0}
"""Mean seconds of each."""


class Load:
    """Sends sessions and counts what came of their requests."""

    def __init__(self, url: str, rate_per_s: float, seed: int) -> None:
        self.url, self.rate, self.rng = url, rate_per_s, random.Random(seed)
        self.counts = {"sessions": 0, "requests": 0, "answered": 0, "broken off": 0, "failed": 0}
        self.alive = 0

    async def run(self, until: float) -> None:
        """New sessions until `until` (monotonic s); returns when the last one has ended."""
        timeout = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0),
                                         headers={"Authorization": f"Bearer {KEY}"}) as http:
            tasks: set[asyncio.Task[None]] = set()
            while time.monotonic() < until:
                await asyncio.sleep(self.rng.expovariate(self.rate))
                self.counts["sessions"] += 1
                task = asyncio.create_task(self.session(http, self.counts["sessions"]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    async def session(self, http: aiohttp.ClientSession, number: int) -> None:
        rng = random.Random(f"{self.rng.random()}-{number}")
        tokens = [rng.randrange(10, 500) for _ in range(rng.randrange(100, 500))]
        steps, tell, stop_at = rng.randrange(1, 9), rng.random() < 2 / 3, rng.random() < 0.1
        tool: str | None = None
        self.alive += 1
        try:
            for k in range(steps):
                last = k == steps - 1
                hints: dict[str, Any] = {"saga_tenant": f"team-{number % 4}", "saga_final": int(last and tell)}
                if tool is not None:
                    hints["saga_tool"] = tool
                body = {"model": MODEL, "prompt": tokens, "max_tokens": 16, "ignore_eos": True, "stream": True,
                        "session_id": f"soak-{number}", "vllm_xargs": hints}
                if not await self.request(http, body, break_off=stop_at and last):
                    return
                tokens = tokens + [rng.randrange(10, 500) for _ in range(rng.randrange(20, 200))]
                if len(tokens) > CONTEXT - 64:
                    return
                tool = rng.choice(list(TOOLS))
                if not last:
                    await asyncio.sleep(rng.expovariate(1 / TOOLS[tool]))
        finally:
            self.alive -= 1

    async def request(self, http: aiohttp.ClientSession, body: dict[str, Any], break_off: bool) -> bool:
        self.counts["requests"] += 1
        try:
            async with http.post(f"{self.url}/v1/completions", json=body) as answer:
                if answer.status != 200:
                    self.counts["failed"] += 1
                    return False
                async for line in answer.content:
                    if break_off and line.startswith(b"data:"):
                        self.counts["broken off"] += 1
                        return False
                    if line.strip() == b"data: [DONE]":
                        self.counts["answered"] += 1
                        return True
        except (aiohttp.ClientError, TimeoutError):
            pass
        self.counts["failed"] += 1
        return False


def memory(process: psutil.Process) -> dict[str, float]:
    """MiB resident by process: the server, and each that it started, by name and number."""
    out = {}
    for p in [process, *process.children(recursive=True)]:
        try:
            out[f"{p.name()[:24]} {p.pid}"] = p.memory_info().rss / 2**20
        except psutil.Error:
            continue
    return out


def slope(seconds: list[float], values: list[float]) -> float:
    """Units of `values` an hour, by least squares over the second half."""
    half = len(seconds) // 2
    t, y = np.asarray(seconds[half:]), np.asarray(values[half:])
    return float(np.polyfit(t, y, 1)[0] * 3600) if len(t) > 2 else float("nan")


async def soak(server: Server, load: Load, seconds: float, counters: Path) -> list[dict[str, Any]]:
    begin, process, samples = time.monotonic(), psutil.Process(server.process.pid), []
    work = asyncio.create_task(load.run(begin + seconds))
    with progress() as bar:
        job = bar.add_task("soaking", total=seconds, note="")
        while not work.done():
            await asyncio.wait([work], timeout=SAMPLE_S)
            have = json.loads(counters.read_text()) if counters.exists() else {}
            at = time.monotonic() - begin
            samples.append({"s": at, "memory": memory(process), "alive": load.alive, "counters": have})
            bar.update(job, completed=min(at, seconds), note=f"{load.counts['answered']} answered, {load.alive} alive")
    await work
    return samples


def report(samples: list[dict[str, Any]], load: Load, out: Path, facts: dict[str, Any], console: Console) -> None:
    inside = [x for x in samples if x["alive"] > 0]
    seconds = [x["s"] for x in inside]
    names = [n for n in inside[-1]["memory"] if all(n in x["memory"] for x in inside[len(inside) // 2:])]
    table = Table("process", "MiB at half time", "MiB at the end", "MiB an hour", title="resident memory")
    growth = {}
    picture, axis = plt.subplots(figsize=(8, 4))
    for n in names:
        values = [x["memory"].get(n, float("nan")) for x in inside]
        growth[n] = slope(seconds, values)
        table.add_row(n, f"{values[len(values) // 2]:.1f}", f"{values[-1]:.1f}", f"{growth[n]:+.1f}")
        axis.plot(np.asarray(seconds) / 60, values, label=n)
    last = samples[-1]["counters"]
    shown = {k: last.get(k, 0) for k in ("requests", "invariants broken", "chains", "expired", "preemptions")}
    shown |= {k: v for k, v in last.items() if k.startswith(("fallback", "evicted", "failed"))}
    counts = Table("count", "value", title="requests and the engine's counters at the end")
    for k, v in (load.counts | {f"engine: {k}": v for k, v in shown.items()}).items():
        counts.add_row(k, f"{v}")
    console.print(table, counts)
    axis.set_xlabel("minutes")
    axis.set_ylabel("resident MiB")
    axis.legend(frameon=False)
    picture.savefig(out / "soak.png", dpi=120, bbox_inches="tight")
    result = {"load": load.counts, "growth_mib_per_hour": growth, "engine": last, "samples": samples, **facts}
    (out / "soak.json").write_text(json.dumps(result, indent=1))
    console.print(f"{out}/soak.json, {out}/soak.png", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--sessions-per-min", type=float, default=90.0)
    parser.add_argument("--policy", default="saga+")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    port, model = free_port(), a.out / "model"
    if not model.exists():
        write_model(SHAPE, model, CONTEXT)
    words = ["--policy", a.policy, "--emulate", PROFILE_OF[SHAPE], "--kv-tokens", str(POOL), "--expiry-s", "60",
             "--metrics", str((a.out / "counters").resolve()), "--host", "127.0.0.1", "--port", str(port),
             "--served-model-name", MODEL, "--disable-uvicorn-access-log"]
    with Server("soak", str(model), words, port, a.out / "server.log", a.policy,
                EMULATED | {"SAGA_RL_CHECK": "log"}) as server:
        server.ready()
        load = Load(server.url, a.sessions_per_min / 60, a.seed)
        samples = asyncio.run(soak(server, load, 60 * a.minutes, a.out / "counters" / "engine-0.json"))
        time.sleep(2)  # counters are written every second
        samples.append({"s": samples[-1]["s"] + 2, "memory": memory(psutil.Process(server.process.pid)), "alive": 0,
                        "counters": json.loads((a.out / "counters" / "engine-0.json").read_text())})
    report(samples, load, a.out, {"measured": True, "minutes": a.minutes, "policy": a.policy,
                                  **provenance(seed=a.seed, trace=None)}, console)


if __name__ == "__main__":
    main()
