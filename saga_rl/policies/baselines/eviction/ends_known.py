"""Ends known: Bayes tables that are told who will come back, though not when.

Reads the ORACLE column, and of it only whether there is a next use. What is never used again goes first; the rest in
the order of `bayes-tables` without its chance of an end. A reference for open loop, not a bound: how far it is from
Bélády is what not knowing the return times costs; what lies between it and `bayes-tables`, not knowing the ends.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.eviction.parts import TIER, apart
from saga_rl.policies.features import EV
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[EV.oracle] == np.inf:
        return TIER + x[EV.idle_s]
    outside = apart(x, 1.0, 0.0)
    return outside if outside != 0.0 else x[EV.residual_s] + params[0] * x[EV.idle_s]


@register("eviction", "ends-known")
def ends_known(idle: float = 1.0) -> Policy:
    return Policy("eviction", "ends-known", _score, np.array([bounded("ends-known", "idle", idle, 0.0, 1000.0)]),
                  oracle=True, scaled=False, doc={"idle": idle})
