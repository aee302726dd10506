"""Rewards of the environments; what they are made of is summed in compiled code (`sim.stepping`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saga_rl.errors import UserError, unknown_name
from saga_rl.sim.stepping.closed_slots import BY_TCT, BY_TOKENS, DENSE

KINDS = {"tct": BY_TCT, "recomputed": BY_TOKENS, "dense": DENSE}
COSTS = ("log_tct", "recomputed_tokens", "fairness_gap_tokens", "session_s")
"""Keys of `info["components"]`, in the order of `sim.stepping.book`: costs since the decision before. session_s: of
seconds that sessions lived, the sum over them; the first one counts what came before the first decision, so that the
sum over an episode is the sum of all completion times. In open loop only tokens are counted."""


@dataclass
class Rewards:
    """What a reward is.

    kind "tct": the sum of -log(completion time, s) over the sessions that ended since the decision before; p95_weight
    > 0 also takes off p95_weight * log(time / p95) for each that took longer than p95, the 95th percentile of the
    sessions that had ended before in this episode (nothing before there are 20). "recomputed": -(tokens computed
    again) / 1000. "dense": -session_s, so that its sum is minus the sum of completion times. fairness_weight takes off
    so much a token by which the episode's largest service gap grew: the multiplier of a Lagrangian. It and p95_weight
    may be moved at any time and count from the next step on. Raises `UserError`.
    """

    kind: str = "tct"
    p95_weight: float = 0.0
    fairness_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("reward", self.kind, KINDS)
        for name in ("p95_weight", "fairness_weight"):
            if not 0 <= getattr(self, name) < np.inf:
                raise UserError(name, f"is {getattr(self, name):g}", "give a number of 0 or more")
