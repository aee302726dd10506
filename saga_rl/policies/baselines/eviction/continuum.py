"""Continuum: KV of a chain whose tool runs is kept for as long as that is expected to pay, then goes by LRU.

Source: Li et al., "Continuum: efficient and robust multi-turn LLM agent scheduling with KV cache time-to-live", arXiv
2511.02230. The time to live maximises P(the tool returns within it) x (T x `eta` + reload) - seconds held: reload is
what computing the KV again takes, T the mean queueing delay that a chain without its KV meets. What is within its TTL
is pinned; a chain that called no tool, or ended, has none.

Here the TTL is not set once but asked again whenever room is wanted, which is the same rule at the margin: keep for
another 10 s while

    p x (T x eta + reload) > `price` x (p x min(r, 10) + (1 - p) x 10)

with p the chance that the chain returns within them and r its expected seconds until it does, so the right side is the
time that it is expected to be held. First to go: ended; past their TTL, LRU; within it, least gain (left minus right
side) a token first; waiting. So pins give way under pressure, as the source's do when nothing else can run.
- `price` is the worth of a second held. The source's second weighs as much as a second of delay whatever the chain's
  size (`by_size=0`). `by_size=1`, the default, weighs it by the chain's share of the pool: that much less can run.
- T is measured: what passed between a chain's release and its next begin, less what its tool was expected to take,
  as a moving average over the worker's requests. It is 0 until some came back.
- reload = `linear` k + `square` k^2 seconds, k = the chain's evictable tokens / 1000.

`protect=0`: a waiting chain is within its TTL and no more. The source protects no queue but orders it by program.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import MEMORY, SCORE, Policy
from saga_rl.policies.eviction.parts import LINEAR, SQUARE, TIER, apart, prefill_s, recall, switch
from saga_rl.policies.features import BEGIN, EV, NO_EVENT, RELEASE
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

DUE, DELAY, DELAYS, BLOCK = 0, 4, 5, 6
"""Places in the memory. Of the chain: 1 + its session's age at which it was expected back, 0 = not released yet. Of the
worker: the mean queueing delay T, s, how many requests it is made of, tokens of a block."""
PROTECT, BY_SIZE, ETA, PRICE, LINEAR_S, SQUARE_S = range(6)
WINDOW_S = 10.0
MEAN_OF = 50.0
"""Requests that the moving average looks back."""


@njit(cache=True)
def _gain(x, params):
    """Seconds that keeping the chain for another `WINDOW_S` is expected to save, less those that it costs."""
    p = x[EV.p_return_10s]
    reload = prefill_s(x[EV.tokens], params[LINEAR_S], params[SQUARE_S])
    saved = p * (max(x[EV.mine + DELAY], 0.0) * params[ETA] + reload)
    held = p * min(x[EV.residual_s], WINDOW_S) + (1.0 - p) * WINDOW_S
    share = 1.0
    if params[BY_SIZE] > 0:
        share = min(x[EV.tokens] / max(x[EV.mine + BLOCK] * x[EV.pool_blocks], 1.0), 1.0)
    return saved - params[PRICE] * share * held


@njit(cache=True)
def _remember(x, m):
    if x[EV.event] == RELEASE:
        m[DUE] = 1.0 + x[EV.age_s] + x[EV.residual_s]
        if x[EV.event_total] > 0:
            m[BLOCK] = x[EV.tokens] / x[EV.event_total]
    elif x[EV.event] == BEGIN and m[DUE] > 0:
        m[DELAYS] = min(m[DELAYS] + 1.0, MEAN_OF)
        m[DELAY] += (1.0 + x[EV.age_s] - m[DUE] - m[DELAY]) / m[DELAYS]


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[EV.event] != NO_EVENT:
        recall(x, scratch)
        _remember(x, scratch)
        return 0.0
    outside = apart(x, params[PROTECT], 0.0)
    if outside != 0.0:
        return outside
    if x[EV.ended] > 0:
        return TIER + x[EV.idle_s]
    gain = _gain(x, params)
    return -gain / max(x[EV.tokens], 1.0) if gain > 0 else x[EV.idle_s]  # below every idle time


@register("eviction", "continuum")
def continuum(price: float = 1.0, by_size: float = 1.0, eta: float = 1.0, linear: float = LINEAR,
              square: float = SQUARE, protect: float = 1.0) -> Policy:
    doc = {"price": price, "by_size": by_size, "eta": eta, "linear": linear, "square": square, "protect": protect}
    flags = [switch("continuum", k, doc[k]) for k in ("protect", "by_size")]
    weights = [bounded("continuum", k, doc[k], 0.0, 1000.0) for k in ("eta", "price", "linear", "square")]
    return Policy("eviction", "continuum", _score, np.array(flags + weights), scratch=MEMORY, memory=True, doc=doc)
