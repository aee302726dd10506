"""No admission control: whatever the engine can schedule, it schedules. vLLM's way."""

from saga_rl.njit import njit
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.registry import register


@njit(SCORE, cache=True)
def _score(x, params, scratch):
    return 1.0


@register("admission", "none")
def none() -> Policy:
    return Policy("admission", "none", _score, steady=True, informed=False)
