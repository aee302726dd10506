"""vLLM's CPU tier (`OffloadingConnector`) under our eviction policy: named in the connector's configuration as

    "eviction_policy": "SagaCachePolicy", "cache_policy_module_path": "saga_rl.runtime.engine.offload.cache_policy"

Chunks, pins and recency are kept by vLLM's own LRU policy, which this holds; what is ours is the choice of what goes.
Until `attach` ties it to our scheduler, with the eviction `lru`, and when anything of ours fails (counted), that choice
is vLLM's LRU, chunk for chunk.

Tried with vLLM 0.28, 0.32 and 0.33 (`CachePolicy` of `vllm.v1.kv_offload.cpu.policies.base`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.v1.kv_offload.cpu.policies.base import CachePolicy
from vllm.v1.kv_offload.cpu.policies.lru import LRUCachePolicy

from saga_rl.policies.state import chains as ch
from saga_rl.runtime.engine.kv.runs import CHAIN, SEQ
from saga_rl.runtime.engine.kv.victims import Victims
from saga_rl.runtime.engine.offload.shelf import Shelf
from saga_rl.runtime.sessions.tracker import NOBODY

log = logging.getLogger("vllm.saga_rl")


class SagaCachePolicy(CachePolicy):
    """`CachePolicy` by interface."""

    def __init__(self, cache_capacity: int) -> None:
        super().__init__(cache_capacity)
        self.stock: Any = LRUCachePolicy(cache_capacity)
        self.counts: Counter[str] = Counter()
        """Chunks evicted by what their chain was doing; `failed`: choices that fell to LRU."""
        self._victims: Victims | None = None
        self._shelf: Shelf | None = None
        self._clock: Callable[[], float] = lambda: 0.0
        self._chain: dict[str, int] = {}
        """By request in the connector: its chain."""
        self._seen: dict[str, dict[bytes, None]] = {}
        """By request: the chunks that it used, head first."""
        self._storing: str | None = None
        self._order: tuple[tuple, list[int]] | None = None

    # ------------------------------------------------------------------ what the scheduler's side tells
    def bind(self, victims: Victims, clock: Callable[[], float]) -> None:
        """Choose by `victims` from now on; again after a swap of policies."""
        self._victims, self._clock, self._order = victims, clock, None
        if self._shelf is None or self._shelf.tracker is not victims.tracker:
            self._shelf = Shelf(victims.tracker)

    def begins(self, request_id: str, chain: int) -> None:
        """A request of `chain` came."""
        self._chain[request_id] = chain
        self._seen[request_id] = {}

    def stores(self, request_id: str | None) -> None:
        """Chunks inserted from now on are this request's."""
        self._storing = request_id

    def ends(self, request_id: str) -> None:
        """Nothing more comes of this request: its context, head first, is what its chain used last."""
        self._used(self._seen.pop(request_id, {}), self._chain.pop(request_id, NOBODY))

    # ------------------------------------------------------------------ vLLM's interface
    def get(self, key: Any) -> Any:
        return self.stock.get(key)

    def insert(self, key: Any, chunk: Any, *req_context: Any) -> None:
        self.stock.insert(key, chunk, *req_context)  # since 0.33 vLLM says for whom
        self._saw([key], self._storing)

    def remove(self, key: Any) -> None:
        self.stock.remove(key)
        if self._shelf is not None:
            self._shelf.gone(key)

    def touch(self, keys: Iterable[Any], req_context: Any) -> None:
        keys = list(keys)
        self.stock.touch(keys, req_context)
        self._saw([k for k in keys if self.stock.get(k) is not None], req_context.req_id)

    def on_request_access(self, keys: Iterable[Any], req_context: Any) -> None:
        self.stock.on_request_access(keys, req_context)  # asked since 0.33

    def on_store_miss(self, keys: Iterable[Any], req_context: Any) -> None:
        self.stock.on_store_miss(keys, req_context)

    def on_request_finished(self, key_groups: Any, insertion_only_keys: Any, reused_keys: Any,
                            req_context: Any) -> None:
        self.stock.on_request_finished(key_groups, insertion_only_keys, reused_keys, req_context)
        for keys in key_groups:
            self._saw([k for k in keys if self.stock.get(k) is not None], req_context.req_id)

    def clear(self) -> None:
        self.stock.clear()
        if self._shelf is not None:
            self._shelf.clear()
        for seen in self._seen.values():
            seen.clear()

    def mark_evictable(self, key: Any) -> None:
        self.stock.mark_evictable(key)

    def mark_non_evictable(self, key: Any) -> None:
        self.stock.mark_non_evictable(key)

    def evict(self, n: int, protected: Any) -> Any:
        """Exactly `n` chunks, or None and nothing has changed."""
        out, v, shelf = None, self._victims, self._shelf
        if v is not None and shelf is not None and not v.policy.oldest_first and n:
            try:
                keys = self._choose(v, shelf, n, protected)
                if keys is None:
                    return None
                out = [(key, self._remove(key)) for key in keys]
            except Exception:
                self.counts["failed"] += 1
                if self.counts["failed"] == 1:
                    log.exception("saga-rl: the CPU tier's choice failed; LRU chooses")
                out = None
        if out is None:
            out = self.stock.evict(n, protected)
        if shelf is not None:
            for key, _ in out or ():
                shelf.gone(key)
        return out

    # ------------------------------------------------------------------ the choice
    def _choose(self, v: Victims, shelf: Shelf, n: int, protected: Any) -> list[Any] | None:
        """Keys to evict: slots by score, within one what was used longest ago and lies deepest first."""
        keys: list[Any] = []
        doing: list[str] = []
        for slot in self._ranked(v, shelf):
            chain = v.tracker.chains[int(shelf.table[slot, CHAIN])]
            cause = "ended" if chain[ch.ENDED] > 0 else "waiting" if chain[ch.WAITING] == 1 else "idle"
            for key in shelf.keys[slot]:
                chunk = self.stock.get(key)
                if chunk is not None and chunk.ref_cnt == 0 and key not in protected:
                    keys.append(key)
                    doing.append(cause)
                    if len(keys) == n:
                        self.counts.update(doing)
                        return keys
        if self._untold(shelf):
            raise LookupError("chunks that are not on the shelf")
        return None

    def _untold(self, shelf: Shelf) -> bool:
        """Whether the tier may hold chunks that came before `bind`."""
        stored: Any = getattr(self.stock, "chunks", None) or getattr(self.stock, "blocks", {})
        return len(stored) != len(shelf)

    def _ranked(self, v: Victims, shelf: Shelf) -> list[int]:
        """Slots, the first to go first: of forgotten chains, then by score, and those of chains whose request waits or
        runs only when nothing else is left: they are about to be loaded."""
        now = self._clock()
        mark = now, v.tracker.version, shelf._seq
        if self._order is None or self._order[0] != mark:
            slots = shelf.slots()
            v.refresh(shelf, slots, self.cache_capacity - len(shelf), now)  # type: ignore[arg-type]
            scores = np.array(v.scores(shelf, slots, now)[:len(slots)])  # type: ignore[arg-type]
            scores[shelf.forgotten(slots)] = np.inf
            self._order = mark, slots[self._by(v, shelf, slots, scores)].tolist()
        return self._order[1]

    def _by(self, v: Victims, shelf: Shelf, slots: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.int64]:
        rows = v.tracker.chains[shelf.table[slots, CHAIN].astype(np.int64)]
        busy = ((rows[:, ch.WAITING] == 1) | (rows[:, ch.RUNNING] == 1)) & ~np.isposinf(scores)
        return np.lexsort((shelf.table[slots, SEQ], -scores, busy))

    def _remove(self, key: Any) -> Any:
        chunk = self.stock.get(key)
        self.stock.mark_non_evictable(key)
        self.stock.remove(key)
        return chunk

    def _saw(self, keys: list[Any], request_id: str | None) -> None:
        """A request uses chunks of the tier now."""
        chain = NOBODY if request_id is None else self._chain.get(request_id, NOBODY)
        seen = None if request_id is None else self._seen.get(request_id)
        if seen is not None:
            seen.update(dict.fromkeys(keys))
        self._used(keys, chain)

    def _used(self, keys: Iterable[Any], chain: int) -> None:
        if self._shelf is not None:
            self._shelf.used([k for k in keys if self.stock.get(k) is not None], chain, self._clock())
