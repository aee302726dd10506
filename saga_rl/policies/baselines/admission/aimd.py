"""A limit on chains under way that finds itself: up by a step while the cache holds, down by a factor when it does not.

Congestion control on KV memory (Concur, arXiv 2601.22705, which also looks at the pool's use): over every `period`
requests of chains under way, the share found cached of what their chains had computed here. Below `low` the limit is
multiplied by `cut`, at least one chain; else it grows by `step`. As in TCP, a limit that is not in use does not grow,
and there is no second cut before the first has taken effect, that is while more chains are under way than it allows.
Admits a new chain iff active < limit; chains under way always go on.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import MEMORY, SCORE, Policy
from saga_rl.policies.features import AD, HERE, NO_EVENT
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

START, STEP, CUT, LOW, PERIOD = range(5)
# what it remembers of the worker: its limit (0: not set yet), and of the requests since it last changed
LIMIT, FOUND, KNOWN, REQUESTS = range(4)


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    limit = x[AD.here + LIMIT] if x[AD.here + LIMIT] > 0 else params[START]
    if x[AD.event] != NO_EVENT:
        found, known, requests = x[AD.here + FOUND], x[AD.here + KNOWN], x[AD.here + REQUESTS]
        if x[AD.new] == 0 and x[AD.event_blocks] + x[AD.lost] > 0:
            found += x[AD.event_blocks]
            known += x[AD.event_blocks] + x[AD.lost]
            requests += 1.0
        scratch[:HERE] = 0.0
        if requests < params[PERIOD]:
            scratch[FOUND], scratch[KNOWN], scratch[REQUESTS] = found, known, requests
            scratch[LIMIT] = limit
        elif found < params[LOW] * known:
            scratch[LIMIT] = max(params[CUT] * limit, 1.0) if x[AD.active] < limit + 1.0 else limit
        else:
            scratch[LIMIT] = limit + params[STEP] if x[AD.active] + params[STEP] >= limit else limit
    return 1.0 if x[AD.new] == 0 or x[AD.active] < limit else -1.0


@register("admission", "aimd")
def aimd(start: float = 8, step: float = 0.25, cut: float = 0.7, low: float = 0.95, period: float = 16) -> Policy:
    doc = {"start": bounded("aimd", "start", start, 1.0, 1e6), "step": bounded("aimd", "step", step, 1e-3, 1e3),
           "cut": bounded("aimd", "cut", cut, 0.01, 1.0), "low": bounded("aimd", "low", low, 0.0, 1.0),
           "period": bounded("aimd", "period", period, 1.0, 1e6)}
    return Policy("admission", "aimd", _score, np.array(list(doc.values())), MEMORY, memory=True,
                  informed=False, doc=doc)
