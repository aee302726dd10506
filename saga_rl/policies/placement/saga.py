"""SAGA section 6: home while its load is below theta, else the least loaded worker (home competes there too)."""

import numpy as np
from numba import njit

from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import P_HOME, P_LOAD
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return 1.0 if x[P_HOME] > 0 and x[P_LOAD] < params[0] else -x[P_LOAD]


@register("placement", "saga")
def saga(theta: float = 0.8) -> Policy:
    theta = bounded("saga", "theta", theta, 0.0, 1e6)
    return Policy("placement", "saga", _score, np.array([theta]), doc={"theta": theta})
