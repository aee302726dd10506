"""How well the prefix chain alone finds sessions in recorded bodies, and what the middleware costs a request.

    python benchmarks/identity.py --data FOLDER [--json FILE]

FOLDER holds `lmcache_agent` (prompts as text, in order of time, all sessions together) and `tau_bench_airline` (prompts
as hashes of blocks; sessions take turns). No session id is shown. For each request the pair (request before it in its
session, this one) is judged: linked right, linked with another session, or taken for a new session.
precision = right links / links made, recall = right links / pairs there are.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from saga_rl.runtime.server.http.chains import Chains
from saga_rl.runtime.server.http.middleware import SagaMiddleware
from saga_rl.runtime.server.http.prompts import Answer, Prompt
from saga_rl.runtime.server.http.settings import Settings
from saga_rl.runtime.server.http.tap import PREFIX

Call = tuple[str, Prompt, Answer]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") as f:
        yield from map(json.loads, f)


def lmcache(folder: Path, kind: str) -> list[Call]:
    """Calls in order of time; session is what the trace says, else the file."""
    found = [(r["timestamp"], r.get("session_id") or path.name, r["input"], r["output"])
             for path in sorted(folder.glob(f"{kind}__*.jsonl.gz")) for r in rows(path)]
    return [(session, Prompt(b"", text=text.encode("utf-8", "surrogatepass")),
             Answer({}, output.strip().encode("utf-8", "surrogatepass")[:PREFIX]))
            for _, session, text, output in sorted(found, key=lambda r: r[0])]


def tau(folder: Path) -> list[Call]:
    """Calls by step, all sessions at each step: sessions in alternation."""
    found = sorted(rows(folder / "steps.jsonl.gz"), key=lambda r: (r["step"], r["session"]))
    return [(r["session"], Prompt(b"", blocks=[h.to_bytes(8, "little", signed=True) for h in r["hash_ids"]]), Answer())
            for r in found]


def judge(calls: list[Call]) -> dict[str, float]:
    """Pairs of consecutive requests of a session, linked right and wrong."""
    chains = Chains()
    last_of: dict[str, int] = {}
    last_in: dict[str, int] = {}
    pairs = right = wrong = missed = 0
    for i, (session, prompt, answer) in enumerate(calls):
        entry = chains.arrive(prompt)
        chains.answered(entry, answer)
        before, linked = last_of.get(session), last_in.get(entry.chain.session)
        pairs += before is not None
        if linked is not None:
            right += linked == before
            wrong += linked != before
        elif before is not None:
            missed += 1
        last_of[session] = last_in[entry.chain.session] = i
    return {"requests": len(calls), "sessions": len(last_of), "pairs": pairs, "right": right, "wrong": wrong,
            "missed": missed, "precision": right / (right + wrong) if right + wrong else float("nan"),
            "recall": right / pairs if pairs else float("nan")}


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
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    if args.data is not None:
        if not (args.data / "lmcache_agent").is_dir() or not (args.data / "tau_bench_airline").is_dir():
            parser.error(f"{args.data}: holds no lmcache_agent and tau_bench_airline")
        for name, calls in (("lmcache mini-SWE-agent", lmcache(args.data / "lmcache_agent", "miniswe")),
                            ("lmcache tau-bench", lmcache(args.data / "lmcache_agent", "taubench")),
                            ("tau-bench airline (blocks)", tau(args.data / "tau_bench_airline"))):
            found.append({"bodies": name, **judge(calls)})
        show("sessions by prefix chain", found)
    costs = [asyncio.run(cost(k * 1024, args.repeats)) for k in (1, 4, 16, 64, 256, 1024)]
    show("middleware, chat body", costs)
    if args.json is not None:
        args.json.write_text(json.dumps({"identity": found, "cost": costs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
