"""A learned scorer over the bounded eviction features (`LEARNED_EVICTION`); `learned:CHECKPOINT_FOLDER`."""

from saga_rl.policies.base import Policy
from saga_rl.policies.registry import register


@register("eviction", "learned")
def learned(folder: str) -> Policy:
    from saga_rl.policies.checkpoint import load_policy  # imports the registry, which imports this

    return load_policy(folder, "eviction")
