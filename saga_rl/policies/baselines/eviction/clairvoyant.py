"""Clairvoyant: Bélády's rule in the closed loop, where the future depends on what is evicted.

Reads the ORACLE column: when the chain's next request comes, seconds on the clock, infinity if none does. The latest
goes first. Requests that wait have come: they go last, farthest back first.

A reference, not a bound: it knows when each tool returns, but not how long a request will then queue, and evicting by
next use alone is not optimal where the order of requests follows from the evictions. Another policy can beat it.
"""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.eviction.parts import apart
from saga_rl.policies.features import EV
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    outside = apart(x, 1.0, 0.0)
    return outside if outside != 0.0 else x[EV.oracle]


@register("eviction", "clairvoyant")
def clairvoyant() -> Policy:
    return Policy("eviction", "clairvoyant", _score, oracle=True, informed=False)
