"""Tail-optimised LRU: what a chain can lose without its next prefill missing the latency budget goes first.

Source: Zhang, Li, Moallemi, Peng, "Tail-Optimized Caching for LLM Inference", arXiv 2510.15152. With L tokens of
history and Q expected to be added, a next prefill of at most `xi` tokens needs L + Q - xi tokens cached. Blocks beyond
that are surplus: they count as infinitely old. When nobody has any, plain LRU.

Here L is the chain's context, Q the expected answer of its tool (the source takes one mean), and what is cached are its
evictable tokens on the worker. Where a score cannot do what the source does: eviction takes from one victim until there
is enough, so it can cut deeper than the surplus. Therefore the chain goes first of whose blocks the largest share is
surplus, above all one that can lose everything; equal ones by age.

`xi` is the budget in tokens: 200 ms at 6,000 prefill tokens/s is 1,200. `protect=1`, `hint=1` are ours (the source has
an end-aware variant that is told more): waiting chains go last, ended ones first; 0 is the published form.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.eviction.parts import apart, switch
from saga_rl.policies.features import EV
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

PROTECT, HINT, XI = range(3)
SURPLUS = 1e12
"""Beyond every idle time, s."""


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    outside = apart(x, params[PROTECT], params[HINT])
    if outside != 0.0:
        return outside
    surplus = x[EV.tokens] - max(x[EV.context] + x[EV.obs_tokens] - params[XI], 0.0)
    return SURPLUS * (1.0 + surplus / x[EV.tokens]) if surplus >= 1.0 else x[EV.idle_s]


@register("eviction", "tail-lru")
def tail_lru(xi: float = 1200.0, protect: float = 1.0, hint: float = 1.0) -> Policy:
    doc = {"xi": xi, "protect": protect, "hint": hint}
    flags = [switch("tail-lru", k, doc[k]) for k in ("protect", "hint")]
    return Policy("eviction", "tail-lru", _score, np.array([*flags, bounded("tail-lru", "xi", xi, 0.0, 1e8)]), doc=doc)
