"""Workflow-aware LRU as SAGA writes it (sections 3 and 4): sessions are dropped whole, and dropped when their TTL ends.

By share of the pool in use: up to 0.9 chains within their TTL are protected; above 0.9 they become candidates like any
other; above 0.95 plain LRU. The queue is not spared. A chain of an agent type with fewer than `cold_tasks` ended chains
(section 2, cold start: 30) is served request-level: by LRU within its tier, but its TTL still runs.
"""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.eviction.wa_lru import ALPHA, BETA, GAMMA, p_evict, parameters
from saga_rl.policies.features import EV
from saga_rl.policies.registry import register
from saga_rl.policies.state.tables import COLD_TASKS

HARD, LRU_ABOVE = 0.9, 0.95


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[EV.used] > LRU_ABOVE:
        return x[EV.idle_s]
    candidate = x[EV.used] > HARD or x[EV.ttl_left] <= 0 or x[EV.ended] > 0
    return (2.0 if candidate else 0.0) + p_evict(x, params, scratch)


@register("eviction", "wa-lru-literal")
def wa_lru_literal(alpha: float = ALPHA, beta: float = BETA, gamma: float = GAMMA,
                   cold_tasks: float = COLD_TASKS) -> Policy:
    params = parameters("wa-lru-literal", alpha, beta, gamma, cold_tasks)
    return Policy("eviction", "wa-lru-literal", _score, params, whole_chain=True, drop_expired=True, scaled=False,
                  doc={"alpha": alpha, "beta": beta, "gamma": gamma, "cold_tasks": cold_tasks})
