"""A fixed number of chains under way on a worker; tuned: its KV pool / mean KV of a chain under way.

Admits a new chain iff active < sessions. Chains under way always go on.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import AD
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return 1.0 if x[AD.new] == 0 or x[AD.active] < params[0] else -1.0


@register("admission", "limit")
def limit(sessions: float = 8) -> Policy:
    sessions = bounded("limit", "sessions", sessions, 1.0, 1e6)
    # not steady: a chain that is counted here may go elsewhere without anything happening here
    return Policy("admission", "limit", _score, np.array([sessions]), informed=False, doc={"sessions": sessions})
