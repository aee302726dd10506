"""Reserve for older sessions: a request is let in only beside what older idle sessions keep cached.

Admits iff need + pinned + growth + older_idle <= pool (blocks), for every request, new or not. It predicts no length
and asks nothing of the client but the end of a session; `older_idle` leaves out what ended or expired.
"""

from numba import njit

from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import A_GROWTH, A_NEED, A_OLDER_IDLE, A_PINNED, A_POOL
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return 1.0 if x[A_NEED] + x[A_PINNED] + x[A_GROWTH] + x[A_OLDER_IDLE] <= x[A_POOL] else -1.0


@register("admission", "reserve-older")
def reserve_older() -> Policy:
    return Policy("admission", "reserve-older", _score, steady=True)
