"""Deficit longest prefix match (Cao et al., arXiv 2501.14312): longest cached prefix first, among tenants with quota.

There each tenant holds a deficit counter, is served while that is positive, and all who wait get `quantum` tokens more
once none is. A counter of refills * quantum - service is positive as long as floor(service / quantum) < refills; so
this takes the tenants in the lowest round floor(service / quantum) of those that wait. Within the round the request
with most cached tokens of its chain goes first, then the earlier one. With one tenant it is longest prefix match.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import OD
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

ROUND = 1e8
"""More than a chain's cached tokens."""


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return ROUND * np.floor(x[OD.service] / params[0]) - x[OD.cached_tokens]


@register("ordering", "dlpm")
def dlpm(quantum: float = 20_000.0) -> Policy:
    quantum = bounded("dlpm", "quantum", quantum, 100.0, 1e9)
    return Policy("ordering", "dlpm", _score, np.array([quantum]), fresh=True, doc={"quantum": quantum})
