"""Agent Fair Share: how urgently each tenant's sessions need an engine (SAGA section 7)."""

from __future__ import annotations

from saga_rl.njit import njit
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb

SLACK_FACTOR = 1.5
"""A chain without a deadline is due at 1.5 x the time that its agent type is expected to take."""


@njit(cache=True)
def afs(chains, tables, w, active, n_active, now, epoch_s, out):
    """Fill `out` (tenants,) with AFS = sum over a tenant's live chains of work_remain / (deadline - now).

    active[:n_active]: chain numbers; ended ones count nothing, nor do those whose last request went to another worker:
    an engine knows nothing of them. work_remain: service seconds of the steps that a chain
    of its agent type is expected to have left, at least one. Slack is floored at `epoch_s` seconds: a late chain weighs
    work_remain / epoch_s instead of dividing by zero or less. What a chain's steps cost is read from worker w's tables.
    """
    out[:] = 0.0
    for i in range(n_active):
        row = chains[active[i]]
        if row[ch.ENDED] > 0 or row[ch.WORKER] != w:
            continue
        a = tables.types[w, int(row[ch.TYPE])]
        work = max(a[tb.STEPS] - row[ch.STEPS], 1.0) * a[tb.STEP_S]
        deadline = row[ch.DEADLINE]
        if deadline != deadline:  # NaN: none given
            deadline = row[ch.SESSION_S] + SLACK_FACTOR * a[tb.STEPS] * a[tb.STEP_S]
        out[int(row[ch.TENANT])] += work / max(deadline - now, epoch_s)
