"""Least attained service of whole programs (PLAS in Autellix, arXiv 2502.13965): who has had little goes first.

Discretised, as there, into queues by the service that the chain has had so far: below base_s seconds, below
base_s * factor, below base_s * factor^2, ...; first come, first served within one. A preempted request keeps its
arrival, and may sink by the service that it had. Autellix also lifts a program to the first queue when it has waited
for `starve` times as long as it was served; here a request's own wait counts, a chain without service counts as base_s,
and starve = 0 turns it off.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import OD
from saga_rl.policies.ordering.fcfs import AHEAD_S
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

QUEUES = 16


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    queue, upto = 0, params[0]
    while queue < QUEUES - 1 and x[OD.attained_s] >= upto:
        queue += 1
        upto *= params[1]
    if params[2] > 0 and x[OD.wait_s] >= params[2] * max(x[OD.attained_s], params[0]):
        queue = 0
    return AHEAD_S * queue + x[OD.arrival_s]


@register("ordering", "las")
def las(base_s: float = 2.0, factor: float = 2.0, starve: float = 0.0) -> Policy:
    params = [bounded("las", "base_s", base_s, 1e-3, 1e4), bounded("las", "factor", factor, 1.1, 1e3),
              bounded("las", "starve", starve, 0.0, 1e6)]
    return Policy("ordering", "las", _score, np.array(params), informed=False,
                  steady=starve == 0,  # service counts only when it ended
                  doc={"base_s": base_s, "factor": factor, "starve": starve})
