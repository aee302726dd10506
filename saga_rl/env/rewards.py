"""Rewards of the closed-loop environments, and the costs that they are made of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from saga_rl.errors import UserError, unknown_name
from saga_rl.sim.stepping.closed_vector import MIN_TCT_S, P95_FROM
from saga_rl.sim.stepping.closed_vector import TOKENS_UNIT as RECOMPUTED_TOKENS

KINDS = ("tct", "recomputed")
# From `sim.stepping.closed_vector`, which settles in compiled code. MIN_TCT_S: shorter completion times count as this,
# so that the logarithm stays finite. RECOMPUTED_TOKENS: that cost one unit of reward. P95_FROM: sessions that must have
# ended before their 95th percentile is an estimate.


class Rewards:
    """One episode's accounts.

    kind "tct": the sum of -log(TCT, s) over the sessions that ended; p95_weight > 0 also takes off
    p95_weight * log(TCT / p95) for each of them that took longer than p95, the 95th percentile of the sessions that had
    ended before in this episode (nothing before there are `P95_FROM`). "recomputed": -(tokens computed again) / 1000.
    fairness_weight takes off so much a token by which the episode's largest service gap grew: the multiplier of a
    Lagrangian, which its owner may move between episodes. Raises `UserError`.
    """

    def __init__(self, kind: str = "tct", p95_weight: float = 0.0, fairness_weight: float = 0.0) -> None:
        if kind not in KINDS:
            raise unknown_name("reward", kind, KINDS)
        for name, value in (("p95_weight", p95_weight), ("fairness_weight", fairness_weight)):
            if not 0 <= value < np.inf:
                raise UserError(name, f"is {value:g}", "give a number of 0 or more")
        self.kind, self.p95_weight, self.fairness_weight = kind, p95_weight, fairness_weight
        self.reset()

    def reset(self) -> None:
        self._tokens, self._gap = 0, 0.0
        self._ended: list[float] = []

    def settle(self, tcts: Iterable[float], recomputed_tokens: int, gap_tokens: float,
               ) -> tuple[float, dict[str, float]]:
        """(reward, components) of what happened since the last call. tcts: seconds, of the sessions that ended;
        recomputed_tokens, gap_tokens: of the episode so far. Components are costs, named as in a dataset."""
        logs = [float(np.log(max(tct, MIN_TCT_S))) for tct in tcts]
        costs = {"log_tct": sum(logs, 0.0), "recomputed_tokens": float(recomputed_tokens - self._tokens),
                 "fairness_gap_tokens": gap_tokens - self._gap}
        reward = 0.0 - (costs["log_tct"] if self.kind == "tct" else costs["recomputed_tokens"] / RECOMPUTED_TOKENS)
        if self.p95_weight and logs and len(self._ended) >= P95_FROM and self.kind == "tct":
            p95 = float(np.percentile(self._ended, 95))
            reward -= self.p95_weight * sum(max(x - p95, 0.0) for x in logs)
        reward -= self.fairness_weight * costs["fairness_gap_tokens"]
        self._ended += logs
        self._tokens, self._gap = recomputed_tokens, gap_tokens
        return reward, costs
