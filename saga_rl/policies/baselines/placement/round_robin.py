"""Round robin: the worker that has been passed over for the longest, whatever its load and the chain's KV."""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import PL
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return x[PL.turn]


@register("placement", "round-robin")
def round_robin() -> Policy:
    return Policy("placement", "round-robin", _score)
