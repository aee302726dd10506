"""Ordering: the row of one waiting request."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.features.columns import number
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb


class OrderingColumns(NamedTuple):
    """Where each column is in a row."""

    wait_log: int  # log1p seconds in the queue so far
    age_log: int  # log1p seconds since its session began
    attained_log: int  # log1p seconds of service that its chain has had
    steps_log: int  # log1p finished steps of its chain
    prompt_log: int  # log1p tokens
    remain_log: int  # log1p `remain_s`
    uncached_log: int  # log1p prompt tokens beyond `cached_tokens`
    begun: int  # 1: its chain has been served before
    preempted: int  # 1: it ran before and lost its blocks
    arrival_s: int  # when the request was queued
    session_s: int  # when its session began
    attained_s: int  # service that its chain has had
    steps: int  # finished steps of its chain
    afs: int  # its tenant's Agent Fair Share
    wait_s: int  # seconds in the queue so far
    prompt_tokens: int
    remain_s: int  # service that its chain is expected to need until it ends, by its agent type
    cached_tokens: int  # of its chain's KV, evictable here
    service: int  # its tenant's service counter (`policies.state.service`), tokens
    least_service: int  # the smallest counter of a tenant that waits here


OD, ORDERING = number(OrderingColumns)
LEARNED_ORDERING = ORDERING[:OD.arrival_s]
"""What a learned ordering policy may read: bounded columns, none of which says who the tenant is."""


@njit(cache=True)
def ordering_row(chains, tables, w, c, now, queued_s, prompt_tokens, preempted, afs, cached_tokens, service,
                 least_service, out):
    """Fill `out` (len(ORDERING),) for the request of chain c that was queued at worker w at `queued_s`."""
    row = chains[c]
    out[OD.arrival_s] = queued_s
    out[OD.session_s] = row[ch.SESSION_S]
    out[OD.preempted] = preempted
    out[OD.attained_s] = row[ch.ATTAINED]
    out[OD.steps] = row[ch.STEPS]
    out[OD.afs] = afs
    out[OD.wait_s] = now - queued_s
    out[OD.prompt_tokens] = prompt_tokens
    a = tables.types[w, int(row[ch.TYPE])]
    out[OD.remain_s] = max(a[tb.STEPS] - row[ch.STEPS], 1.0) * a[tb.STEP_S]
    out[OD.cached_tokens] = cached_tokens
    out[OD.service] = service
    out[OD.least_service] = least_service
    out[OD.wait_log] = np.log1p(max(now - queued_s, 0.0))
    out[OD.age_log] = np.log1p(max(now - row[ch.SESSION_S], 0.0))
    out[OD.attained_log] = np.log1p(row[ch.ATTAINED])
    out[OD.steps_log] = np.log1p(row[ch.STEPS])
    out[OD.prompt_log] = np.log1p(prompt_tokens)
    out[OD.remain_log] = np.log1p(out[OD.remain_s])
    out[OD.uncached_log] = np.log1p(max(prompt_tokens - cached_tokens, 0.0))
    out[OD.begun] = 0.0 if ch.is_new(row) else 1.0
