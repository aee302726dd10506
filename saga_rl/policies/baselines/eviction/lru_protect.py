"""LRU that spares the queue: the cached KV of a request that waits goes after every idle chain's.

vLLM holds no reference to a waiting request's cached blocks, so plain LRU throws away exactly what is needed next.
Among waiting chains the one farthest back in the queue goes first: it is needed last.
"""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import EV
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[EV.waiting] > 0:
        return -1.0 / (1.0 + x[EV.queue_log])  # in [-1, 0): below every idle chain, rising with the queue position
    return x[EV.idle_s]


@register("eviction", "lru-protect")
def lru_protect() -> Policy:
    return Policy("eviction", "lru-protect", _score, steady=True, informed=False)
