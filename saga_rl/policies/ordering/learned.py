"""A learned scorer over the bounded ordering features (`LEARNED_ORDERING`), lowest first; `learned:CHECKPOINT_FOLDER`.

Its keys move with time, so a queue is sorted anew every epoch, as for AFS. It knows no tenant: who may be served is the
fairness mask's affair, and the network only ranks what that leaves.
"""

from saga_rl.policies.base import Policy
from saga_rl.policies.registry import register


@register("ordering", "learned")
def learned(folder: str) -> Policy:
    from saga_rl.policies.checkpoint import load_policy  # imports the registry, which imports this

    return load_policy(folder, "ordering")
