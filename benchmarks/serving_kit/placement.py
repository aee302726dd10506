"""Time of one placement decision among many engines."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from saga_rl.runtime.routing.router import Router
from saga_rl.runtime.sessions.hints import Hints


def measure(policies: dict[str, Any], workers: int, sessions: int, decisions: int, seed: int = 0) -> dict[str, Any]:
    """By policy: median, P99 and longest microseconds of choosing an engine and booking the request there, with
    `sessions` sessions known and as many requests in flight as half of the workers run."""
    out: dict[str, Any] = {}
    for name, p in policies.items():
        rng = np.random.default_rng(seed)
        router, now, flying = Router(p.placement, workers, 256, 1_000_000), 0.0, []
        times = np.zeros(decisions)
        for k in range(sessions + decisions):
            now += 0.01
            hints = Hints(session=f"s{k if k < sessions else rng.integers(sessions)}")
            tokens = int(rng.integers(100, 8000))
            started = time.perf_counter()
            router.book(f"r{k}", hints, tokens, router.choose(hints, tokens, now), now)
            if k >= sessions:
                times[k - sessions] = time.perf_counter() - started
            flying.append(f"r{k}")
            if len(flying) > workers * 4:
                router.output(flying.pop(0), 100, True, now)
        us = 1e6 * times
        out[name] = {"policy": p.placement.name, "p50_us": float(np.median(us)), "p99_us": float(np.quantile(us, 0.99)),
                     "max_us": float(us.max()), "met": bool(np.quantile(us, 0.99) < 200.0)}
    return out
