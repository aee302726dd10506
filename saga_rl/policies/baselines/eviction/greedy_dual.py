"""Size-aware GreedyDual: the KV that is cheapest to compute again, per block, goes first, and all of it ages.

H = L + F x C / S (GreedyDual-Size-Frequency: Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-
Frequency caching policy", HP Labs 1998; GreedyDual-Size, which is F = 1: Cao, Irani, USITS 1997). The chain with the
lowest H goes first, and L becomes its H: what is not used again sinks, however dear it was.

The object is a chain's KV on a worker. S: its blocks; F: its requests since it last had no block there; C: seconds to
compute it again, `fixed` + `linear` k + `square` k^2 with k = its tokens / 1000. H is set when its blocks become
evictable. Since attention makes long prefixes dearer per block, long chains stay by default; with `fixed` alone (a miss
is a miss) the larger of two goes first.

Where a score cannot do what the source does: eviction takes tail blocks of the victim, as many as are needed, and what
is left keeps its H until it is next used. `frequency=0`: GreedyDual-Size. `protect=1`, `hint=1` are ours: waiting
chains go last, ended ones first, neither for their H, so L does not move with them; 0 is the published form.
"""

import numpy as np

from saga_rl.errors import UserError
from saga_rl.njit import njit
from saga_rl.policies.base import MEMORY, SCORE, Policy
from saga_rl.policies.eviction.parts import LINEAR, SQUARE, apart, prefill_s, recall, switch
from saga_rl.policies.features import BEGIN, EV, EVICT, NO_EVENT, RELEASE
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

F, H, L = 0, 1, 4
"""Places in the memory: of the chain, of the worker."""
PROTECT, HINT, FREQUENCY, FIXED, LINEAR_S, SQUARE_S = range(6)


@njit(cache=True)
def _remember(x, params, m):
    if x[EV.event] == BEGIN:
        m[F] += 1.0
    elif x[EV.event] == RELEASE:
        worth = params[FIXED] + prefill_s(x[EV.tokens], params[LINEAR_S], params[SQUARE_S])
        times = m[F] if params[FREQUENCY] > 0 else 1.0
        m[H] = m[L] + times * worth / max(x[EV.event_total], 1.0)
        if x[EV.waiting] > 0:  # preempted: the same request will begin again
            m[F] = max(m[F] - 1.0, 0.0)
    elif x[EV.event] == EVICT:
        if apart(x, params[PROTECT], params[HINT]) == 0.0:
            m[L] = max(m[L], m[H])
        if x[EV.event_total] <= 0:
            m[F] = 0.0


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[EV.event] != NO_EVENT:
        recall(x, scratch)
        _remember(x, params, scratch)
        return 0.0
    outside = apart(x, params[PROTECT], params[HINT])
    return outside if outside != 0.0 else -x[EV.mine + H]


@register("eviction", "greedy-dual")
def greedy_dual(frequency: float = 1.0, fixed: float = 0.0, linear: float = LINEAR, square: float = SQUARE,
                protect: float = 1.0, hint: float = 1.0) -> Policy:
    doc = {"frequency": frequency, "fixed": fixed, "linear": linear, "square": square, "protect": protect, "hint": hint}
    flags = [switch("greedy-dual", k, doc[k]) for k in ("protect", "hint", "frequency")]
    cost = [bounded("greedy-dual", k, doc[k], 0.0, 1000.0) for k in ("fixed", "linear", "square")]
    if sum(cost) <= 0:
        raise UserError("policy 'greedy-dual'", "fixed, linear and square are all 0", "let one of them cost something")
    return Policy("eviction", "greedy-dual", _score, np.array(flags + cost), scratch=MEMORY, memory=True, doc=doc)
