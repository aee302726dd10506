"""Returns known: Bayes tables that are told how long every tool will take, though not who comes back.

Reads the ORACLE column, and of it only how many seconds lie between a chain's last use and its next. Of a chain that
never comes back it learns nothing: the tables say how long its tool may take, and for both the chance of an end is
theirs. A reference for open loop, not a bound: how far it is from Bélády is what not knowing the ends costs (and
`ends-known` says what not knowing the return times does).
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.eviction.parts import TIER, apart, dead
from saga_rl.policies.features import EV
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

HORIZON, IDLE = range(2)


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if dead(x):
        return TIER + x[EV.idle_s]
    outside = apart(x, 1.0, 0.0)
    if outside != 0.0:
        return outside
    until = x[EV.residual_s] + params[IDLE] * x[EV.idle_s]
    if x[EV.oracle] < np.inf:
        until = max(x[EV.oracle] - x[EV.idle_s], 0.0)
    return until + x[EV.p_end] * max(params[HORIZON] - until, 0.0)


@register("eviction", "returns-known")
def returns_known(horizon_s: float = 300.0, idle: float = 1.0) -> Policy:
    params = np.array([bounded("returns-known", "horizon_s", horizon_s, 0.0, 1e8),
                       bounded("returns-known", "idle", idle, 0.0, 1000.0)])
    return Policy("eviction", "returns-known", _score, params, oracle=True, oracle_gaps=True,
                  doc={"horizon_s": horizon_s, "idle": idle})
