"""Made-up sessions, and a known server in the place of `saga_rl.experiments.bench.servers.Server`."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

from replay_server import FakeServer

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.trace import Trace, TraceMeta


def spec(name: str, steps: int = 3, first: int = 20, shared: str | None = None, gap: float = 0.02) -> SessionSpec:
    """A chain: `first` tokens (8 of them shared), then 6 more a step; 2 are answered."""
    rows = []
    for i in range(steps):
        prompt = first + 8 * i
        rows.append(StepSpec(prompt, 2, parents=(i - 1,) if i else (), tool="bash" if i + 1 < steps else None,
                             tool_s=gap if i + 1 < steps else 0.0, prefix_step=i - 1 if i else -1,
                             prefix_tokens=prompt - 6 if i else 8 if shared else 0,
                             shared_prefix=None if i else shared))
    return SessionSpec(name, 0.0, rows)


def make(*specs: SessionSpec) -> Trace:
    return build_trace(TraceMeta("t", "generated:t"), specs)


class Stand(AbstractContextManager):
    """The fake server in a thread, in the place of a server of ours."""

    def __init__(self, server: FakeServer, policy: str = "stock") -> None:
        self.server, self.url, self.policy = server, "", policy
        self.policies = [policy]
        self.idle_since = 0.0
        self.emptied: list[float] = []
        self.process = SimpleNamespace(poll=lambda: None)
        self.stopped = False
        self.loop, self.up, self.down = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
        self.thread = threading.Thread(target=lambda: self.loop.run_until_complete(self.serve()), daemon=True)

    async def serve(self) -> None:
        async with self.server.serve() as self.url:
            self.up.set()
            await self.down.wait()

    def __enter__(self) -> Stand:
        self.thread.start()
        assert self.up.wait(30)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopped = True
        self.loop.call_soon_threadsafe(self.down.set)
        self.thread.join(30)
        self.loop.close()

    def ready(self, tick: Any = None) -> None:
        assert self.url

    def become(self, policy: str) -> None:
        self.policies.append(policy)

    def empty(self, expiry_s: float) -> None:
        self.emptied.append(expiry_s)
        self.server.cache.clear()

    def used(self) -> None:
        pass
