"""Workflow-aware LRU with a lazy TTL: a chain past its TTL is preferred as a victim, not dropped when the timer fires.

P_evict = (alpha R + beta (1 - P_reuse) + gamma S) / (alpha + beta + gamma)   (SAGA section 3; R recency, S size)

orders chains within a tier; tiers, first to go: ended, past its TTL, within its TTL, waiting in the queue (farthest
back first). Takes as many tail blocks as are needed. The literal reading is `wa-lru-literal`. ttl=0: no TTL, so that
ended, live and waiting are the tiers (an ablation).

Cold start (section 2): a chain whose agent type has fewer than `cold_tasks` ended chains is served request-level: its
P_evict is R alone, so that it stands by LRU within its tier. 0 by default: the tables fall back on what they know of
the tool and of all tools, which serves a new type better than nothing.
"""

import numpy as np

from saga_rl.errors import UserError
from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import EV
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

ALPHA, BETA, GAMMA = 0.3, 0.5, 0.2


@njit(SCORE, cache=True)
def p_evict(x, params, scratch):
    """In [0, 1]. An ended chain has no successor, so its P_reuse is 0. params: alpha, beta, gamma, cold_tasks."""
    if x[EV.tasks] < params[3]:
        return x[EV.recency]
    reuse = 0.0 if x[EV.ended] > 0 else x[EV.p_reuse]
    weighed = params[0] * x[EV.recency] + params[1] * (1.0 - reuse) + params[2] * x[EV.size]
    return weighed / (params[0] + params[1] + params[2])


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[EV.waiting] > 0:
        return -1.0 / (1.0 + x[EV.queue_log])
    tier = 0.0
    if x[EV.ended] > 0:
        tier = 4.0
    elif x[EV.ttl_left] <= 0 and params[4] > 0:
        tier = 2.0
    return tier + p_evict(x, params, scratch)


def parameters(policy: str, alpha: float, beta: float, gamma: float, cold_tasks: float) -> np.ndarray:
    """Params of `p_evict`; `UserError` unless weights are in [0, 1000], their sum above 0, cold_tasks in [0, 1e6]."""
    w = [bounded(policy, k, v, 0.0, 1000.0) for k, v in (("alpha", alpha), ("beta", beta), ("gamma", gamma))]
    if sum(w) <= 0:
        raise UserError(f"policy {policy!r}", "alpha, beta and gamma are all 0", "give one of them weight")
    return np.array([*w, bounded(policy, "cold_tasks", cold_tasks, 0.0, 1e6)])


@register("eviction", "wa-lru")
def wa_lru(alpha: float = ALPHA, beta: float = BETA, gamma: float = GAMMA, cold_tasks: float = 0.0,
           ttl: float = 1.0) -> Policy:
    params = np.append(parameters("wa-lru", alpha, beta, gamma, cold_tasks), bounded("wa-lru", "ttl", ttl, 0.0, 1.0))
    return Policy("eviction", "wa-lru", _score, params, scaled=False,
                  doc={"alpha": alpha, "beta": beta, "gamma": gamma, "cold_tasks": cold_tasks, "ttl": ttl})
