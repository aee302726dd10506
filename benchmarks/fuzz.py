"""Any input on every route of a server: no 5xx of ours, nothing of ours that failed, no block lost.

    python benchmarks/fuzz.py [--minutes 2] [--policy auto] [--seed 1] [--out runs/fuzz]

One server on an emulated device with two tenants' keys, and vLLM as it is beside it. Requests are drawn by Schemathesis
from the server's own OpenAPI document, and by Hypothesis: sound bodies with odd hints, names, headers and codings, long
ones among them. A 5xx counts as ours if stock does not answer the same request with one, too. `--minutes 60` is the
long run. Prints what was sent by route and status; OUT gets `fuzz.json`. The exit status is 1 if anything was found.
"""

from __future__ import annotations

import gzip
import itertools
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from soak_kit.servers import idle, losses
from typer import Option

from saga_rl.experiments.bench.servers import EMULATED, KEY, MODEL, Server
from saga_rl.files import write_json
from saga_rl.learn.script import check_range, progress, run_script
from saga_rl.processes import free_port
from saga_rl.provenance import provenance
from saga_rl.runtime.emulate.shapes import PROFILE_OF, write_model

SHAPE, WINDOW, POOL = "llama3.1-8b", 1024, 8192
EXAMPLES = 10
"""Requests of a route in one round."""
LIMIT_S = 120.0
LEFT_OUT = {"/metrics", "/saga/stock"}
READ = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
NAMES = ("x-session-id", "x-claude-code-session-id", "x-claude-code-agent-id", "x-parent-session-id", "x-saga-final",
         "x-dynamo-session-final", "x-stainless-retry-count", "x-correlation-id", "session_id", "thread-id")
ODD = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=300),
                   lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=20), inner, max_size=5),
                   max_leaves=20)
HINTS = st.dictionaries(st.sampled_from(["saga_tool", "saga_tenant", "saga_agent", "saga_final", "saga_deadline_s",
                                         "saga_caller", "saga_proof", "saga_unnamed", "agentic_context", "x"]), ODD)
HEADERS = st.dictionaries(st.sampled_from(NAMES), st.text(st.characters(min_codepoint=33, max_codepoint=126),
                                                           max_size=300), max_size=4)


class Run:
    """What was sent and found."""

    def __init__(self, ours: str, stock: str) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        self.ours = httpx.Client(base_url=ours, headers=headers, timeout=LIMIT_S)
        self.stock = httpx.Client(base_url=stock, headers=headers, timeout=LIMIT_S)
        self.counts: Counter[tuple[str, int]] = Counter()
        self.found: list[dict[str, Any]] = []
        self.pings: list[float] = []
        self.over = threading.Event()

    def send(self, method: str, path: str, route: str, **request: Any) -> None:
        """One request; a 5xx is sent to stock, too."""
        try:
            status = self.ours.request(method, path, **request).status_code
        except httpx.HTTPError as e:
            status = -1
            self.found.append({"route": route, "cause": f"{type(e).__name__} {e}", "request": repr(request)[:2000]})
        self.counts[route, status] += 1
        if status < 500:
            return
        try:
            other = self.stock.request(method, path, **request).status_code
        except httpx.HTTPError:
            other = -1
        self.counts[f"{route}, stock as well" if other >= 500 else f"{route}, ours alone", status] += 1
        if other < 500:
            self.found.append({"route": route, "cause": f"{status} for stock's {other}",
                               "request": repr(request)[:2000]})

    def ping(self) -> None:
        """How long the server's loop takes to say that it is well, again and again."""
        with httpx.Client(base_url=self.ours.base_url, timeout=LIMIT_S) as http:
            while not self.over.wait(0.2):
                begin = time.perf_counter()
                http.get("/health")
                self.pings.append(time.perf_counter() - begin)


# ---------------------------------------------------------------------- what is drawn
def by_schema(run: Run, operation: Any) -> Callable[[], None]:
    """Requests of one route as its schema allows them."""
    route = f"{operation.method.upper()} {operation.path}"

    @given(case=operation.as_strategy())
    def test(case: Any) -> None:
        kwargs = case.as_transport_kwargs(base_url=str(run.ours.base_url))
        taken = {k: kwargs[k] for k in ("headers", "params", "json", "data", "cookies") if kwargs.get(k) is not None}
        headers = {k: v for k, v in dict(taken.pop("headers", {})).items() if k.lower() not in ("authorization",)}
        body = taken.pop("json", None)
        try:
            content = json.dumps(body).encode() if body is not None else None
            request = run.ours.build_request(case.method, kwargs["url"], headers=headers, content=content,
                                             **{k: v for k, v in taken.items() if k == "params"})
        except (ValueError, TypeError, httpx.InvalidURL):
            return  # no client can send it
        path = request.url.raw_path.decode()
        run.send(case.method, path, route, headers=headers | ({"content-type": "application/json"} if content else {}),
                 content=content)

    return test


def by_hand(run: Run, path: str) -> Callable[[], None]:
    """Sound bodies with odd parts, plain or coded, whole or cut short, small or long."""
    @given(odd=st.dictionaries(st.sampled_from(["session_id", "metadata", "tools", "cache_salt", "conversation",
                                                "previous_response_id", "user", "priority", "n"]), ODD, max_size=3),
           hints=st.none() | HINTS | ODD, headers=HEADERS, coding=st.sampled_from(["", "", "gzip", "zstd", "br", "x"]),
           cut=st.sampled_from([0, 0, 0, 1, 7]), turns=st.lists(ODD | st.fixed_dictionaries(
               {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": ODD}), max_size=6),
           blanks=st.sampled_from([0, 0, 0, 300_000]))
    def test(odd: Any, hints: Any, headers: Any, coding: str, cut: int, turns: Any, blanks: int) -> None:
        body = {"model": MODEL, "max_tokens": 2, **odd}
        if hints is not None:
            body["vllm_xargs"] = hints
        if path == "/v1/completions":
            body["prompt"] = turns if len(turns) % 2 else "hello " * len(turns)
        else:
            body["input" if path.endswith("responses") else "messages"] = turns or [{"role": "user", "content": "hi"}]
        raw = json.dumps(body).encode() + b" " * blanks
        raw = raw[:len(raw) - cut] if not blanks else raw
        if coding:
            raw, headers = gzip.compress(raw), headers | {"content-encoding": coding}
        run.send("POST", path, f"POST {path}", content=raw, headers=headers | {"content-type": "application/json"})

    return test


# ---------------------------------------------------------------------- rounds
def rounds(run: Run, minutes: float, first_seed: int) -> int:
    """Rounds over all routes until the time is over; returns how many began."""
    schema = schemathesis.openapi.from_url(f"{run.ours.base_url}/openapi.json", headers=dict(run.ours.headers))
    operations = [o.ok() for o in schema.get_all_operations()]
    tests = [partial(by_schema, run, o) for o in operations if o.path not in LEFT_OUT]
    tests += [partial(by_hand, run, p) for p in READ]
    end, begin = time.monotonic() + 60 * minutes, time.monotonic()
    with progress() as bar:
        job = bar.add_task("fuzzing", total=60 * minutes, note="")
        for number in itertools.count():
            for k, make in enumerate(tests):
                if time.monotonic() > end:
                    return number + 1
                quiet = settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
                                 suppress_health_check=list(HealthCheck))
                seed(1_000_000 * first_seed + 1000 * number + k)(quiet(make()))()
                bar.update(job, completed=min(time.monotonic() - begin, 60 * minutes),
                           note=f"{sum(n for (r, _), n in run.counts.items() if ',' not in r)} requests, "
                                f"{len(run.found)} found")
    raise AssertionError


def failures(engines: list[dict[str, Any]], metrics: str) -> list[str]:
    """What failed in our code, in engines and in the API server."""
    out = [f"engine {e['engine']}: {k} {v}" for e in engines for k, v in e.items() if k.startswith("failed/")]
    return out + [line for line in metrics.splitlines() if line.startswith("saga_http_failures_total")
                  and not line.endswith(" 0.0")]


def serve(policy: str, model: Path, out: Path) -> Server:
    port = free_port()
    words = ["--policy", policy, "--emulate", PROFILE_OF[SHAPE], "--kv-tokens", str(POOL), "--host", "127.0.0.1",
             "--port", str(port), "--served-model-name", MODEL, "--disable-uvicorn-access-log", "--time-scale", "4",
             "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    words += ["--additional-config", json.dumps({"saga_http": {"cache_salt": True}})] if policy != "stock" else []
    return Server(policy, str(model), words, port, out / f"{policy}.log", policy,
                  EMULATED | {"VLLM_SERVER_DEV_MODE": "0"}  # no routes of an operator's
                  | ({"SAGA_RL_CHECK": "log"} if policy != "stock" else {}))


def main(
    minutes: Annotated[float, Option(help="Of fuzzing.")] = 2.0,
    policy: Annotated[str, Option(help="Preset.")] = "auto",
    seed_: Annotated[int, Option("--seed", help="Of what is drawn.")] = 1,
    out: Annotated[Path, Option(help="Folder for figures and logs.")] = Path("runs/fuzz"),
) -> None:
    """Send any input to every route."""
    check_range("--minutes", minutes, 0.01, 10_000)
    out.mkdir(parents=True, exist_ok=True)
    model = out / "model"
    if not model.exists():
        write_model(SHAPE, model, WINDOW)
    with serve(policy, model, out) as ours, serve("stock", model, out) as stock:
        ours.ready()
        stock.ready()
        run = Run(ours.url, stock.url)
        pinging = threading.Thread(target=run.ping, daemon=True)
        pinging.start()
        n = rounds(run, minutes, seed_)
        run.over.set()
        pinging.join(LIMIT_S)
        engines = idle(ours)
        wrong = losses(engines) + failures(engines, run.ours.get("/metrics").text)
    report(run, n, wrong, out, minutes, policy, seed_)
    sys.exit(bool(run.found or wrong))


def report(run: Run, n: int, wrong: list[str], out: Path, minutes: float, policy: str, first_seed: int) -> None:
    """Print and write what was sent and found."""
    shown = Table("route", "status", "requests")
    for (route, status), count in sorted(run.counts.items()):
        shown.add_row(route, str(status), f"{count:,}")
    console = Console(width=140)
    console.print(shown)
    pings = {"median_ms": float(1e3 * np.median(run.pings)), "p99_ms": float(1e3 * np.percentile(run.pings, 99)),
             "most_ms": float(1e3 * max(run.pings))}
    sent = sum(count for (route, _), count in run.counts.items() if "," not in route)
    console.print(f"{sent:,} requests in {n} rounds; {len(run.found)} answers of ours alone that must not be; "
                  f"{'; '.join(wrong) or 'nothing failed, no block lost'}; /health in {pings['median_ms']:.1f} ms "
                  f"(median; P99 {pings['p99_ms']:.0f}, most {pings['most_ms']:.0f})", highlight=False)
    for what in run.found[:20]:
        console.print(str(what)[:600], highlight=False, markup=False)
    write_json(out / "fuzz.json", {"measured": True, "minutes": minutes, "policy": policy, "rounds": n, "sent": sent,
                                   "counts": [[*key, c] for key, c in sorted(run.counts.items())], "found": run.found,
                                   "wrong": wrong, "pings": pings,
                                   "provenance": provenance(seed=first_seed, trace=None)})


if __name__ == "__main__":
    run_script(main)
