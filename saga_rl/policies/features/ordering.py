"""Ordering: the row of one waiting request."""

from __future__ import annotations

import numpy as np
from numba import njit

from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb

ORDERING = (
    "wait_log",       # log1p seconds in the queue so far
    "age_log",        # log1p seconds since its session began
    "attained_log",   # log1p seconds of service that its chain has had
    "steps_log",      # log1p finished steps of its chain
    "prompt_log",     # log1p tokens
    "remain_log",     # log1p `remain_s`
    "uncached_log",   # log1p prompt tokens beyond `cached_tokens`
    "begun",          # 1: its chain has been served before
    "preempted",      # 1: it ran before and lost its blocks
    "arrival_s",      # when the request was queued
    "session_s",      # when its session began
    "attained_s",     # service that its chain has had
    "steps",          # finished steps of its chain
    "afs",            # its tenant's Agent Fair Share
    "wait_s",         # seconds in the queue so far
    "prompt_tokens",
    "remain_s",       # service that its chain is expected to need until it ends, by its agent type
    "cached_tokens",  # of its chain's KV, evictable here
    "service",        # its tenant's service counter (`policies.state.service`), tokens
    "least_service",  # the smallest counter of a tenant that waits here
)
(O_WAIT_LOG, O_AGE_LOG, O_ATTAINED_LOG, O_STEPS_LOG, O_PROMPT_LOG, O_REMAIN_LOG, O_UNCACHED_LOG, O_BEGUN, O_PREEMPTED,
 O_ARRIVAL, O_SESSION, O_ATTAINED, O_STEPS, O_AFS, O_WAIT, O_PROMPT, O_REMAIN, O_CACHED, O_SERVICE, O_LEAST) = range(20)
LEARNED_ORDERING = ORDERING[:O_ARRIVAL]
"""What a learned ordering policy may read: bounded columns, none of which says who the tenant is."""


@njit(cache=True)
def ordering_row(chains, tables, w, c, now, queued_s, prompt_tokens, preempted, afs, cached_tokens, service,
                 least_service, out):
    """Fill `out` (len(ORDERING),) for the request of chain c that was queued at worker w at `queued_s`."""
    row = chains[c]
    out[O_ARRIVAL] = queued_s
    out[O_SESSION] = row[ch.SESSION_S]
    out[O_PREEMPTED] = preempted
    out[O_ATTAINED] = row[ch.ATTAINED]
    out[O_STEPS] = row[ch.STEPS]
    out[O_AFS] = afs
    out[O_WAIT] = now - queued_s
    out[O_PROMPT] = prompt_tokens
    a = tables.types[w, int(row[ch.TYPE])]
    out[O_REMAIN] = max(a[tb.STEPS] - row[ch.STEPS], 1.0) * a[tb.STEP_S]
    out[O_CACHED] = cached_tokens
    out[O_SERVICE] = service
    out[O_LEAST] = least_service
    out[O_WAIT_LOG] = np.log1p(max(now - queued_s, 0.0))
    out[O_AGE_LOG] = np.log1p(max(now - row[ch.SESSION_S], 0.0))
    out[O_ATTAINED_LOG] = np.log1p(row[ch.ATTAINED])
    out[O_STEPS_LOG] = np.log1p(row[ch.STEPS])
    out[O_PROMPT_LOG] = np.log1p(prompt_tokens)
    out[O_REMAIN_LOG] = np.log1p(out[O_REMAIN])
    out[O_UNCACHED_LOG] = np.log1p(max(prompt_tokens - cached_tokens, 0.0))
    out[O_BEGUN] = 0.0 if ch.is_new(row) else 1.0
