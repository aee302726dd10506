"""`reserve-older` that knows the future: of the older idle chains it reserves only for those that return within 60 s.

A reference that says how much is to be gained from knowing who has ended and who returns late; no scheduler can run it.
Wants eviction `clairvoyant` beside it, which tells when each chain is next used.
"""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import AD
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return 1.0 if x[AD.need] + x[AD.pinned] + x[AD.growth] + x[AD.older_returns] <= x[AD.pool] else -1.0


@register("admission", "reserve-clairvoyant")
def reserve_clairvoyant() -> Policy:
    return Policy("admission", "reserve-clairvoyant", _score, oracle=True, informed=False)
