"""Bélády: the chain that is used farthest in the future goes first, what is never used again before all.

Reads the ORACLE column. On a fixed reference string it is a true bound (a chain is a prefix, so the farthest next use
of any block is found at a chain's tail); in closed loop it is a reference only.
"""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import EV
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return x[EV.oracle]


@register("eviction", "belady")
def belady() -> Policy:
    return Policy("eviction", "belady", _score, oracle=True, informed=False)
