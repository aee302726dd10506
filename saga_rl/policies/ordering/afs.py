"""Agent Fair Share (SAGA section 7): requests of the tenant with the highest AFS first, oldest session first within it.

Preempted requests go ahead of all. The three keys are folded into one number: 64 for preempted (log AFS stays below
it), log1p(AFS), and 1e-9 a second of session start: a session that began 1,000 s earlier outweighs an AFS that is
larger by one part in a million, and no more.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import OD
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    ahead = 64.0 if x[OD.preempted] > 0 else 0.0
    return 1e-9 * x[OD.session_s] - np.log1p(max(x[OD.afs], 0.0)) - ahead


@register("ordering", "afs")
def afs() -> Policy:
    return Policy("ordering", "afs", _score, informed=False, steady_one_tenant=True)
