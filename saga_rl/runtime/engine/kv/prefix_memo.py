"""The cached prefix of a request that waits, remembered from step to step.

vLLM walks the whole prefix of the request at the head of its queue anew in every step in which that one does not get
in: 6,000 blocks of a context of 100,000 tokens, milliseconds of Python. Under a policy that holds requests back it was
half of all that an engine with long contexts did. What is found can only change where a block was taken or at the first
block that was missing, so both are watched and the rest is kept. The result is vLLM's own, block for block.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

MOST = 8
"""Requests that are remembered: heads of the queue, of which a step looks at one or a few."""


class _Found:
    """The leading blocks of one request's prefix that are cached."""

    __slots__ = ("at", "blocks", "hashes", "valid")

    def __init__(self, hashes: Any) -> None:
        self.hashes = hashes
        self.blocks: list[Any] = []
        self.at: dict[int, int] = {}
        """Place in `blocks` by block id."""
        self.valid = 0
        """So many of `blocks` are still cached."""


class PrefixMemo:
    """In the place of the coordinator's `find_longest_cache_hit`; see `install`."""

    def __init__(self, manager: Any) -> None:
        coordinator = manager.coordinator
        self.pool, self.block = coordinator.block_pool, coordinator.block_size
        self._known: OrderedDict[int, _Found] = OrderedDict()
        self._map = self.pool.cached_block_hash_to_block
        self._evict = self.pool._maybe_evict_cached_block
        self.walked = 0
        """Blocks that were looked up, for tests: what is remembered is not."""

    def evict(self, block: Any) -> Any:
        """`BlockPool._maybe_evict_cached_block`, noted."""
        gone = self._evict(block)
        if gone:
            for found in self._known.values():
                place = found.at.get(block.block_id)
                if place is not None and place < found.valid:
                    found.valid = place
        return gone

    def find(self, block_hashes: Any, max_cache_hit_length: int) -> tuple[tuple[list[Any]], int, int]:
        """The longest cached prefix of at most so many tokens: (blocks of each group, tokens, 0)."""
        if self._map is not self.pool.cached_block_hash_to_block:  # the cache was reset
            self._known.clear()
            self._map = self.pool.cached_block_hash_to_block
        most = min(max_cache_hit_length // self.block, len(block_hashes))
        found = self._of(block_hashes)
        blocks, at = found.blocks, found.at
        if found.valid < len(blocks):
            for block in blocks[found.valid:]:
                del at[block.block_id]
            del blocks[found.valid:]
        for i in range(len(blocks), most):
            self.walked += 1
            here = self.pool.get_cached_block(block_hashes[i], [0])
            if not here:
                break
            at[here[0].block_id] = len(blocks)
            blocks.append(here[0])
        found.valid = len(blocks)
        out = blocks[:most]
        return (out,), len(out) * self.block, 0

    def _of(self, block_hashes: Any) -> _Found:
        key = id(block_hashes)
        found = self._known.pop(key, None)
        if found is None or found.hashes is not block_hashes:
            found = _Found(block_hashes)
        self._known[key] = found
        if len(self._known) > MOST:
            self._known.popitem(last=False)
        return found


def install(manager: Any) -> PrefixMemo | None:
    """Remember prefixes of `manager` (vLLM's `KVCacheManager`); None where its lookup is another than that of one group
    of full attention: then nothing is touched. Call it before anybody keeps the pool's `_maybe_evict_cached_block`."""
    coordinator = manager.coordinator
    if type(coordinator).__name__ != "UnitaryKVCacheCoordinator":
        return None
    single = coordinator.single_type_managers[0]
    pool = coordinator.block_pool
    drops = getattr(coordinator, "eagle_group_ids", None) or getattr(coordinator, "drop_eagle_group_ids", None)
    if (type(single).__name__ != "FullAttentionManager" or drops or getattr(coordinator, "dcp_world_size", 1) > 1
            or getattr(coordinator, "pcp_world_size", 1) > 1
            or getattr(pool, "hash_block_size", coordinator.block_size) != coordinator.block_size
            or single.block_size != coordinator.block_size):
        return None
    memo = PrefixMemo(manager)
    pool._maybe_evict_cached_block = memo.evict
    coordinator.find_longest_cache_hit = memo.find
    return memo
