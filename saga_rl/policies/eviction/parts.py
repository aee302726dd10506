"""What several eviction policies share: the queue and the hint of an end, memory, and what computing KV again costs."""

from __future__ import annotations

from saga_rl.errors import UserError
from saga_rl.njit import njit
from saga_rl.policies.base import MEMORY
from saga_rl.policies.features import EV

TIER = 1e15
"""Far beyond what a policy's own order gives; leaves the seconds of ended chains exact to an eighth."""


@njit(cache=True)
def apart(x, protect, hint):
    """Score of a chain to which the policy's own order does not apply; 0 where it does.

    protect > 0: what waits in the queue goes last, farthest back first. hint > 0: what the client said has ended, or
    what expired, goes first.
    """
    if protect > 0 and x[EV.waiting] > 0:
        return -TIER * (1.0 + 1.0 / (1.0 + x[EV.queue_log]))
    if hint > 0 and x[EV.ended] > 0:
        return TIER + x[EV.idle_s]
    return 0.0


NEARLY_ALL = 0.75


@njit(cache=True)
def dead(x):
    """Whether some of what the chain holds is of no use for certain: it has ended, by its client's word or since nobody
    heard of it, or it holds more than it can use, which it does when it compacts its context, from the moment on that
    its shorter prompt waits. Tail blocks go first, and those are the ones; a chain that waits and can use nearly all
    (its client dropped a few tokens of its context) would be cut into what its request is about to find."""
    most = NEARLY_ALL if x[EV.waiting] > 0 else 1.0
    return x[EV.ended] > 0 or x[EV.useful] < most * x[EV.tokens]


@njit(cache=True)
def recall(x, scratch):
    """Copy what is remembered of the chain (0..3) and of the worker (4..11) from the row, EV.mine on, to scratch."""
    for k in range(MEMORY):
        scratch[k] = x[EV.mine + k]


@njit(cache=True)
def prefill_s(tokens, linear, square):
    """Seconds to compute `tokens` tokens of a prefix: linear x k + square x k^2, k = tokens / 1000. The square is
    attention: every token looks at all before it."""
    k = tokens / 1000.0
    return linear * k + square * k * k


LINEAR, SQUARE = 0.167, 0.001
"""6,000 tokens/s at short contexts; at 167,000 tokens attention costs as much as all the rest."""


def switch(policy: str, key: str, value: float) -> float:
    """`value` if it is 0 or 1, else `UserError`."""
    if value not in (0, 1):
        raise UserError(f"policy {policy!r}", f"{key} is {value:g}, neither 0 nor 1", f"write {key}=0 or {key}=1")
    return float(value)
