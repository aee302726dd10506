"""How well sessions are found that nobody names, and what the middleware costs a request.

    python benchmarks/identity.py [--data FOLDER] [--json FILE]

Made: n runs of each of some tasks at once, in the bodies of each API, also with compaction and with a sliding window.
Recorded: FOLDER holds `lmcache_agent` and `tau_bench_airline`. No session id is shown.
precision = right links / links made, recall = right links / pairs there are (`identity_kit/judge.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from identity_kit.bodies import PATHS
from identity_kit.judge import judge
from identity_kit.recorded import lmcache_bodies, lmcache_text, tau
from identity_kit.rollouts import Shape, rollouts
from rich.console import Console
from rich.table import Table

from saga_rl.runtime.server.http.middleware import SagaMiddleware
from saga_rl.runtime.server.http.settings import Settings

GATEWAY = "gateway"
SHAPES = {"20 tasks x 8 runs": {}, "with compaction": {"compact": 16}, "sliding window of 8": {"window": 8}}


def sets(data: Path | None, seed: int) -> Iterable[tuple[str, Any]]:
    """(name, events)."""
    for name, shape in SHAPES.items():
        for api in PATHS:
            yield f"{api}, {name}", rollouts(api, Shape(seed=seed, **shape))
    for api in PATHS:
        yield f"{api}, one name for all", rollouts(api, Shape(seed=seed))
    if data is not None:
        lmcache = data / "lmcache_agent"
        for kind, name in (("miniswe", "mini-SWE-agent"), ("taubench", "tau-bench")):
            yield f"lmcache, {name}, as bodies", lmcache_bodies(lmcache, kind)
            yield f"lmcache, {name}, as recorded", lmcache_text(lmcache, kind)
        yield "tau-bench airline, as bodies", tau(data / "tau_bench_airline")


def body_of(size: int, salt: int) -> bytes:
    """A chat body of about `size` bytes: a conversation of messages of up to 2,000 characters."""
    text = f"{salt:08d} " + "word and other text, " * 100
    messages: list[dict[str, Any]] = [{"role": "system", "content": "agent"}]
    while size > 0:
        messages.append({"role": ("user", "assistant")[len(messages) % 2 == 0], "content": text[:min(size, 2000)]})
        size -= 2000
    return json.dumps({"model": "m", "messages": messages}).encode()


async def cost(size: int, repeats: int) -> dict[str, float]:
    """ms a request, of the middleware over an app that reads the body and answers at once (the app's time is in it)."""
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": answer, "more_body": False})

    async def send(message: Any) -> None:
        return None

    answer = json.dumps({"choices": [{"index": 0, "message": {"content": "yes " * 200}}]}).encode()
    middleware, taken = SagaMiddleware(app, Settings()), []
    for i in range(repeats + 10):
        raw = body_of(size, i)

        async def receive(raw: bytes = raw) -> Any:
            return {"type": "http.request", "body": raw, "more_body": False}

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions",
                 "headers": [(b"content-length", str(len(raw)).encode())]}
        started = time.perf_counter()
        await middleware(scope, receive, send)
        taken.append(1e3 * (time.perf_counter() - started))
    p50, p99 = np.percentile(taken[10:], [50, 99])
    return {"KiB": size / 1024, "p50 ms": float(p50), "p99 ms": float(p99)}


def show(title: str, results: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for key in results[0]:
        table.add_column(key, justify="right")
    for result in results:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in result.values()))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="precision and recall of prefix-chain identity; cost of a request")
    parser.add_argument("--data", type=Path, help="folder of lmcache_agent and tau_bench_airline")
    parser.add_argument("--repeats", type=int, default=300, help="requests of each size; 0: no times")
    parser.add_argument("--seed", type=int, default=0, help="of the made conversations")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.data is not None and not all((args.data / d).is_dir() for d in ("lmcache_agent", "tau_bench_airline")):
        parser.error(f"{args.data}: holds no lmcache_agent and tau_bench_airline")
    found = [{"bodies": name, **judge(events, GATEWAY if "one name" in name else "")}
             for name, events in sets(args.data, args.seed)]
    show("sessions that nobody names", found)
    sizes = (1, 4, 16, 64, 256, 1024) if args.repeats else ()
    costs = [asyncio.run(cost(k * 1024, args.repeats)) for k in sizes]
    if costs:
        show("middleware, chat body", costs)
    if args.json is not None:
        args.json.write_text(json.dumps({"identity": found, "cost": costs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
