"""Critics of the value learners. They may look at all rows at once; only the actor is exported, and it may not."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from saga_rl.learn.network import RowNet
from saga_rl.learn.offline.learners.base import Learner
from saga_rl.learn.offline.learners.returns import one_step_gain
from saga_rl.learn.offline.learners.tables import Batch, Tables, pooled


class StateValue(nn.Module):
    """V(s) of the pooled rows: (B, R, F) normalised rows, masks -> (B,)."""

    def __init__(self, features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp([features + 1, *hidden, 1])

    def forward(self, normal: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return self.net(pooled(normal, masks)).squeeze(-1)


class Critic(nn.Module):
    """Q(s, a) of row a and, with `context`, of the pooled rows: -> (B, R)."""

    def __init__(self, features: int, hidden: Sequence[int], context: bool) -> None:
        super().__init__()
        self.context = context
        self.net = mlp([features + (features + 1 if context else 0), *hidden, 1])

    def forward(self, normal: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        if self.context:
            state = pooled(normal, masks).unsqueeze(1).expand(-1, normal.shape[1], -1)
            normal = torch.cat([normal, state], dim=2)
        return self.net(normal).squeeze(-1)


class Twins(nn.Module):
    """Two critics and their slow copies; the smaller value counts (clipped double Q, Fujimoto et al., 1802.09477)."""

    def __init__(self, features: int, hidden: Sequence[int], context: bool) -> None:
        super().__init__()
        self.pair = nn.ModuleList(Critic(features, hidden, context) for _ in range(2))
        self.slow = copy.deepcopy(self.pair).requires_grad_(False)

    def both(self, normal: torch.Tensor, masks: torch.Tensor) -> list[torch.Tensor]:
        return [critic(normal, masks) for critic in self.pair]

    def target(self, normal: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """(B, R) the smaller of the slow copies, a constant."""
        with torch.no_grad():
            a, b = (critic(normal, masks) for critic in self.slow)
            return torch.minimum(a, b)


class ValueLearner(Learner):
    """A learner from rewards. They are scaled so that returns vary by about 1, which leaves the best policy as it is
    and gives temperatures a meaning.

    Decisions after which their episode was cut are left out: nobody knows what they led to. Options hold `discount`.
    """

    needs, keeps, criterion = "rewards", "last", "one_step_gain"
    scale: torch.Tensor

    def __init__(self, tables: Tables, hidden: Sequence[int], options: Any) -> None:
        super().__init__(tables, hidden, options)
        spread = float(tables.returns(options.discount).std(correction=0))
        self.register_buffer("scale", torch.tensor(1.0 / spread if spread > 1e-9 else 1.0))

    def select(self, tables: Tables) -> torch.Tensor:
        return ~tables.cut

    def backup(self, batch: Batch, after: torch.Tensor) -> torch.Tensor:
        """r + discount x the value `after` (B,) of the successor, none if the episode ended. A constant."""
        return (self.scale * batch.rewards + self.options.discount * batch.going * after).detach()

    def figures(self, tables: Tables) -> dict[str, float]:
        return one_step_gain(self.actor, tables, self.options.discount)


def picked(values: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """(B,) of values (B, R) at actions (B,)."""
    return values.gather(1, actions.unsqueeze(1)).squeeze(1)


def chances(actor: RowNet, observations: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """(B, R) softmax of the actor's scores over the valid rows."""
    return torch.softmax(actor(observations).masked_fill(~masks, float("-inf")), dim=1)


def follow(slow: nn.Module, fast: nn.Module, rate: float) -> None:
    """slow <- (1 - rate) slow + rate fast, weight by weight."""
    with torch.no_grad():
        for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
            a.lerp_(b, rate)


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
