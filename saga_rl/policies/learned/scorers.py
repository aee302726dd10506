"""`learned:CHECKPOINT_FOLDER` for each decision: the network of a checkpoint as a policy.

- eviction: `LEARNED_EVICTION`, behind what is known for certain (`policies.learned.settled`);
- placement: `PLACEMENT`;
- ordering: `LEARNED_ORDERING`, lowest first. Its keys move with time, so a queue is sorted anew every epoch, as for
  AFS. It knows no tenant: who may be served is the fairness mask's affair, and the network only ranks what that leaves;
- admission: `LEARNED_ADMISSION`, lets a request in if its score is above 0. An idle worker is never asked, so no
  weights can keep a request out for ever.
"""

from saga_rl.policies.base import Policy
from saga_rl.policies.learned.checkpoint import load_policy
from saga_rl.policies.registry import register


@register("eviction", "learned")
def eviction(folder: str) -> Policy:
    return load_policy(folder, "eviction")


@register("placement", "learned")
def placement(folder: str) -> Policy:
    return load_policy(folder, "placement")


@register("ordering", "learned")
def ordering(folder: str) -> Policy:
    return load_policy(folder, "ordering")


@register("admission", "learned")
def admission(folder: str) -> Policy:
    return load_policy(folder, "admission")
