"""Pairwise ranking on Belady labels: `losses.pairwise_ranking` (RankNet)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saga_rl.learn.offline.learners.base import Learner, ranked
from saga_rl.learn.offline.learners.tables import Batch, Tables
from saga_rl.learn.offline.losses import pairwise_ranking


@dataclass(frozen=True)
class Options:
    """None."""


class Rank(Learner):
    name, says, needs = "rank", "pairwise logistic ranking on Belady labels", "labels"
    criterion = "pair_accuracy"
    Options = Options

    def select(self, tables: Tables) -> torch.Tensor:
        return ranked(tables)

    def loss(self, batch: Batch) -> torch.Tensor:
        return pairwise_ranking(self.actor(batch.observations), batch.next_use, batch.masks)
