"""Datasets cut into stretches of decisions that are evaluated as a whole.

Weights of importance sampling are products over a stretch, so over thousands of decisions all weight ends up on one.
`windows` cuts each episode into pieces of `horizon` decisions; `first` keeps an episode's first `horizon` decisions.
Both answer another question than the whole episode does: what follows a stretch because of it is not counted, and a
window begins in a state to which the behaviour led, not the target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saga_rl.errors import UserError, unknown_name
from saga_rl.learn.data.dataset import Decisions
from saga_rl.learn.judge.ope.policies import Probabilities

MODES = ("windows", "first", "whole")


@dataclass(frozen=True)
class Paths:
    """n stretches of at most H decisions of a dataset."""

    index: NDArray[np.int64]
    """(n, H) number of the decision in the dataset; -1 = the stretch is over."""
    cluster: NDArray[np.int64]
    """(n,) its episode, from 0: stretches of one episode are resampled together."""

    @property
    def there(self) -> NDArray[np.bool_]:
        """(n, H)"""
        return self.index >= 0

    def take(self, values: NDArray, fill: float = 0.0) -> NDArray:
        """(n, H) of a column (N,) of the dataset; `fill` where a stretch is over."""
        return np.where(self.there, values[np.maximum(self.index, 0)], fill)


def cut(data: Decisions, mode: str = "windows", horizon: int = 32) -> Paths:
    """The stretches of `data`. windows: whole windows only, a shorter rest is left out unless it is all that an episode
    has. Raises `UserError` for an unknown mode or a horizon below 1."""
    if mode not in MODES:
        raise unknown_name("window mode", mode, MODES)
    if mode != "whole" and horizon < 1:
        raise UserError("horizon", f"is {horizon}", "give at least 1 decision")
    starts = np.concatenate([[0], np.flatnonzero(data.last)[:-1] + 1])
    lengths = np.flatnonzero(data.last) + 1 - starts
    width = int(lengths.max()) if mode == "whole" else horizon
    rows, cluster = [], []
    for e, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        pieces = max(length // width, 1) if mode == "windows" else 1
        for k in range(pieces):
            at = start + k * width + np.arange(width)
            rows.append(np.where(at < start + length, at, -1))
            cluster.append(e)
    return Paths(np.array(rows, np.int64), np.array(cluster, np.int64))


def ratios(data: Decisions, policy: Probabilities) -> NDArray[np.float64]:
    """(N,) chance of each logged action under `policy` over that under the behaviour.

    Raises `UserError` where importance sampling has nothing to weigh: propensities missing or out of (0, 1], a
    behaviour that was never random, or a policy that takes none of the logged actions.
    """
    b = data.propensity
    if len(b) == 0 or not (np.isfinite(b) & (b > 0) & (b <= 1)).all():
        raise UserError("dataset", "has decisions without a propensity in (0, 1]", "collect it with --epsilon above 0")
    choices = data.masks.sum(axis=1)
    if (b[choices > 1] == 1.0).all():
        raise UserError("dataset", "comes from behaviours that were never random", "collect it with --epsilon above 0")
    chosen = policy(data.observations, data.masks)[np.arange(len(data)), data.actions]
    if not (chosen > 0).any():
        raise UserError("dataset", "holds no action that the policy would take (no overlap)",
                        "collect with behaviours nearer to it, or a larger --epsilon")
    return chosen / b
