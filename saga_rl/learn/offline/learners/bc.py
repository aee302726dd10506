"""Behaviour cloning: cross-entropy to the logged actions over the candidates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saga_rl.learn.offline.learners.base import Learner, several
from saga_rl.learn.offline.learners.tables import Batch, Tables
from saga_rl.learn.offline.losses import behaviour_cloning


@dataclass(frozen=True)
class Options:
    """None; `--clone` says whose actions."""


class BehaviourCloning(Learner):
    name, says, needs = "bc", "behaviour cloning (masked cross-entropy on logged actions)", "actions"
    Options = Options

    def select(self, tables: Tables) -> torch.Tensor:
        return several(tables)

    def loss(self, batch: Batch) -> torch.Tensor:
        return behaviour_cloning(self.actor(batch.observations), batch.actions, batch.masks)
