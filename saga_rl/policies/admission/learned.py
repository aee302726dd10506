"""A learned scorer over the bounded admission features (`LEARNED_ADMISSION`): lets a request in if its score is above
0; `learned:CHECKPOINT_FOLDER`. An idle worker is never asked, so no weights can keep a request out for ever.
"""

from saga_rl.policies.base import Policy
from saga_rl.policies.registry import register


@register("admission", "learned")
def learned(folder: str) -> Policy:
    from saga_rl.policies.checkpoint import load_policy  # imports the registry, which imports this

    return load_policy(folder, "admission")
