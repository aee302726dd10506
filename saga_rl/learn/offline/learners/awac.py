"""Advantage-weighted actor-critic: the critic is of the actor itself, whose step stays near the logged actions.

    Q:  (r + discount sum_a' pi(a' | s') Q'(s', a') - Q(s, a))^2
    actor:  -exp((Q(s, a) - sum_b pi(b | s) Q(s, b)) / temperature) log pi(a | s)

Candidates are few, so both expectations are exact. Nair et al., "AWAC", 2006.09359, equations 7 and 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from saga_rl.learn.offline.learners.critics import Twins, ValueLearner, chances, follow, picked
from saga_rl.learn.offline.learners.options import option
from saga_rl.learn.offline.learners.tables import Batch, Tables
from saga_rl.learn.offline.losses import weighted_cloning


@dataclass(frozen=True)
class Options:
    discount: float = option(0.99, 0, 0.9999, "of later rewards", (0.8, 0.999))
    temperature: float = option(0.3, 0.001, 100, "of the advantage, in standard deviations of returns", (0.03, 3), True)
    most: float = option(100.0, 1, 1e6, "largest weight of a decision")
    rate: float = option(0.01, 1e-5, 1, "by which slow copies follow, a step")
    context: int = option(1, 0, 1, "1: the critic also sees the mean of all rows")


class AdvantageWeighted(ValueLearner):
    name, says = "awac", "advantage-weighted actor-critic"
    Options = Options

    def __init__(self, tables: Tables, hidden: Sequence[int], options: Any) -> None:
        super().__init__(tables, hidden, options)
        self.critic = Twins(self.actor.features, hidden, bool(options.context))

    def loss(self, batch: Batch) -> torch.Tensor:
        o, normal, actor = self.options, self.actor.normal(batch.observations), self.actor
        with torch.no_grad():
            later = actor.normal(batch.next_observations)
            pi = chances(actor, batch.next_observations, batch.next_masks)
            after = (pi * self.critic.target(later, batch.next_masks)).sum(dim=1)
            quality = self.critic.target(normal, batch.masks)
            value = (chances(actor, batch.observations, batch.masks) * quality).sum(dim=1)
            weights = torch.exp((picked(quality, batch.actions) - value) / o.temperature).clamp(max=o.most)
        goal = self.backup(batch, after)
        critics = sum(((picked(q, batch.actions) - goal) ** 2).mean() for q in self.critic.both(normal, batch.masks))
        return critics + weighted_cloning(actor(batch.observations), batch.actions, batch.masks, weights)

    def after_step(self) -> None:
        follow(self.critic.slow, self.critic.pair, self.options.rate)
