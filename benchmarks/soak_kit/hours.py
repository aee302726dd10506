"""Hours of load: does memory grow, are blocks lost, does any request fail?"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np

from saga_rl.experiments.bench.servers import KEY, Server
from saga_rl.learn.script import progress
from soak_kit import processes
from soak_kit.load import Load
from soak_kit.servers import idle, losses, start

SAMPLE_S = 5.0


async def _play(server: Server, load: Load, seconds: float) -> list[dict[str, Any]]:
    begin, samples = time.monotonic(), []
    work = asyncio.create_task(load.run(begin + seconds))
    with progress() as bar:
        job = bar.add_task("hours", total=seconds, note="")
        while not work.done():
            await asyncio.wait([work], timeout=SAMPLE_S)
            at = time.monotonic() - begin
            samples.append({"s": at, "alive": load.alive, "processes": processes.read(server.process.pid)})
            bar.update(job, completed=min(at, seconds), note=f"{load.counts['answered']} answered, {load.alive} alive")
    await work
    return samples


def run(out: Path, *, hours: float, scale: float, per_min: float, policy: str, engines: int, seed: int
        ) -> dict[str, Any]:
    """One soak: `hours` of the device's time at `scale`, `per_min` sessions in a minute of it."""
    flags = ("--record", str((out / "served.parquet").resolve()), "--statistics", str((out / "statistics").resolve()),
             "--metrics", str((out / "counters").resolve()))
    with start("soak", out, policy=policy, engines=engines, scale=scale, flags=flags) as server:
        server.ready()
        load = Load(server.url, KEY, per_min / 60, seed, scale)
        samples = asyncio.run(_play(server, load, 3600 * hours / scale))
        rest = idle(server)
    return {"counts": load.counts, "errors": load.errors[:20], "samples": samples, "engines": rest,
            **figures(samples, load, scale), "not conserved": losses(rest)}


def figures(samples: list[dict[str, Any]], load: Load, scale: float) -> dict[str, Any]:
    """Memory at half time and at the end with its slope (MiB in an hour of the device's time) by process, cores used,
    how late the load was (real ms), and how long an answer took (the device's s)."""
    inside = [x for x in samples if x["alive"] > 0]
    hours = [x["s"] * scale / 3600 for x in inside]
    names = [n for n in inside[-1]["processes"] if all(n in x["processes"] for x in inside[len(inside) // 2:])]
    memory = {}
    for n in names:
        mib = [x["processes"].get(n, (float("nan"), 0.0))[0] for x in inside]
        memory[n] = {"half": mib[len(mib) // 2], "end": mib[-1], "per_hour": processes.slope(hours, mib)}
    late, took = np.asarray(load.late_s), np.asarray(load.answer_s)
    return {"memory": memory, "cores": processes.cores([x["processes"] for x in inside], [x["s"] for x in inside]),
            "late_p99_ms": float(1e3 * np.percentile(late, 99)), "answer_median_s": float(np.median(took)),
            "answer_p99_s": float(np.percentile(took, 99)), "hours": hours[-1]}
