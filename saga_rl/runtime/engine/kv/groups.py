"""The KV cache groups of a model: layers of one kind that share block tables (full attention, sliding window, linear).

All draw blocks from one pool. A context has blocks in each group, so blocks say how many tokens they stand for only by
group: a chain counts as holding what its best group holds of it. Tried with vLLM 0.28 - 0.33.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.v1.core.kv_cache_utils import KVCacheBlock, get_group_id

from saga_rl.njit import njit

STATES = 2
"""Blocks that a request holds of a group of linear attention: the state, and the one before."""


@dataclass(frozen=True)
class Groups:
    """`block`: tokens of the scheduler's block; by group: `tokens` of a block, and `most` blocks of a request at once
    (infinity: as many as its context wants); `skips`: while a request runs, some group lets go of blocks."""

    block: int
    tokens: NDArray[np.float64]
    most: NDArray[np.float64]
    skips: bool = False

    @property
    def weights(self) -> NDArray[np.float64]:
        """The scheduler's blocks that a block of each group stands for."""
        return self.tokens / self.block

    @property
    def growing(self) -> float:
        """Tokens of a context that grows for each block that it takes, of whatever group."""
        blocks = sum(self.block / tokens for tokens, most in zip(self.tokens, self.most, strict=True) if most == np.inf)
        return float(self.block / blocks) if blocks else math.inf

    def of(self, block: KVCacheBlock) -> int:
        """The group of a cached block, from its hash."""
        return 0 if len(self.tokens) == 1 or block.block_hash is None else get_group_id(block.block_hash)


def one_group(block: int) -> Groups:
    """Full attention alone."""
    return Groups(block, np.array([float(block)]), np.array([np.inf]))


def groups_of(manager: Any, block: int) -> Groups:
    """The groups of vLLM's `KVCacheManager`; block: tokens of its scheduler's block."""
    managers = manager.coordinator.single_type_managers
    return Groups(block, np.array([float(m.block_size) for m in managers]), np.array([_most(m) for m in managers]),
                  any(type(m).__name__ != "FullAttentionManager" for m in managers))


def _most(manager: Any) -> float:
    name, limit = type(manager).__name__, getattr(manager, "max_admission_blocks_per_request", None)
    if name == "MambaManager":
        return float(STATES)
    if limit is not None:
        return float(limit)
    window = {"SlidingWindowManager": "sliding_window",
              "ChunkedLocalAttentionManager": "attention_chunk_size"}.get(name)
    if window is None:
        return np.inf
    return float(math.ceil((getattr(manager.kv_cache_spec, window) - 1) / manager.block_size) + 1)


@njit(cache=True)
def blocks_for(tokens, sizes, most):
    """Blocks that a context of so many tokens holds at once. sizes, most: of `Groups`."""
    n = 0.0
    for g in range(len(sizes)):
        n += min((tokens + sizes[g] - 1.0) // sizes[g], most[g])
    return n
