"""Faults under load, a server each: what breaks, when, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from saga_rl.aeg.io import read_trace
from saga_rl.errors import UserError
from saga_rl.experiments.bench.servers import KEY, Server
from soak_kit.load import MODEL, RETRIES, Load
from soak_kit.servers import idle, losses, shimmed, start, status, until

SECONDS = 60.0
"""Real seconds of load."""
PER_S, TOKENS, TOOLS = 2.0, 48, {"bash": 0.2, "search": 0.8, "human": 3.0}
"""Sessions a second, tokens of an answer, and mean seconds of tools: two engines are nearly busy with it."""
HUNG_S = 10.0
FEW = ("--max-num-seqs", "2")
"""Requests that an engine runs at once: others wait, and are what must not be lost."""
DISK = "512k"
Act = Callable[[Server, Load, random.Random], Coroutine[Any, Any, list[str]]]
After = Callable[[Server, dict[str, Any]], list[str]]


def _pids(server: Server, title: str) -> list[int]:
    """Processes of a server with `title` in their command line, by number."""
    found = {}
    for p in psutil.Process(server.process.pid).children(recursive=True):
        line = " ".join(p.cmdline())
        if title in line and p.status() != psutil.STATUS_ZOMBIE:
            found[line] = p.pid
    return [pid for _, pid in sorted(found.items())]


async def _at(share: float, rng: random.Random) -> None:
    """Wait for about this share of a scene."""
    await asyncio.sleep(SECONDS * share * rng.uniform(0.7, 1.0))


async def _tell(server: Server, engine: int, fault: str) -> None:
    """One short request that makes a device ail; nobody waits for its answer."""
    body = {"model": MODEL, "prompt": [5] * 20, "max_tokens": 2, "ignore_eos": True, "session_id": f"fault {fault}",
            "vllm_xargs": {"saga_fault": f"{fault}#{engine}", "saga_final": 1}}
    headers = {"Authorization": f"Bearer {KEY}", "X-data-parallel-rank": str(engine)}
    async with aiohttp.ClientSession(headers=headers) as http:
        try:
            async with http.post(f"{server.url}/v1/completions", json=body, timeout=aiohttp.ClientTimeout(300)) as a:
                await a.read()
        except (aiohttp.ClientError, TimeoutError):
            pass


async def kill_engines(server: Server, load: Load, rng: random.Random) -> list[str]:
    """All but one, one after the other."""
    victims = rng.sample(range(3), 2)
    engines = await asyncio.to_thread(_pids, server, "EngineCore_DP")
    for w in victims:
        await _at(0.3, rng)
        os.kill(engines[w], signal.SIGKILL)
    return [f"engines {victims} killed"]


async def hang_engines(server: Server, load: Load, rng: random.Random) -> list[str]:
    """One process is stopped, another's device never finishes a batch again."""
    stopped, hangs = rng.sample(range(3), 2)
    engines = await asyncio.to_thread(_pids, server, "EngineCore_DP")
    await _at(0.2, rng)
    os.kill(engines[stopped], signal.SIGSTOP)
    await _at(0.4, rng)
    telling = asyncio.ensure_future(_tell(server, hangs, "hang"))
    await asyncio.to_thread(until, lambda: len(status(server)["engines"]) == 1, "two engines are out")
    telling.cancel()
    return [f"engine {stopped} stopped, device {hangs} hung; both out after {HUNG_S:g} s of silence"]


async def slow_engines(server: Server, load: Load, rng: random.Random) -> list[str]:
    """Devices of random engines take twenty times as long for a while."""
    times = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        w = rng.randrange(3)
        await _tell(server, w, "slow:20")
        await asyncio.sleep(rng.uniform(2.0, 6.0))
        await _tell(server, w, "slow:1")
        times += 1
    return [f"{times} times one engine of three slowed twentyfold"]


async def kill_servers(server: Server, load: Load, rng: random.Random) -> list[str]:
    """All but one API server, one after the other."""
    front = await asyncio.to_thread(_pids, server, "APIServer_")
    victims = rng.sample(range(len(front)), 2)
    for k in victims:
        await _at(0.3, rng)
        os.kill(front[k], signal.SIGKILL)
    return [f"API servers {victims} of {len(front)} killed"]


def _jump(folder: Path) -> Act:
    async def jump(server: Server, load: Load, rng: random.Random) -> list[str]:
        """The wall clock is set forward and back."""
        jumps = [3600.0, -7200.0, 86_400.0, -30.0]
        for ahead in jumps:
            await _at(0.2, rng)
            (folder / "clock").write_text(str(ahead))
        return [f"wall clock set by {', '.join(f'{j:+,.0f}' for j in jumps)} s"]

    return jump


def _fill(disk: Path) -> Act:
    async def fill(server: Server, load: Load, rng: random.Random) -> list[str]:
        """The disk is full for half of the time."""
        await _at(0.25, rng)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as f:
            for size in (65_536, 512, 1):
                try:
                    while True:
                        f.write(b"x" * size)
                except OSError:
                    continue
        await _at(0.5, rng)
        filler.unlink()
        return ["disk full for half of the time"]

    return fill


async def _play(server: Server, load: Load, act: Act, rng: random.Random) -> list[str]:
    work = asyncio.create_task(load.run(time.monotonic() + SECONDS))
    said = await act(server, load, rng)
    await work
    return said


def _scene(out: Path, seed: int, policy: str, act: Act, after: After | None = None, *, engines: int = 3,
           servers: int = 1, retries: int = 0, flags: tuple[str, ...] = (), env: Any = (), saga: Any = ()
           ) -> dict[str, Any]:
    """A server, a load, and a fault in it. after: looks at a server that has been stopped; what it says is wrong."""
    with start(out.name, out, policy=policy, engines=engines, servers=servers, flags=(*FEW, *flags),
               env=dict(env), saga=dict(saga)) as server:
        server.ready()
        load = Load(server.url, KEY, PER_S, seed, retries=retries, tools=TOOLS, tokens=TOKENS)
        said = asyncio.run(_play(server, load, act, random.Random(seed)))
        rest = idle(server)
        wrong = losses(rest)
        row = {"counts": load.counts, "errors": sorted(set(load.errors))[:20], "engines": rest, "said": said}
        if after is not None:
            server.stop()
            wrong += after(server, row)
    return row | {"not conserved": wrong}


# ---------------------------------------------------------------------- what must hold of a recording
def _recorded(record: Path) -> After:
    """Each request of a session is in the recording or counted as left out, and no time in it comes from a wall clock
    that was set meanwhile."""
    def look(server: Server, row: dict[str, Any]) -> list[str]:
        trace = read_trace(record)
        dropped = trace.meta.dropped
        row["said"].append(f"{trace.n_steps} requests recorded, left out and counted: {dropped or 'none'}")
        wrong, sent = [], sum(e["requests"] for e in row["engines"])
        if trace.n_steps + sum(dropped.values()) != sent:
            wrong.append(f"{sent} requests, {trace.n_steps} recorded and {sum(dropped.values())} counted as left out")
        most = 10 * SECONDS
        spans = {"arrivals": np.ptp(trace.sessions.arrival_s), "tools": trace.steps.tool_s.max(),
                 "pauses": trace.steps.think_s.max()}
        return wrong + [f"{what} of {s:,.0f} s in the recording" for what, s in spans.items() if not 0 <= s < most]

    return look


# ---------------------------------------------------------------------- the table's rows
def killed(out: Path, seed: int, policy: str) -> dict[str, Any]:
    return _scene(out, seed, policy, kill_engines)


def hung(out: Path, seed: int, policy: str) -> dict[str, Any]:
    return _scene(out, seed, policy, hang_engines, saga={"hung_s": HUNG_S})


def slowed(out: Path, seed: int, policy: str) -> dict[str, Any]:
    return _scene(out, seed, policy, slow_engines)


def servers(out: Path, seed: int, policy: str) -> dict[str, Any]:
    return _scene(out, seed, policy, kill_servers, engines=2, servers=3, retries=RETRIES)


def clock(out: Path, seed: int, policy: str) -> dict[str, Any]:
    record = (out / "served.parquet").resolve()
    return _scene(out, seed, policy, _jump(out / "faults"), _recorded(record), engines=2,
                  flags=("--record", str(record)), env=shimmed(out / "faults"))


def disk(out: Path, seed: int, policy: str) -> dict[str, Any]:
    """Raises `UserError` where no file system can be mounted."""
    place = out.resolve() / "disk"
    place.mkdir(parents=True, exist_ok=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(place)], capture_output=True,
                           text=True)
    if mount.returncode:
        raise UserError("scene disk", f"cannot mount a small file system ({mount.stderr.strip()})",
                        "run it as root, or leave the scene out")
    try:
        record = place / "served.parquet"
        return _scene(out, seed, policy, _fill(place), _recorded(record), engines=2,
                      flags=("--record", str(record), "--statistics", str(place / "statistics"),
                             "--metrics", str(place / "counters")))
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


SCENES: dict[str, Callable[[Path, int, str], dict[str, Any]]] = {
    "killed": killed, "hung": hung, "slowed": slowed, "servers": servers, "clock": clock, "disk": disk}
