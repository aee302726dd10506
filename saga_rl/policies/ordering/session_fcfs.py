"""Oldest session first, not oldest request: a session that began earlier is never held up by one that began later."""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import OD
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return x[OD.session_s]


@register("ordering", "session-fcfs")
def session_fcfs() -> Policy:
    return Policy("ordering", "session-fcfs", _score, informed=False, steady=True)
