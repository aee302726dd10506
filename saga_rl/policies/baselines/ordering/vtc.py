"""Virtual token counter (Sheng et al., arXiv 2401.00588): the waiting tenant that has had least service goes first.

First come, first served within a tenant, since its requests have one score. The counters (`policies.state.service`)
charge computed prompt and generated tokens as they arise and lift a tenant that comes back from idling, as in the
paper.
"""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import OD
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return x[OD.service]


@register("ordering", "vtc")
def vtc() -> Policy:
    return Policy("ordering", "vtc", _score, fresh=True, steady_one_tenant=True)
