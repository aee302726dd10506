"""Implicit Q-learning: values of the best logged actions, without asking for actions that nobody took.

    V:  expectile_tau(Q'(s, a) - V(s))         Q:  (r + discount V(s') - Q(s, a))^2
    actor:  -exp((Q'(s, a) - V(s)) / temperature) log pi(a | s)

Q' is the smaller of two slow copies. Kostrikov et al., "Offline Reinforcement Learning with Implicit Q-Learning",
2110.06169, equations 5-7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from saga_rl.learn.offline.learners.critics import StateValue, Twins, ValueLearner, follow, picked
from saga_rl.learn.offline.learners.options import option
from saga_rl.learn.offline.learners.tables import Batch, Tables
from saga_rl.learn.offline.losses import expectile, weighted_cloning


@dataclass(frozen=True)
class Options:
    discount: float = option(0.99, 0, 0.9999, "of later rewards", (0.8, 0.999))
    tau: float = option(0.8, 0.5, 0.99, "expectile; .5 = the behaviour's own value", (0.5, 0.95))
    temperature: float = option(0.3, 0.001, 100, "of the advantage, in standard deviations of returns", (0.03, 3), True)
    most: float = option(100.0, 1, 1e6, "largest weight of a decision")
    rate: float = option(0.01, 1e-5, 1, "by which slow copies follow, a step")
    context: int = option(1, 0, 1, "1: the critic also sees the mean of all rows")


class ImplicitQ(ValueLearner):
    name, says = "iql", "implicit Q-learning (expectile value, advantage-weighted policy)"
    Options = Options

    def __init__(self, tables: Tables, hidden: Sequence[int], options: Any) -> None:
        super().__init__(tables, hidden, options)
        features = self.actor.features
        self.value = StateValue(features, hidden)
        self.critic = Twins(features, hidden, bool(options.context))

    def loss(self, batch: Batch) -> torch.Tensor:
        o, normal = self.options, self.actor.normal(batch.observations)
        quality = picked(self.critic.target(normal, batch.masks), batch.actions)
        value = self.value(normal, batch.masks)
        with torch.no_grad():
            after = self.value(self.actor.normal(batch.next_observations), batch.next_masks)
        goal = self.backup(batch, after)
        critics = sum(((picked(q, batch.actions) - goal) ** 2).mean() for q in self.critic.both(normal, batch.masks))
        weights = torch.exp((quality - value.detach()) / o.temperature).clamp(max=o.most)
        actor = weighted_cloning(self.actor(batch.observations), batch.actions, batch.masks, weights)
        return expectile(quality - value, o.tau) + critics + actor

    def after_step(self) -> None:
        follow(self.critic.slow, self.critic.pair, self.options.rate)
