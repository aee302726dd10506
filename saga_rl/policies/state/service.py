"""How much service each tenant has had from a worker, as a virtual token counter (VTC, arXiv 2401.00588; DLPM,
arXiv 2501.14312), and the bound that no order may break.

A tenant is charged `INPUT` for each prompt token that was computed for its request when that first got blocks (what
was cached costs nothing, as in DLPM) and `OUTPUT` for each token generated. A tenant that begins to wait is lifted to
the smallest counter of those that wait already (or, if none does, of the tenant that was served last), so idling earns
no credit.

**The bound.** With a gap G, a waiting request may be scheduled only if its tenant's counter is at most G above the
smallest of a tenant that waits (`allowed`); the tenant with the smallest one always may. The smallest counter of
waiting tenants never falls, and after its last dispatch a tenant grows by no more than what was dispatched, so between
tenants that wait

    max - min <= G + INPUT * longest prompt + OUTPUT * requests that run at once * longest answer,

whatever the policies of order, eviction and admission do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saga_rl.njit import njit

INPUT, OUTPUT = 1.0, 2.0
"""Tokens of service for a prompt token computed and for a token generated (the weights of VTC)."""
# columns by tenant; the row after the last tenant's: LAST = the tenant served last, -1 = none yet
COUNTER, WAITING = range(2)
LAST = COUNTER


def make_service(workers: int, tenants: int) -> NDArray[np.float64]:
    """(workers, tenants + 1, 2) zero counters."""
    s = np.zeros((workers, max(tenants, 1) + 1, 2))
    s[:, -1, LAST] = -1
    return s


@njit(cache=True)
def least(s, w):
    """The smallest counter of a tenant that waits; infinity if none does."""
    low = np.inf
    for t in range(s.shape[1] - 1):
        if s[w, t, WAITING] > 0:
            low = min(low, s[w, t, COUNTER])
    return low


@njit(cache=True)
def spread(s, w):
    """Largest minus smallest counter of the tenants that wait; 0 if fewer than two do."""
    low, high = np.inf, -np.inf
    for t in range(s.shape[1] - 1):
        if s[w, t, WAITING] > 0:
            low, high = min(low, s[w, t, COUNTER]), max(high, s[w, t, COUNTER])
    return max(high - low, 0.0)


@njit(cache=True)
def queued(s, w, t):
    """A request of tenant t begins to wait."""
    if s[w, t, WAITING] == 0:
        low = least(s, w)
        if low == np.inf:
            last = int(s[w, -1, LAST])
            low = s[w, last, COUNTER] if last >= 0 else 0.0
        s[w, t, COUNTER] = max(s[w, t, COUNTER], low)
    s[w, t, WAITING] += 1.0


@njit(cache=True)
def left(s, w, t, served):
    """A request of tenant t waits no longer: it was scheduled (`served`) or went away."""
    s[w, t, WAITING] -= 1.0
    if served:
        s[w, -1, LAST] = t


@njit(cache=True)
def charge(s, w, t, computed, generated):
    """Tenant t had `computed` prompt tokens computed and `generated` tokens generated."""
    s[w, t, COUNTER] += INPUT * computed + OUTPUT * generated


@njit(cache=True)
def allowed(s, w, t, gap):
    """Whether a waiting request of tenant t may be scheduled under the gap, tokens of service."""
    return s[w, t, COUNTER] <= least(s, w) + gap


def bound(gap: float, longest_prompt: float, most_running: float, longest_output: float) -> float:
    """Tokens of service that tenants which wait can lie apart (module docstring)."""
    return gap + INPUT * longest_prompt + OUTPUT * most_running * longest_output
