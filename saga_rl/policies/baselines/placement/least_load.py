"""Least load: the worker with the smallest load (`features.load`), wherever the chain's KV may be."""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import PL
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return -x[PL.load]


@register("placement", "least-load")
def least_load() -> Policy:
    return Policy("placement", "least-load", _score)
