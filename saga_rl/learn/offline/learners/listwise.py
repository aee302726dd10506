"""Listwise ranking on Belady labels: ListNet's softmax cross-entropy, or LambdaRank's weights on pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saga_rl.learn.offline.learners.base import Learner, ranked
from saga_rl.learn.offline.learners.options import choice, option
from saga_rl.learn.offline.learners.tables import Batch, Tables
from saga_rl.learn.offline.losses import lambda_ranking, listwise_softmax


@dataclass(frozen=True)
class Options:
    kind: str = choice("listnet", ("listnet", "lambda"), "softmax cross-entropy, or pairs weighed by NDCG")
    temperature: float = option(1.0, 0.05, 100, "listnet: of the target, in places", (0.2, 10), log=True)


class Listwise(Learner):
    name, says, needs = "listwise", "listwise ranking on Belady labels (ListNet or LambdaRank)", "labels"
    criterion = "pair_accuracy"
    Options = Options

    def select(self, tables: Tables) -> torch.Tensor:
        return ranked(tables)

    def loss(self, batch: Batch) -> torch.Tensor:
        scores = self.actor(batch.observations)
        if self.options.kind == "lambda":
            return lambda_ranking(scores, batch.next_use, batch.masks)
        return listwise_softmax(scores, batch.next_use, batch.masks, self.options.temperature)
