"""The lookup of a request's cached prefix, remembered from step to step. vLLM walks the whole prefix of the request at
the head of its queue anew in every step in which that one does not get in, 6,000 blocks of a context of 100,000 tokens:
most of a run's time. What it finds can change only where a block was taken or the next one came."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id


class Lookups:
    """In the place of the `find_longest_cache_hit` of a scheduler with one group of full attention; the same result."""

    def __init__(self, scheduler: Any) -> None:
        coordinator = scheduler.kv_cache_manager.coordinator
        pool = coordinator.block_pool
        self.block, self.cache = scheduler.block_size, pool.cached_block_hash_to_block._cache
        self.taken = 0
        self._known: dict[int, tuple[list, list, list, int]] = {}
        """By the identity of a request's list of hashes: that list, its keys, the blocks found, `taken` then."""
        evict = pool._maybe_evict_cached_block

        def evicting(block: Any) -> bool:
            gone: bool = evict(block)
            self.taken += gone
            return gone

        pool._maybe_evict_cached_block = evicting
        if getattr(scheduler, "block_queue", None) is not None:
            scheduler.block_queue.forget = evicting
        coordinator.find_longest_cache_hit = self.find

    def forget(self, hashes: list) -> None:
        """The request is over."""
        self._known.pop(id(hashes), None)

    def find(self, block_hashes: list, max_cache_hit_length: int) -> tuple[tuple[list], int, int]:
        most = max_cache_hit_length // self.block
        _, keys, found, taken = self._known.get(id(block_hashes), (block_hashes, [], [], -1))
        if taken != self.taken:
            found = []
        keys += [make_block_hash_with_group_id(h, 0) for h in block_hashes[len(keys):]]
        for key in keys[len(found):most]:
            block = self.cache.get(key)
            if block is None:
                break
            found.append(next(iter(block.values())) if isinstance(block, dict) else block)
        self._known[id(block_hashes)] = block_hashes, keys, found, self.taken
        return (found[:most],), min(len(found), most) * self.block, 0
