"""What features keep of each worker's pool, and the events of which a policy with memory is told.

The caller refreshes it before it scores: `G[w, ...]`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saga_rl.policies.base import Policy

NO_EVENT, BEGIN, RELEASE, EVICT = range(4)
"""A request of the chain got its first blocks; the chain's blocks became evictable; some of them were taken."""

(G_TAU_MAX, G_SIZE_MAX, G_USED, G_LIVE, G_MEMORY, G_ADMIT_MEMORY, G_BLOCK, G_POOL, G_INFORMED, G_ADMIT_INFORMED,
 G_TIERED, G_LOST, G_FOUND, G_FOUND_S, G_HERE) = range(15)
HERE = 8
G_ADMIT = G_HERE + HERE
G_COLUMNS = G_ADMIT + HERE
"""G_MEMORY, G_ADMIT_MEMORY: 1 = the eviction, admission policy has memory; G_INFORMED, G_ADMIT_INFORMED: 1 = it reads
what the tables say (`Policy.informed`), 2 = eviction reads logarithms as well (`Policy.scaled`); G_BLOCK: tokens of a
block; G_POOL: blocks; G_TIERED: 1 = there is memory below the pool; G_LOST, G_FOUND, G_FOUND_S: see `features.tier`;
from G_HERE and from G_ADMIT on `HERE` columns that the eviction and the admission policy remember of the worker."""


def make_g(workers: int, block_tokens: int, pool_blocks: int, eviction: Policy, admission: Policy | None = None,
           tiered: bool = False) -> NDArray[np.float64]:
    """(workers, G_COLUMNS) of empty pools. tiered: there is memory below them."""
    g = np.zeros((workers, G_COLUMNS))
    g[:, G_MEMORY] = eviction.memory
    g[:, G_ADMIT_MEMORY] = admission is not None and admission.memory
    g[:, G_INFORMED] = 0 if not eviction.informed else 1 + eviction.scaled
    g[:, G_ADMIT_INFORMED] = admission is None or admission.informed
    g[:, G_BLOCK], g[:, G_POOL], g[:, G_TIERED] = block_tokens, pool_blocks, tiered
    return g
