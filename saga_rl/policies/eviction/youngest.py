"""Youngest session first: what has been in the system longest is closest to done and keeps its KV.

Goes with `reserve-older` admission, which counts on older sessions' blocks staying. Tiers, first to go: ended;
silent for longer than `expiry_s` (it may have ended without saying so); live; waiting in the queue.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import EV
from saga_rl.policies.parameters import EXPIRY_S, bounded
from saga_rl.policies.registry import register

TIER = 2.0**20
"""Above every age in seconds (12 days); leaves ages exact to a nanosecond, so that of two sessions of which an engine
hears in the same iteration one is older."""


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    tier = 0.0
    if x[EV.waiting] > 0:
        tier = -TIER
    elif x[EV.ended] > 0:
        tier = 2.0 * TIER
    elif x[EV.idle_s] > params[0]:
        tier = TIER
    return tier - min(x[EV.age_s], 0.9 * TIER)


@register("eviction", "youngest")
def youngest(expiry_s: float = EXPIRY_S) -> Policy:
    expiry_s = bounded("youngest", "expiry_s", expiry_s, 0.0, 1e8)
    return Policy("eviction", "youngest", _score, np.array([expiry_s]), steady=True, steady_idle_s=expiry_s,
                  informed=False, doc={"expiry_s": expiry_s})
