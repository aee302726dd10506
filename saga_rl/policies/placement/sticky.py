"""Sticky: a chain stays where its last step ran, whatever the load; a new chain goes to the least loaded worker."""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import PL
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return 1.0 if x[PL.home] > 0 else -x[PL.load]  # loads are >= 0, so home wins


@register("placement", "sticky")
def sticky() -> Policy:
    return Policy("placement", "sticky", _score)
