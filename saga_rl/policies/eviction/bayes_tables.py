"""Bayes tables: how long a chain's KV must be kept for each hit that it will give, by what was seen of its tool.

Two tables are kept online (`policies.tables`): how long each tool's calls took, and how often a step that called it was
its chain's last. Bayes' rule turns idle time into the chance that the chain has ended (the longer it is silent, the
likelier), the latencies that are still possible into the seconds until it returns. The prototype of this project found
this near Bélády. Score = expected seconds until the next use, with `horizon_s` for "never":

    (1 - P(ended)) x E[seconds until return | returns] + P(ended) x horizon_s

Waiting chains go last, farthest back first (`protect=0`: they count as due now); ended ones, by their client's word or
expired, have P = 1. Nothing published has quite this form; the idea of ranking by predicted next use is Bélády's.
"""

import numpy as np
from numba import njit

from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.eviction.parts import TIER, apart, switch
from saga_rl.policies.features import E_ENDED, E_IDLE_S, E_P_END, E_RESIDUAL_S
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

PROTECT, HORIZON = range(2)


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    outside = apart(x, params[PROTECT], 0.0)
    if outside != 0.0:
        return outside
    if x[E_ENDED] > 0:
        return TIER + x[E_IDLE_S]
    until = x[E_RESIDUAL_S]
    return until + x[E_P_END] * max(params[HORIZON] - until, 0.0)


@register("eviction", "bayes-tables")
def bayes_tables(horizon_s: float = 300.0, protect: float = 1.0) -> Policy:
    doc = {"horizon_s": horizon_s, "protect": protect}
    params = np.array([switch("bayes-tables", "protect", protect),
                       bounded("bayes-tables", "horizon_s", horizon_s, 0.0, 1e8)])
    return Policy("eviction", "bayes-tables", _score, params, doc=doc)
