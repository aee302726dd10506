"""ARC: recency and frequency share the cache, and what was evicted too early moves the border between them.

Source: Megiddo, Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003, Figure 4. T1 holds what was
used once, T2 what was used again, both in LRU order; B1, B2 remember what left them. Eviction takes from T1 while T1 is
larger than its target p, else from T2. Something found in B1 moves p up by max(|B2| / |B1|, 1), in B2 down by
max(|B1| / |B2|, 1); |T1| + |B1| <= c and |T1| + |T2| + |B1| + |B2| <= 2 c, with c the pool.

The object is a chain's KV on a worker, all sizes in blocks; p moves once for each block that had been evicted. Where a
score cannot do what the source does:
- The policy is told of a request after room was made for it, so p moves after that eviction, not before it, and the
  tie rule |T1| = p for something found in B2 does not apply.
- B1, B2 are counts. A chain remembers how many blocks had left its list when its own last one did, and is still found
  there if fewer blocks than the list holds have left since. (Exact, but for places freed by what came back.)
- Eviction takes tail blocks, as many as are needed, and decides between T1 and T2 once for all that it takes. A chain
  that lost a part of its blocks is found with the rest and moves p for the part.

`protect=1`, `hint=1` are ours: waiting chains go last, ended ones first; 0 is the published form.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import MEMORY, SCORE, Policy
from saga_rl.policies.eviction.parts import apart, recall, switch
from saga_rl.policies.features import BEGIN, EV, NO_EVENT, RELEASE
from saga_rl.policies.registry import register

LIST, SIZE, LOST, MARK, T, B, GONE, P = 0, 1, 2, 3, 4, 6, 8, 10
"""Places in the memory. Of the chain: 1 or 2, the list that it is in or left last (0: new); its blocks; blocks that it
lost since its last request; GONE of its list when it lost the last of them. Of the worker, for each of the two lists:
blocks in it (T), in its ghost (B), that ever left it (GONE). P: the target for T1, blocks."""
AGAIN = 1.5
"""LIST of a chain in T1 whose only request was preempted."""
PROTECT, HINT = range(2)
OTHER_LIST = 1e12
"""Beyond every idle time, s."""


@njit(cache=True)
def _begin(x, m):
    """Move p for what the chain lost, and put it where it belongs."""
    pool = x[EV.pool_blocks]
    known = m[LIST] > 0 and x[EV.event_blocks] > 0
    if m[LIST] > 0:
        i = 0 if m[LIST] < 2.0 else 1
        lost = min(m[LOST], m[B + i])
        if lost > 0 and m[GONE + i] - m[MARK] < m[B + i]:
            step = max(m[B + 1 - i] / m[B + i], 1.0) * lost
            m[P] = min(m[P] + step, pool) if i == 0 else max(m[P] - step, 0.0)
            m[B + i] -= lost
            known = True
    m[LIST] = 2.0 if known and m[LIST] != AGAIN else 1.0
    m[LOST] = 0.0


@njit(cache=True)
def _remember(x, params, m):
    pool = x[EV.pool_blocks]
    if m[LIST] > 0:
        m[T if m[LIST] < 2.0 else T + 1] -= m[SIZE]
    if x[EV.event] == BEGIN:
        _begin(x, m)
    elif x[EV.event] == RELEASE:
        if x[EV.waiting] > 0 and m[LIST] == 1.0:  # preempted: the same request will begin again, which is no second use
            m[LIST] = AGAIN
    elif m[LIST] > 0 and not (params[HINT] > 0 and x[EV.ended] > 0):  # what was told to have ended leaves no ghost
        i = 0 if m[LIST] < 2.0 else 1
        m[LOST] += x[EV.event_blocks]
        m[B + i] += x[EV.event_blocks]
        m[GONE + i] += x[EV.event_blocks]
        m[MARK] = m[GONE + i]
    m[SIZE] = x[EV.event_total]
    if m[LIST] > 0:
        m[T if m[LIST] < 2.0 else T + 1] += m[SIZE]
    m[T], m[T + 1] = max(m[T], 0.0), max(m[T + 1], 0.0)
    m[B] = max(min(m[B], pool - m[T]), 0.0)
    m[B + 1] = max(min(m[B + 1], 2.0 * pool - m[T] - m[T + 1] - m[B]), 0.0)


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[EV.event] != NO_EVENT:
        recall(x, scratch)
        _remember(x, params, scratch)
        return 0.0
    outside = apart(x, params[PROTECT], params[HINT])
    if outside != 0.0:
        return outside
    t1_first = x[EV.mine + T] > x[EV.mine + P]
    return x[EV.idle_s] + (OTHER_LIST if t1_first == (x[EV.mine + LIST] < 2.0) else 0.0)


@register("eviction", "arc")
def arc(protect: float = 1.0, hint: float = 1.0) -> Policy:
    doc = {"protect": protect, "hint": hint}
    params = np.array([switch("arc", k, doc[k]) for k in ("protect", "hint")])
    return Policy("eviction", "arc", _score, params, scratch=MEMORY, memory=True, informed=False,
                  doc=doc)
