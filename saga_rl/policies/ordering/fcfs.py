"""First come, first served, with preempted requests ahead of all: vLLM's queue."""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import OD
from saga_rl.policies.registry import register

AHEAD_S = 1e9
"""More than the arrivals of one run can lie apart; leaves them exact to a microsecond."""


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return x[OD.arrival_s] - (AHEAD_S if x[OD.preempted] > 0 else 0.0)


@register("ordering", "fcfs")
def fcfs() -> Policy:
    return Policy("ordering", "fcfs", _score, informed=False, steady=True)
