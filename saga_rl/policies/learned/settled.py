"""A learned scorer over the bounded eviction features (`LEARNED_EVICTION`).

The network ranks what is uncertain: idle chains that may come back. What is known is settled ahead of it: a chain that
ended, by its client's word or because nobody heard of it for longer than the expiry, goes first, and so does one that
holds more than it can use; then one whose request waits in the queue goes last, farthest back first. A network that had
to learn these, too, got them wrong on traffic unlike its training data, and lost to `lru-protect` by far.
"""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE
from saga_rl.policies.eviction.parts import TIER, apart, dead
from saga_rl.policies.features import EV
from saga_rl.policies.learned.mlp import mlp_score

MOST = TIER / 1e3
"""Bounds the network's own scores, so that no weights reach beyond the tiers."""


@njit(SCORE, cache=True)
def settled_score(x, params, scratch):
    if dead(x):
        return TIER + x[EV.idle_s]
    outside = apart(x, 1.0, 0.0)
    if outside != 0.0:
        return outside
    return min(max(mlp_score(x, params, scratch), -MOST), MOST)
