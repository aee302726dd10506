"""What memory below a worker's pool (vLLM's KV offloading, LMCache) gives back of what the pool loses.

Nobody tells a scheduler what such a tier holds, and each tier forgets in its own way. So it is measured: of the blocks
that a chain's next request found lost, the share that the tier had. A block that comes back by a copy costs a hundredth
of computing it again, so what is likely to come back needs no protection.
"""

from __future__ import annotations

from saga_rl.njit import njit
from saga_rl.policies.features.pools import G_FOUND, G_FOUND_S, G_LOST, G_POOL, G_TIERED

PRIOR = 0.25
"""Pools of lost blocks that are supposed to have been found: who never loses a block never learns what the tier would
have had, so what was measured is forgotten and a tier is trusted anew."""
FORGET_POOLS = 1.0
"""What was measured counts half after so many pools of lost blocks more,"""
FORGET_S = 600.0
"""and after so many seconds."""


@njit(cache=True)
def note_found(g, w, lost, found, now):
    """Note that a request found `lost` blocks of its chain's context gone from worker w's pool, and `found` of them
    below it."""
    if lost <= 0.0 or g[w, G_TIERED] == 0.0:
        return
    kept = 0.5 ** (lost / (FORGET_POOLS * g[w, G_POOL]) + max(now - g[w, G_FOUND_S], 0.0) / FORGET_S)
    g[w, G_LOST] = g[w, G_LOST] * kept + lost
    g[w, G_FOUND] = g[w, G_FOUND] * kept + min(found, lost)
    g[w, G_FOUND_S] = now


@njit(cache=True)
def tier_found(g, w, now):
    """Return the share of what worker w's pool loses that the memory below it is expected to have; 0 where there is
    none."""
    if g[w, G_TIERED] == 0.0:
        return 0.0
    kept = 0.5 ** (max(now - g[w, G_FOUND_S], 0.0) / FORGET_S)
    prior = PRIOR * g[w, G_POOL]
    return (g[w, G_FOUND] * kept + prior) / (g[w, G_LOST] * kept + prior)
