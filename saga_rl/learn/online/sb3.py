"""MaskablePPO over rows: the actor scores rows with `RowNet`s, the critic is a mean over rows, so both ignore the rows'
order.

The actor's logits are the scores themselves, one a row; the action mask takes padding out of the softmax. Where the
last row means letting nobody in, its logit is 0: in service a request enters if its score is over 0. After training
the `RowNet`s are exported as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from saga_rl.learn.network import HIDDEN, RowNet
from saga_rl.policies.learned.mlp import CLIP
from saga_rl.sim.stepping.closed_rows import KINDS


class HeldNet(nn.Module):
    """Logits of `saga_rl/Admission-v0`: the request's score, and 0 for holding it."""

    def __init__(self, admission: RowNet) -> None:
        super().__init__()
        self.admission, self.features = admission, admission.features
        self.mean, self.std = admission.mean, admission.std

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.admission(x)
        return torch.cat([scores[..., :-1], torch.zeros_like(scores[..., -1:])], dim=-1)


class JointNet(nn.Module):
    """Logits of `saga_rl/Joint-v0` from the two networks that are served: who is next, and whether it enters.

    logit(request) = log softmax(order)(request) + admission(request); logit(nobody) = 0. Where the order is sure of its
    first request, that one enters with chance sigmoid(admission), and the more likely choice is what service does:
    first by order, in if its admission score is over 0.
    """

    def __init__(self, ordering: RowNet, admission: RowNet) -> None:
        super().__init__()
        self.ordering, self.admission = ordering, admission
        self.features = ordering.features + admission.features
        self.mean = torch.cat([ordering.mean, admission.mean])
        self.std = torch.cat([ordering.std, admission.std])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x[..., :-1, :]
        order = self.ordering(rows[..., :self.ordering.features])
        padding = (rows == 0).all(dim=-1)
        first = torch.log_softmax(order.masked_fill(padding, -1e9), dim=-1)
        logits = first + self.admission(rows[..., self.ordering.features:])
        return torch.cat([logits, torch.zeros_like(logits[..., :1])], dim=-1)


class SchedulerNet(nn.Module):
    """Logits of `saga_rl/Scheduler-v0` from the four networks that are served: of a placement or an eviction the scores
    themselves, of a queue those of a `JointNet`. The first columns say which decision it is; its own columns follow."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, placement: RowNet, ordering: RowNet, admission: RowNet, eviction: RowNet) -> None:
        super().__init__()
        self.placement, self.eviction = placement, eviction
        self.queue = JointNet(ordering, admission)
        self.features = KINDS + max(placement.features, self.queue.features, eviction.features)
        self.register_buffer("mean", torch.zeros(self.features))
        self.register_buffer("std", torch.ones(self.features))

    @property
    def ordering(self) -> RowNet:
        return self.queue.ordering

    @property
    def admission(self) -> RowNet:
        return self.queue.admission

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind, rows = x[..., :KINDS].amax(dim=-2), x[..., KINDS:]
        each = (self.placement(rows[..., :self.placement.features]), self.queue(rows[..., :self.queue.features]),
                self.eviction(rows[..., :self.eviction.features]))
        return sum(kind[..., k:k + 1] * logits for k, logits in enumerate(each))


class RowActorCritic(nn.Module):
    """Stands where Stable-Baselines3 expects an MLP extractor: flat rows -> (logits (B, R), critic latent (B, H)).

    Padding rows are all zeros in the observation, which no candidate's row is; the critic averages over the others.
    """

    def __init__(self, rows: int, actor: Any, latent: int) -> None:
        super().__init__()
        self.rows, self.actor = rows, actor
        self.latent_dim_pi, self.latent_dim_vf = rows, latent
        self.critic_rows = nn.Sequential(nn.Linear(actor.features, latent), nn.Tanh(),
                                         nn.Linear(latent, latent), nn.Tanh())

    def forward(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.forward_actor(flat), self.forward_critic(flat)

    def forward_actor(self, flat: torch.Tensor) -> torch.Tensor:
        return self.actor(self._split(flat))

    def forward_critic(self, flat: torch.Tensor) -> torch.Tensor:
        x = self._split(flat)
        real = (x != 0).any(dim=2, keepdim=True).float()
        h = self.critic_rows(((x - self.actor.mean) / self.actor.std).clamp(-CLIP, CLIP))
        return (h * real).sum(dim=1) / real.sum(dim=1).clamp(min=1.0)

    def _split(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.reshape(flat.shape[0], self.rows, self.actor.features)


class RowPolicy(MaskableActorCriticPolicy):
    """`MaskablePPO(RowPolicy, env, policy_kwargs={"row_net": net})`; net: a `RowNet`, `HeldNet`, `JointNet` or
    `SchedulerNet`, None = a fresh `RowNet`."""

    mlp_extractor: Any

    def __init__(self, observation_space: spaces.Box, action_space: spaces.Discrete, lr_schedule: Schedule,
                 row_net: Any = None, latent: int = 32, **kwargs: Any) -> None:
        self._start = (row_net, latent)  # in a tuple: a module may not be assigned before nn.Module is set up
        kwargs.update(features_extractor_class=FlattenExtractor, ortho_init=False)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build_mlp_extractor(self) -> None:
        rows, features = self.observation_space.shape  # type: ignore[misc]
        row_net, latent = self._start
        self.mlp_extractor = RowActorCritic(rows, row_net or RowNet(features, HIDDEN), latent).to(self.device)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()  # the actor's scores are the logits
        options = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(self.parameters(), **options)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "row_net": self._start[0], "latent": self._start[1]}

    @property
    def actor(self) -> Any:
        """What was trained."""
        return self.mlp_extractor.actor
