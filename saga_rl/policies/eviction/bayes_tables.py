"""Bayes tables: the chain goes first whose next use is expected last, by what was seen of its tool.

Two tables are kept online (`policies.state.tables`): how long each tool's calls took, and how often a step that called
it was its chain's last. Bayes' rule turns idle time into the chance that the chain has ended (the longer it is silent,
the likelier), the latencies that are still possible into the seconds until it returns:

    (1 - P(ended)) x (E[seconds until return | returns] + `idle` x seconds idle) + P(ended) x `horizon_s`

A table of 256 returns says little of rare long gaps, and of a heavy tail more is left the longer it has lasted: that is
what `idle` is for (0: the tables alone).

First to go: what is dead for certain, that is ended chains (by their client's word, or expired) and chains that hold
more than their context, which they do after they compacted it; then by the score; then what waits, farthest back first
(`protect=0`: as if due now). Eviction takes as much as is needed, so it can cut a compacted chain beyond what is dead.
Nothing published has quite this form; the idea of ranking by predicted next use is Bélády's.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.eviction.parts import TIER, apart, dead, switch
from saga_rl.policies.features import EV, UNTIL_HORIZON_S, until_s
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

PROTECT, HORIZON, IDLE = range(3)


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if dead(x):
        return TIER + x[EV.idle_s]
    outside = apart(x, params[PROTECT], 0.0)
    if outside != 0.0:
        return outside
    return until_s(x[EV.residual_s], x[EV.idle_s], x[EV.p_end], params[IDLE], params[HORIZON])


@register("eviction", "bayes-tables")
def bayes_tables(horizon_s: float = UNTIL_HORIZON_S, idle: float = 1.0, protect: float = 1.0) -> Policy:
    doc = {"horizon_s": horizon_s, "idle": idle, "protect": protect}
    params = np.array([switch("bayes-tables", "protect", protect),
                       bounded("bayes-tables", "horizon_s", horizon_s, 0.0, 1e8),
                       bounded("bayes-tables", "idle", idle, 0.0, 1000.0)])
    return Policy("eviction", "bayes-tables", _score, params, scaled=False, doc=doc)
