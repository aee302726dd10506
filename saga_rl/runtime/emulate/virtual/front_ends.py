"""Several API servers before the same virtual engines: each request comes in through any of them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from saga_rl.policies.base import Policy
from saga_rl.runtime.emulate.virtual.balance import PUBLISHED_S
from saga_rl.runtime.routing.router import Router
from saga_rl.runtime.routing.router_shared import SharedRouter
from saga_rl.runtime.routing.router_table import TableRouter
from saga_rl.runtime.routing.shared_table import SharedTable


class FrontEnds:
    """The routers of `servers` API servers. table: they share one; else homes are drawn from names, and loads are what
    engines count, up to `PUBLISHED_S` late. about: of `Router`, from the number of engines on."""

    def __init__(self, policy: Policy, servers: int, table: bool, schedulers: Sequence[Any], *about: int,
                 **options: Any) -> None:
        self.schedulers, self._published_s = schedulers, -1.0
        self._counts: list[tuple[float, ...]] = [(0, 0, 0.0)] * len(schedulers)
        self.routers: list[Router] = []
        if table:
            shared, _ = SharedTable.make(servers, len(schedulers))
            self.routers = [TableRouter(policy, *about, table=shared, server=k, **options) for k in range(servers)]
        else:
            self.routers = [SharedRouter(policy, *about, servers=servers, counts=lambda: self._counts, **options)
                            for _ in range(servers)]

    def of(self, name: str, now: float) -> Router:
        """The router of the server that the request comes in through, or came; which does not depend on its session."""
        if now - self._published_s >= PUBLISHED_S:
            self._published_s = now
            self._counts = [(len(s.waiting), len(s.running), s.kv_cache_manager.usage) for s in self.schedulers]
        return self.routers[zlib.crc32(name.encode()) % len(self.routers)]

    @property
    def migrations(self) -> int:
        return sum(r.migrations for r in self.routers)
