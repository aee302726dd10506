"""What every learner is: modules, the loss of a batch, and which decisions it learns from.

One loop trains them all (`saga_rl.learn.offline.train`). A loss may be a sum of several whose gradients reach different
modules (`detach` between them); Adam treats each weight alone, so that equals an optimiser for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from saga_rl.errors import UserError
from saga_rl.learn.network import RowNet, normalisation
from saga_rl.learn.offline.learners.tables import Batch, Tables


class Learner(nn.Module):
    """Subclasses set the class fields, and define `loss` and `select`; the rest as they need."""

    name: ClassVar[str]
    says: ClassVar[str]
    """One line for `--help`, cards and docs."""
    needs: ClassVar[str]
    """`labels` (Belady's, eviction only), `actions` or `rewards`."""
    keeps: ClassVar[str] = "best"
    """Which epoch is kept: the `best` by held-out loss, or the `last` where that loss moves with its own targets, so
    that its lowest says nothing."""
    criterion: ClassVar[str] = ""
    """The held-out figure by which a sweep compares trials, the higher the better; empty: the held-out loss, lower."""
    Options: ClassVar[type]

    def __init__(self, tables: Tables, hidden: Sequence[int], options: Any) -> None:
        super().__init__()
        self.options = options
        features = tables.observations.shape[2]
        self.actor = RowNet(features, hidden, *normalisation(tables.rows()))
        """The policy: rows by its score, highest first. It is what is exported."""

    def prepare(self, tables: Tables) -> None:
        """Add columns to `tables.extra`; called for the tables to learn from first, then for those held out."""

    def select(self, tables: Tables) -> torch.Tensor:
        """(N,) bool: the decisions that can teach anything."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> torch.Tensor:
        """A scalar to minimise."""
        raise NotImplementedError

    def after_step(self) -> None:
        """After each gradient step, e.g. to move target networks."""

    def figures(self, tables: Tables) -> dict[str, float]:
        """More figures of held-out `tables`, after training."""
        return {}


def nothing_to_learn() -> UserError:
    return UserError("dataset", "holds no decision with a choice to learn from", "collect under more pressure")


def several(tables: Tables) -> torch.Tensor:
    """(N,) decisions with more than one candidate."""
    return tables.masks.sum(dim=1) > 1


def ranked(tables: Tables) -> torch.Tensor:
    """(N,) decisions whose candidates have at least two different next uses."""
    low = tables.next_use.masked_fill(~tables.masks, np.inf).amin(dim=1)
    return low < tables.next_use.masked_fill(~tables.masks, -np.inf).amax(dim=1)
