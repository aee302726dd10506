"""Least frequently used, with dynamic aging.

The object is a chain's KV on a worker; its frequency F counts the chain's requests since it was last without any block
there (in-cache LFU). Key K = F, and with `aging=1` K = F + L, set at each request, where L is the key of the last
victim (LFU-DA: Arlitt, Cherkasova, Dilley, Friedrich, Jin, "Evaluating content management techniques for Web proxy
caches", 2000). The lowest key goes first; of equal keys the one released earliest.

Our reading: evicting some tail blocks of a chain leaves its count; a request that is preempted and begins again counts
once. `aging=0` is plain LFU: a long chain that ended stays for ever. `protect=1`, `hint=1` are ours: waiting chains go
last, ended ones first, neither for their key, so L does not move with them; 0 is the published form.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import MEMORY, SCORE, Policy
from saga_rl.policies.eviction.parts import apart, recall, switch
from saga_rl.policies.features import BEGIN, EV, EVICT, NO_EVENT, RELEASE
from saga_rl.policies.registry import register

F, KEY, L = 0, 1, 4
"""Places in the memory: of the chain, of the worker."""
PROTECT, HINT, AGING = range(3)


@njit(cache=True)
def _remember(x, params, m):
    if x[EV.event] == BEGIN:
        m[F] += 1.0
        m[KEY] = m[F] + m[L]
    elif x[EV.event] == RELEASE and x[EV.waiting] > 0:
        m[F] = max(m[F] - 1.0, 0.0)
    elif x[EV.event] == EVICT:
        if params[AGING] > 0 and apart(x, params[PROTECT], params[HINT]) == 0.0:
            m[L] = max(m[L], m[KEY])
        if x[EV.event_total] <= 0:
            m[F] = 0.0


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[EV.event] != NO_EVENT:
        recall(x, scratch)
        _remember(x, params, scratch)
        return 0.0
    outside = apart(x, params[PROTECT], params[HINT])
    return outside if outside != 0.0 else -x[EV.mine + KEY]


@register("eviction", "lfu")
def lfu(aging: float = 1.0, protect: float = 1.0, hint: float = 1.0) -> Policy:
    doc = {"aging": aging, "protect": protect, "hint": hint}
    params = np.array([switch("lfu", k, doc[k]) for k in ("protect", "hint", "aging")])
    return Policy("eviction", "lfu", _score, params, scratch=MEMORY, memory=True, informed=False,
                  doc=doc)
