"""Power of two choices (Mitzenmacher 2001): of two workers drawn for each request, the one with the smaller load.

A router that looks at two workers needs no view of the whole cluster, and its largest load grows with log log W only.
Equal loads: the one drawn first.
"""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import PL
from saga_rl.policies.registry import register

NOT_DRAWN = -1e300
TIE = 1e-12


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return -x[PL.load] - TIE * x[PL.draw] if x[PL.draw] < 2 else NOT_DRAWN


@register("placement", "power-of-two")
def power_of_two() -> Policy:
    return Policy("placement", "power-of-two", _score, draws=True)
