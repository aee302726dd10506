"""KVFlow: the chain that is farthest from running, in steps, goes first.

Source: Pan et al., "KVFlow: efficient prefix caching for accelerating LLM-based multi-agent workflows", arXiv
2507.07400. A graph of the workflow's agents gives each its steps-to-execution; the KV with the most goes first, what
the graph never runs again before all, and a shared prefix has the least of those that share it.

Here no client sends a graph: chains are agents whose next step is always theirs, and what stands between is a tool.
Steps-to-execution of an idle chain = 1 + expected seconds until its tool returns / service seconds of a step of its
agent type; of a waiting one 0, farthest back in the queue first; of one that ended (by its client's word, or expired)
infinite. `ends=1` weighs in that it may have ended unsaid: (1 - P(ended)) x steps + P(ended) x `far` steps; the source
knows ends from its graph and has no such term. A shared prefix goes after the tails that hang on it, whoever owns it,
but is not lifted to the least of them: a row knows its owner alone. Prefetching, the source's other half, is the
simulator's (`SimConfig.prefetch_tokens`).

Equal steps: released earliest. `protect=0`: a waiting chain is ranked as if its tool had just returned, and no more.
"""

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.eviction.parts import TIER, apart, switch
from saga_rl.policies.features import EV
from saga_rl.policies.parameters import bounded
from saga_rl.policies.registry import register

PROTECT, ENDS, FAR = range(3)


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    if x[EV.ended] > 0:
        return TIER + x[EV.idle_s]
    outside = apart(x, params[PROTECT], 0.0)
    if outside != 0.0:
        return outside
    steps = 1.0 + x[EV.residual_s] / max(x[EV.step_s], 1e-3)
    if params[ENDS] > 0:
        steps += x[EV.p_end] * (max(params[FAR], steps) - steps)
    return steps


@register("eviction", "kvflow")
def kvflow(ends: float = 1.0, far: float = 100.0, protect: float = 1.0) -> Policy:
    doc = {"ends": ends, "far": far, "protect": protect}
    params = np.array([switch("kvflow", "protect", protect), switch("kvflow", "ends", ends),
                       bounded("kvflow", "far", far, 0.0, 1e6)])
    return Policy("eviction", "kvflow", _score, params, scaled=False, doc=doc)
