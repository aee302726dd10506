"""S3-FIFO: a small queue that lets what is used once pass quickly, a main queue, and a memory of what just left.

Source: Yang, Zhang, Qiu, Yue, Vinayak, "FIFO queues are all you need for cache eviction", SOSP 2023, Algorithm 1. A new
object enters the small queue (`small` of the cache), one that left it lately (ghost) the main queue. Eviction takes
from the small queue while that is over its share, else from the main queue. At the tail of the small queue an object
with two hits goes on to the main queue; at the tail of the main queue one with hits goes back to the head, with one hit
less (at most 3 count).

The object is a chain's KV on a worker, measured in blocks; a hit is a request that finds any of it. Where a score
cannot do what the source does:
- A chain moves on with its second hit, not when it reaches the small queue's tail. It leaves that queue sooner.
- The main queue is a line on which the hand, the place of its last victim, only moves forward. It is taken to be as
  long as its share: a chain enters at hand + (1 - small) x pool, and a hit moves it on by that length, at most three
  lengths ahead: what going back to the head would come to if the queue were always full.
- A ghost is a chain that remembers how many blocks had left the small queue when its own last one did; it counts while
  no more than `ghost` of the pool have since. Ghosts that came back are not taken off that count.
- Eviction takes tail blocks, as many as are needed, and decides between the queues once for all that it takes.

`protect=1`, `hint=1` are ours: waiting chains go last, ended ones first, neither by their place, so the hand does not
move with them; 0 is the published form.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import MEMORY, SCORE, Policy
from saga_rl.policies.eviction.parts import apart, recall, switch
from saga_rl.policies.features import BEGIN, EV, NO_EVENT, RELEASE
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

STATE, PLACE, HITS, SIZE, IN_SMALL, ENTERED, HAND, HEAD, LEFT = range(9)
"""Places in the memory. Of the chain: where it is, its place there (GHOST: the worker's LEFT when it went), hits in the
small queue, blocks. Of the worker: blocks in the small queue, chains that ever entered it, the main queue's hand and
last place given, blocks that ever left the small queue."""
NOWHERE, SMALL, MAIN, GHOST = 0.0, 1.0, 2.0, 3.0
PROTECT, HINT, SHARE, GHOSTS = range(4)
PROMOTE, MOST_HITS = 2.0, 3.0
OTHER_QUEUE = 1e12
"""Beyond every place in either queue."""


@njit(cache=True)
def _remember(x, params, m):
    pool = x[EV.pool_blocks]
    length = (1.0 - params[SHARE]) * pool
    if m[STATE] == SMALL:
        m[IN_SMALL] -= m[SIZE]
    if x[EV.event] == BEGIN:
        to_main = False
        if x[EV.event_blocks] > 0 and m[STATE] == SMALL:
            m[HITS] += 1.0
            to_main = m[HITS] >= PROMOTE
        elif x[EV.event_blocks] > 0 and m[STATE] == MAIN:
            if m[HITS] >= 0 and m[PLACE] <= m[HAND] + MOST_HITS * length:
                m[PLACE] += length
            m[HITS] = 0.0
        elif m[STATE] == GHOST and m[LEFT] - m[PLACE] <= params[GHOSTS] * pool:
            to_main = True
        else:
            m[ENTERED] += 1.0
            m[STATE], m[PLACE], m[HITS] = SMALL, m[ENTERED], 0.0
        if to_main:
            m[HEAD] = max(m[HEAD] + 1.0, m[HAND] + length)
            m[STATE], m[PLACE], m[HITS] = MAIN, m[HEAD], 0.0
    elif x[EV.event] == RELEASE:
        if x[EV.waiting] > 0:  # preempted: the same request will begin again, which is no hit
            m[HITS] = m[HITS] - 1.0 if m[STATE] == SMALL else -1.0
    else:
        if m[STATE] == MAIN and apart(x, params[PROTECT], params[HINT]) == 0.0:
            m[HAND] = max(m[HAND], m[PLACE])
        elif m[STATE] == SMALL:
            m[LEFT] += x[EV.event_blocks]
        if x[EV.event_total] <= 0:
            m[STATE], m[PLACE] = (GHOST, m[LEFT]) if m[STATE] == SMALL else (NOWHERE, 0.0)
    m[SIZE] = x[EV.event_total]
    if m[STATE] == SMALL:
        m[IN_SMALL] += m[SIZE]
    m[IN_SMALL] = max(m[IN_SMALL], 0.0)


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[EV.event] != NO_EVENT:
        recall(x, scratch)
        _remember(x, params, scratch)
        return 0.0
    outside = apart(x, params[PROTECT], params[HINT])
    if outside != 0.0:
        return outside
    if x[EV.mine + STATE] == MAIN:
        return -x[EV.mine + PLACE]
    small_first = x[EV.mine + IN_SMALL] >= params[SHARE] * x[EV.pool_blocks]
    return (OTHER_QUEUE if small_first else -OTHER_QUEUE) - x[EV.mine + PLACE]


@register("eviction", "s3-fifo")
def s3_fifo(small: float = 0.1, ghost: float = 0.9, protect: float = 1.0, hint: float = 1.0) -> Policy:
    doc = {"small": small, "ghost": ghost, "protect": protect, "hint": hint}
    flags = [switch("s3-fifo", k, doc[k]) for k in ("protect", "hint")]
    shares = [bounded("s3-fifo", "small", small, 0.001, 0.999), bounded("s3-fifo", "ghost", ghost, 0.0, 100.0)]
    return Policy("eviction", "s3-fifo", _score, np.array(flags + shares), scratch=MEMORY, memory=True,
                  informed=False, doc=doc)
