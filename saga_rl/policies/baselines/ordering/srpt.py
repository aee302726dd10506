"""Shortest expected remaining work: the chain whose agent type and finished steps predict the least service to its end.

Remaining steps (of the mean that its type's ended chains had, at least one) x seconds a step of that type. Chains that
are expected to need the same go by arrival; preempted requests keep theirs.
"""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import OD
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return x[OD.remain_s]


@register("ordering", "srpt")
def srpt() -> Policy:
    return Policy("ordering", "srpt", _score, informed=False)
