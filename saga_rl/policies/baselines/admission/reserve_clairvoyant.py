"""`reserve-older` that knows the future: of the older idle chains it reserves only for those that return within 60 s.

A reference that says how much is to be gained from knowing who has ended and who returns late; no scheduler can run it.
Wants eviction `clairvoyant` beside it, which tells when each chain is next used.
"""

from numba import njit

from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import A_GROWTH, A_NEED, A_ORACLE, A_PINNED, A_POOL
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return 1.0 if x[A_NEED] + x[A_PINNED] + x[A_GROWTH] + x[A_ORACLE] <= x[A_POOL] else -1.0


@register("admission", "reserve-clairvoyant")
def reserve_clairvoyant() -> Policy:
    return Policy("admission", "reserve-clairvoyant", _score, oracle=True, informed=False)
