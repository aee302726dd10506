"""Start a new chain only when it and the expected growth of the live ones fit; chains under way always go on.

Admits a new chain iff live + factor * session_growth + need <= pool (blocks).
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import AD
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[AD.new] == 0:
        return 1.0
    return 1.0 if x[AD.live] + params[0] * x[AD.session_growth] + x[AD.need] <= x[AD.pool] else -1.0


@register("admission", "grow")
def grow(factor: float = 0.5) -> Policy:
    factor = bounded("grow", "factor", factor, 0.0, 10.0)
    return Policy("admission", "grow", _score, np.array([factor]), steady=True, informed=False,
                  doc={"factor": factor})
