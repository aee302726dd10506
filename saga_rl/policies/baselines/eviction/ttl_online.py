"""WA-LRU with a time to live that is learned online: exponential weights over seven fixed TTLs.

`learn/regret.py` has the costs, the rule and its bound; this is the same in a worker's eight numbers: the summed losses
of the TTLs (less the smallest of them) and how many periods they are made of. A period ends when a chain's next request
gets blocks, so its length holds the wait in the queue, through which the KV has to live, too. A chain that came back
teaches what every TTL would have cost. One that does not come back teaches only when it expired and its blocks are
taken: it then counts as held in vain. What ended by its client's word teaches nothing.

First to go: ended, past the learned TTL (at least half of the weight is on shorter ones), within it, waiting; within a
tier WA-LRU's P_evict. The TTLs are `low_s` to `high_s` seconds, evenly spaced in logarithm; `price` is the worth of a
second in which the whole pool is held, in seconds of prefill.
"""

import numpy as np

from saga_rl.errors import UserError
from saga_rl.njit import njit
from saga_rl.policies.base import MEMORY, SCORE, Policy
from saga_rl.policies.eviction.parts import LINEAR, SQUARE, apart, prefill_s, recall
from saga_rl.policies.eviction.wa_lru import ALPHA, BETA, GAMMA, p_evict
from saga_rl.policies.features import BEGIN, EV, EVICT, NO_EVENT, RELEASE
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

SINCE, TOKENS, SHARE, HERE = 0, 1, 2, 4
"""Places in the memory. Of the chain: 1 + its session's age at its release (0 = nothing to learn), tokens then, share
of the pool then. Of the worker, from HERE on: losses, then the number of periods."""
EXPERTS = 7
PRICE, LINEAR_S, SQUARE_S, TTLS = 4, 5, 6, 7
"""Parameters; before them WA-LRU's four, from TTLS on the TTLs."""
ETA = 8.0 * np.log(EXPERTS)


@njit(cache=True)
def _learn(m, gap_s, params):
    """Add the losses of a period of `gap_s` seconds (infinity = not back) to the worker's."""
    rate = params[PRICE] * m[SHARE]
    reload = prefill_s(m[TOKENS], params[LINEAR_S], params[SQUARE_S])
    most = rate * params[TTLS + EXPERTS - 1] + reload
    if most <= 0.0:
        return
    least = np.inf
    for k in range(EXPERTS):
        ttl = params[TTLS + k]
        cost = rate * min(gap_s, ttl)
        if ttl < gap_s < np.inf:
            cost += reload
        m[HERE + k] += cost / most
        least = min(least, m[HERE + k])
    for k in range(EXPERTS):
        m[HERE + k] -= least
    m[HERE + EXPERTS] += 1.0


@njit(cache=True)
def _remember(x, m, params):
    if x[EV.event] == BEGIN and m[SINCE] > 0:
        _learn(m, max(1.0 + x[EV.age_s] - m[SINCE], 0.0), params)
        m[SINCE] = 0.0
    elif x[EV.event] == EVICT and x[EV.ended] > 0 and m[SINCE] > 0:
        _learn(m, np.inf, params)
        m[SINCE] = 0.0
    elif x[EV.event] == RELEASE:
        m[SINCE] = 0.0 if x[EV.ended] > 0 else 1.0 + x[EV.age_s]
        m[TOKENS] = x[EV.tokens]
        m[SHARE] = min(x[EV.event_total] / max(x[EV.pool_blocks], 1.0), 1.0)


@njit(cache=True)
def _past(x, params):
    """Whether at least half of the weight is on TTLs that have run out."""
    eta = np.sqrt(ETA / (max(x[EV.here + EXPERTS], 0.0) + 1.0))
    out, total = 0.0, 0.0
    for k in range(EXPERTS):
        w = np.exp(-eta * max(x[EV.here + k], 0.0))
        total += w
        if params[TTLS + k] <= x[EV.idle_s]:
            out += w
    return out >= (0.5 - 1e-12) * total


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[EV.event] != NO_EVENT:
        recall(x, scratch)
        _remember(x, scratch, params)
        return 0.0
    outside = apart(x, 1.0, 1.0)
    if outside != 0.0:
        return outside
    return (2.0 if _past(x, params) else 0.0) + p_evict(x, params, scratch)


@register("eviction", "ttl-online")
def ttl_online(price: float = 1.0, low_s: float = 1.0, high_s: float = 600.0, linear: float = LINEAR,
               square: float = SQUARE) -> Policy:
    doc = {"price": price, "low_s": low_s, "high_s": high_s, "linear": linear, "square": square}
    for key, low, high in (("low_s", 1e-3, 1e6), ("high_s", 1e-3, 1e6), ("price", 0.0, 1000.0), ("linear", 0.0, 1000.0),
                           ("square", 0.0, 1000.0)):
        bounded("ttl-online", key, doc[key], low, high)
    if not low_s < high_s:
        raise UserError("policy 'ttl-online'", f"low_s is {low_s:g}, not below high_s {high_s:g}", "choose it smaller")
    params = np.concatenate([[ALPHA, BETA, GAMMA, 0.0, price, linear, square], np.geomspace(low_s, high_s, EXPERTS)])
    return Policy("eviction", "ttl-online", _score, params, scratch=MEMORY, memory=True, doc=doc)
