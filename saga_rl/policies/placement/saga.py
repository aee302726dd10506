"""SAGA section 6: home while its load is below theta, else the least loaded worker (home competes there too).

theta = 0.8 is the paper's default; the presets retune it (`policies.presets`). steal = 1 adds the paper's work
stealing, which no score of one request can express: the caller does it for a policy that `steals`. A worker takes the
oldest pending session of an overloaded one only if it has been idle for 100 ms *and* the largest load is more than
twice the smallest. The paper says both "and" and "or"; its argument against thrashing needs the "and".
"""

import numpy as np

from saga_rl.errors import UserError
from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import PL
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return 1.0 if x[PL.home] > 0 and x[PL.load] < params[0] else -x[PL.load]


@register("placement", "saga")
def saga(theta: float = 0.8, steal: float = 0) -> Policy:
    theta = bounded("saga", "theta", theta, 0.0, 1e6)
    if steal not in (0, 1):
        raise UserError("policy 'saga'", f"steal is {steal:g}", "choose steal 0 (off) or 1 (on)")
    return Policy("placement", "saga", _score, np.array([theta]), steals=steal == 1,
                  doc={"theta": theta, "steal": int(steal)})
