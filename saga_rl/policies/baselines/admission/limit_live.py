"""The limit capacity / mean live KV, measured as it goes: a new chain starts only where one more of the mean has room.

Admits a new chain iff live + max(need, live / active) <= share * pool (blocks). live: what chains that have not ended
hold here, running or idle; active: how many they are; so live / active is their mean, and the condition without `need`
reads active + 1 <= share * pool / mean. Chains under way always go on.
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
    mean = x[AD.live] / max(x[AD.active], 1.0)
    return 1.0 if x[AD.live] + max(x[AD.need], mean) <= params[0] * x[AD.pool] else -1.0


@register("admission", "limit-live")
def limit_live(share: float = 1.0) -> Policy:
    share = bounded("limit-live", "share", share, 0.01, 4.0)
    return Policy("admission", "limit-live", _score, np.array([share]), informed=False, doc={"share": share})
