"""Where chains live, in memory that several servers write to without a lock (`shared_table`).

A home is two words: (tag, engine, age) and (tag, context). The first says where a chain's last request went, the second
how many tokens it had. Of two servers that write to one place at the same time one is forgotten, and its chain is
placed as if it were new; words of different chains are told by their tags.
"""

from __future__ import annotations

from saga_rl.njit import njit

WAYS = 8
"""Places in which a chain's home may stand."""
TAG = (1 << 39) - 1
MOST_CONTEXT = (1 << 24) - 1
AGE_S = 8.0
"""The age of a home is counted in so many seconds, 4,096 of them."""


@njit(cache=True)
def find(homes, key):
    """(engine, context, tokens) of the chain, (-1, 0) = it is not known."""
    first, tag = (key % (len(homes) // WAYS)) * WAYS, (key >> 24) & TAG
    for i in range(first, first + WAYS):
        where, what = homes[i, 0], homes[i, 1]
        if where != 0 and where >> 24 == tag:
            return ((where >> 12) & 4095) - 1, (what & MOST_CONTEXT if what >> 24 == tag else 0)
    return -1, 0


@njit(cache=True)
def store(homes, key, engine, context, age):
    """Note where the chain lives; with all places taken, that of the one unheard of for longest."""
    first, tag = (key % (len(homes) // WAYS)) * WAYS, (key >> 24) & TAG
    at, oldest = first, -1
    for i in range(first, first + WAYS):
        where = homes[i, 0]
        if where != 0 and where >> 24 == tag:
            at = i
            break
        since = 1 << 20 if where == 0 else (age - (where & 4095)) & 4095
        if since > oldest:
            at, oldest = i, since
    homes[at, 1] = tag << 24 | context
    homes[at, 0] = tag << 24 | (engine + 1) << 12 | age & 4095
