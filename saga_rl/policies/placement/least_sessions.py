"""Least sessions: a chain stays where its last step ran; a new one goes where the fewest live chains are at home.

The load of this moment says little of a worker's next half hour: most sessions wait for a tool while a new one is
placed, and all of them come back with their KV. Equal counts: the smaller load decides. It is least connections, the
rule of HTTP balancers, with sessions for connections.
"""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import PL
from saga_rl.policies.registry import register

TIE = 1e-9
"""Of a load: what queues at one worker never outweighs one session there (1 / running slots)."""


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return 1.0 if x[PL.home] > 0 else -x[PL.sessions] - TIE * x[PL.load]


@register("placement", "least-sessions")
def least_sessions() -> Policy:
    return Policy("placement", "least-sessions", _score)
