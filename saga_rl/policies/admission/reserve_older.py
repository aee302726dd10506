"""Reserve for older sessions: a request is let in only beside what older idle sessions keep cached.

Admits iff need + pinned + growth + older_idle <= pool (blocks), for every request, new or not. It predicts no length
but needs to know when a session has ended. `older_idle` leaves out chains whose client said so and those silent for
longer than the caller's expiry. likely = 1 asks nothing of the client: every idle block counts by the chance that its
chain has not ended (`features.alive`), from how often the tool that it called was a chain's last and how long it has
been quiet.

tier > 0: where there is memory below the pool, older sessions' blocks count by the chance that losing them means to
compute them again: tier x (1 - the share of lost blocks that it had lately, `features.tier`), at most `most`. What is
copied back costs about a hundredth, and room held for it is room that nobody uses. tier is above 1 because who computes
a context again takes room and time from all others meanwhile. Without such memory neither changes anything
(`benchmarks/no_harm.py` says what the preset `auto`, which has both, wins and loses).

patience_s > 0: no request waits longer than so many seconds for each 1,000 tokens of older sessions' KV that it would
displace. Under heavy pressure that is most of a pool, and nobody gets in before there is room. Where little is at stake
the request goes in soon: waiting must not cost more than what it saves.
"""

import numpy as np

from saga_rl.errors import UserError
from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import AD
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

PATIENCE_TOKENS = 1000.0


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    older = x[AD.older_likely] if params[0] > 0 else x[AD.older_idle]
    if params[1] > 0 and x[AD.tier_found] > 0:
        older *= min(params[1] * (1.0 - x[AD.tier_found]), params[2])
    busy = x[AD.need] + x[AD.pinned] + x[AD.growth]
    displaced = busy + older - x[AD.pool]
    if displaced <= 0.0:
        return 1.0
    if params[3] > 0 and busy <= x[AD.pool] and (
            x[AD.wait_s] > params[3] * displaced * x[AD.block_tokens] / PATIENCE_TOKENS):
        return 1.0
    return -1.0


@register("admission", "reserve-older")
def reserve_older(likely: float = 0, tier: float = 0, most: float = 0.8, patience_s: float = 0) -> Policy:
    if likely not in (0, 1):
        raise UserError("policy 'reserve-older'", f"likely is {likely:g}", "choose likely 0 (off) or 1 (on)")
    tier, most = bounded("reserve-older", "tier", tier, 0, 100), bounded("reserve-older", "most", most, 0, 1)
    patience = bounded("reserve-older", "patience_s", patience_s, 0, 1e9)
    return Policy("admission", "reserve-older", _score, np.array([float(likely), tier, most, patience]),
                  # the chance that a chain has not ended falls while time passes, and so do the others
                  steady=likely == 0 and tier == 0 and patience == 0,
                  informed=likely > 0,
                  doc={"likely": int(likely)} | ({"tier": tier, "most": most} if tier else {})
                  | ({"patience_s": patience} if patience else {}))
