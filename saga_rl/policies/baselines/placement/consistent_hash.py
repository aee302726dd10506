"""Consistent hashing with bounded load (Mirrokni, Thorup, Zadimoghaddam, arXiv 1608.01350).

A chain belongs to the first worker of an order of the workers that its identity alone draws. While that one is full the
request goes to the next of the order that is not, and the chain's next request tries the first again. Full: it has more
than c times the mean number of requests in flight. So no worker is sent a request beyond floor(c * mean) + 1, which is
at most the paper's ceil(c * (requests + 1) / workers) and needs no number of workers, and the worker with the fewest is
never full. A very large c gives plain consistent hashing.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import PL
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

FULL = -1e9
"""Behind every worker that is not; orders of the workers are shorter."""


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return -x[PL.ring] + (0.0 if x[PL.in_flight] <= params[0] * x[PL.mean_in_flight] else FULL)


@register("placement", "consistent-hash")
def consistent_hash(c: float = 1.25) -> Policy:
    c = bounded("consistent-hash", "c", c, 1.0, 1e6)
    return Policy("placement", "consistent-hash", _score, np.array([c]), draws=True, doc={"c": c})
