"""Decisions as tensors, with successors, and what several learners compute of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from saga_rl.learn.data.dataset import Decisions


@dataclass(frozen=True)
class Batch:
    """B decisions with what followed them. R rows, F features."""

    observations: torch.Tensor
    """(B, R, F)"""
    masks: torch.Tensor
    next_use: torch.Tensor
    actions: torch.Tensor
    """(B,) int"""
    rewards: torch.Tensor
    """(B,) float, as logged"""
    next_observations: torch.Tensor
    next_masks: torch.Tensor
    going: torch.Tensor
    """(B,) 1.0 where the episode went on, 0.0 where it ended: there is no value to add."""
    extra: dict[str, torch.Tensor]


@dataclass
class Tables:
    """All decisions of whole episodes; row i + 1 follows row i unless `last[i]`."""

    observations: torch.Tensor
    masks: torch.Tensor
    next_use: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    propensity: torch.Tensor
    last: torch.Tensor
    terminated: torch.Tensor
    episode: NDArray[np.int64]
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    """(N, ...) columns that a learner adds; they come with every batch."""
    settings: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(N,) number of the setting (trace, capacity, load) that the episode was played in."""

    @classmethod
    def of(cls, data: Decisions) -> Tables:
        settings = data.meta.get("settings")
        numbers = np.zeros(len(data), np.int64) if settings is None else np.asarray(settings)[data.episode]
        return cls(torch.from_numpy(data.observations), torch.from_numpy(data.masks), torch.from_numpy(data.next_use),
                   torch.from_numpy(data.actions), torch.from_numpy(data.rewards).float(),
                   torch.from_numpy(data.propensity).float(), torch.from_numpy(data.last),
                   torch.from_numpy(data.terminated), data.episode, {}, numbers)

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def cut(self) -> torch.Tensor:
        """(N,) the last decision of an episode that was cut: nobody knows what followed."""
        return self.last & ~self.terminated

    def part(self, index: torch.Tensor) -> Batch:
        """The decisions of `index` (B,). The successor of a last decision is the decision itself, with `going` = 0."""
        last = self.last[index]
        after = torch.where(last, index, index + 1)
        return Batch(self.observations[index], self.masks[index], self.next_use[index], self.actions[index],
                     self.rewards[index], self.observations[after], self.masks[after], (~last).float(),
                     {name: values[index] for name, values in self.extra.items()})

    def returns(self, discount: float) -> torch.Tensor:
        """(N,) discounted sum of the rewards from each decision to the end of its episode, or to where it was cut."""
        out = torch.zeros(len(self), dtype=torch.float64)
        rewards, last, total = self.rewards.tolist(), self.last.tolist(), 0.0
        for i in range(len(self) - 1, -1, -1):
            total = rewards[i] + (0.0 if last[i] else discount * total)
            out[i] = total
        return out.float()

    def rows(self) -> NDArray[np.float32]:
        """(n, F) the valid rows, but for those of zeros only, which stand for holding everything."""
        rows = self.observations[self.masks].numpy()
        return rows[(rows != 0).any(axis=1)]


def pooled(normal: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """(B, F + 1) of normalised rows (B, R, F): their mean over valid rows, and log1p of how many there are."""
    count = masks.sum(dim=1, keepdim=True).to(normal.dtype)
    mean = (normal * masks.unsqueeze(-1)).sum(dim=1) / count.clamp(min=1)
    return torch.cat([mean, torch.log1p(count)], dim=1)
