"""Programs paused and resumed as wholes (ThunderAgent, arXiv 2602.13692).

There a program off the GPU is paused when the pool overflows, smallest first, its KV left to be evicted, and paused and
new programs start again when their whole context fits beside the active ones. Here a chain that lost blocks to eviction
is paused by that, so whom the eviction policy takes is who pauses. Its next request, like the first one of a new chain,
is let in iff live + need <= (1 - margin) * pool (blocks; live: of chains that have not ended, running or idle); a chain
whose KV is all there goes on. ThunderAgent keeps the paused apart; here one at the head of the queue holds up those
behind it, so use an order that puts cached chains first (`dlpm`).
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import AD
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[AD.new] == 0 and x[AD.lost] <= 0:
        return 1.0
    return 1.0 if x[AD.live] + x[AD.need] <= (1.0 - params[0]) * x[AD.pool] else -1.0


@register("admission", "pause-resume")
def pause_resume(margin: float = 0.05) -> Policy:
    margin = bounded("pause-resume", "margin", margin, 0.0, 0.9)
    return Policy("admission", "pause-resume", _score, np.array([margin]), steady=True, informed=False,
                  doc={"margin": margin})
