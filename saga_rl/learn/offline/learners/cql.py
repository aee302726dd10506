"""Conservative Q-learning over the candidates that were there.

    Q(s, a) = V(s) + A(a):   (r + discount Q'(s', argmax Q(s', .)) - Q(s, a))^2 + alpha (logsumexp Q(s, .) - Q(s, a))

A looks at single rows, so the greedy policy of Q is A itself and is exported exactly; V sees the pooled rows, and drops
out of the conservative term. Kumar et al., "Conservative Q-Learning", 2006.04779, equation 4; the two streams: Wang et
al., "Dueling Network Architectures", 1511.06581; the target: double Q-learning, van Hasselt et al., 1509.06461.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from saga_rl.learn.offline.learners.critics import StateValue, ValueLearner, follow, picked
from saga_rl.learn.offline.learners.options import option
from saga_rl.learn.offline.learners.tables import Batch, Tables
from saga_rl.learn.offline.losses import conservative


@dataclass(frozen=True)
class Options:
    discount: float = option(0.99, 0, 0.9999, "of later rewards", (0.8, 0.999))
    alpha: float = option(0.1, 0, 1000, "weight of the conservative term", (0.003, 3), log=True)
    rate: float = option(0.01, 1e-5, 1, "by which slow copies follow, a step")


class ConservativeQ(ValueLearner):
    name, says = "cql", "conservative Q-learning over the candidates"
    Options = Options

    def __init__(self, tables: Tables, hidden: Sequence[int], options: Any) -> None:
        super().__init__(tables, hidden, options)
        self.value = StateValue(self.actor.features, hidden)
        self.slow_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.slow_value = copy.deepcopy(self.value).requires_grad_(False)

    def loss(self, batch: Batch) -> torch.Tensor:
        scores = self.actor(batch.observations)
        values = scores + self.value(self.actor.normal(batch.observations), batch.masks).unsqueeze(1)
        with torch.no_grad():
            following = self.actor(batch.next_observations).masked_fill(~batch.next_masks, float("-inf")).argmax(dim=1)
            after = picked(self.slow_actor(batch.next_observations), following) + self.slow_value(
                self.actor.normal(batch.next_observations), batch.next_masks)
        error = picked(values, batch.actions) - self.backup(batch, after)
        return (error ** 2).mean() + self.options.alpha * conservative(scores, batch.actions, batch.masks)

    def after_step(self) -> None:
        follow(self.slow_actor, self.actor, self.options.rate)
        follow(self.slow_value, self.value, self.options.rate)
