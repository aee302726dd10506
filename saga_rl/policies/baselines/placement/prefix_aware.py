"""Prefix-aware routing: what is cached against what is queued.

The worker with the least queued_s + hit * uncached_s, seconds of prefill before the first token: hit = 1 is expected
time to first token, 0 the shortest queue, a large value the longest cached prefix wherever it lies.

Cache-aware routers of SGLang's kind send everything to the shortest queue once the longest exceeds the shortest by more
than 64 requests and 1.5 times. Here each worker that is so far above the *mean* (by more than `excess` requests in
flight and `ratio` times) is passed over, and the others are still chosen from by prefix.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import PL
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

PASSED_OVER = -1e300
"""Never chosen: the worker with the fewest requests in flight is not above the mean."""


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[PL.in_flight] - x[PL.mean_in_flight] > params[1] and x[PL.in_flight] > params[2] * x[PL.mean_in_flight]:
        return PASSED_OVER
    return -(x[PL.queued_s] + params[0] * x[PL.uncached_s])


@register("placement", "prefix-aware")
def prefix_aware(hit: float = 1.0, excess: float = 64.0, ratio: float = 1.5) -> Policy:
    params = [bounded("prefix-aware", "hit", hit, 0.0, 1e3), bounded("prefix-aware", "excess", excess, 0.0, 1e6),
              bounded("prefix-aware", "ratio", ratio, 1.0, 1e6)]
    return Policy("placement", "prefix-aware", _score, np.array(params),
                  doc={"hit": hit, "excess": excess, "ratio": ratio})
