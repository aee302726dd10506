"""Least recently used: what vLLM does. The chain whose blocks were released longest ago goes first."""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import EV
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return x[EV.idle_s]


@register("eviction", "lru")
def lru() -> Policy:
    return Policy("eviction", "lru", _score, steady=True, oldest_first=True, informed=False)
