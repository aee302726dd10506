"""Blocks that requests hold, by tenant: kept as they come and go, so that asking costs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from vllm.v1.core.kv_cache_utils import KVCacheBlock

from saga_rl.runtime.engine.kv.groups import Groups


class Pinned:
    """tables: a request's blocks by group. `updates` counts the requests that were counted, for tests."""

    def __init__(self, groups: Groups, tables: Callable[[str], Sequence[Sequence[KVCacheBlock]]]) -> None:
        self.by_tenant: Counter[int] = Counter()
        self.updates = 0
        self._tables, self._skips = tables, groups.skips
        self._held: dict[str, tuple[int, int]] = {}

    def update(self, name: str, tenant: int) -> None:
        """The request may hold more or fewer blocks than before."""
        self.updates += 1
        self.drop(name)
        n = sum(self._count(table) for table in self._tables(name))
        if n:
            self._held[name] = tenant, n
            self.by_tenant[tenant] += n

    def of(self, name: str) -> int:
        """Blocks of the request when it was last counted."""
        return self._held.get(name, (0, 0))[1]

    def drop(self, name: str) -> None:
        """It holds none."""
        tenant, n = self._held.pop(name, (0, 0))
        self.by_tenant[tenant] -= n

    def rebuild(self, requests: Iterable[tuple[str, int]]) -> None:
        """Begin anew. requests: (name, tenant's code) of all."""
        self._held.clear()
        self.by_tenant.clear()
        for name, tenant in requests:
            self.update(name, tenant)

    def _count(self, table: Sequence[KVCacheBlock]) -> int:
        return sum(not block.is_null for block in table) if self._skips else len(table)
