"""Memory of idle sessions: what ours holds beyond stock for each."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

from serving_kit.engine import BLOCK, STOCK, drain, make_request, make_scheduler


def bytes_a_session(policy: str, policies: Any, model: Path, few: int, many: int) -> float:
    """Bytes that grow with each idle session of two KV blocks that stay cached, between `few` and `many` sessions.

    The pool holds all of them, so its blocks exist beforehand and are not counted; vLLM's own entries are.
    """
    tracemalloc.start()
    s = make_scheduler(STOCK if policy == STOCK else "lru", model, 2 * many + 600, 256)
    if policy != STOCK:
        s.swap(policies, policy)
    held = []
    for i in range(many):
        s.add_request(make_request(f"q{i}", [i] * (2 * BLOCK), 1, f"session-{i:032x}"))
        if i % 128 == 127 or i + 1 in (few, many):
            drain(s)
        if i + 1 in (few, many):
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    s.shutdown()
    return (held[1] - held[0]) / (many - few)


def measure(policies: dict[str, Any], model: Path, few: int, many: int) -> dict[str, float]:
    """By policy, bytes a session beyond stock's; stock's own under its name."""
    stock = bytes_a_session(STOCK, None, model, few, many)
    return {STOCK: stock, **{name: bytes_a_session(name, p, model, few, many) - stock for name, p in policies.items()}}
