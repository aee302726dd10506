"""Filtered behaviour cloning: clone what went best.

`by=decision` keeps the share of the decisions whose discounted return is farthest above what state and setting explain;
`by=episode` the share of the episodes with the best mean reward, within each setting (trace, capacity, load), since
returns of different settings cannot be compared. %BC: Chen et al., "Decision Transformer", 2106.01345, section 5.1; by
decision: BAIL, Chen et al., 1910.12179, with a linear value in the stead of an upper envelope.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from saga_rl.learn.offline.learners.base import Learner, several
from saga_rl.learn.offline.learners.options import choice, option
from saga_rl.learn.offline.learners.returns import beyond_state, one_step_gain
from saga_rl.learn.offline.learners.tables import Batch, Tables
from saga_rl.learn.offline.losses import behaviour_cloning


@dataclass(frozen=True)
class Options:
    by: str = choice("decision", ("decision", "episode"), "what is kept or left")
    share: float = option(0.3, 0.01, 1, "share that is cloned", (0.05, 0.8))
    discount: float = option(0.99, 0, 0.9999, "of later rewards", (0.8, 0.999))


class FilteredCloning(Learner):
    name, says, needs = "fbc", "behaviour cloning of the decisions or episodes with the best returns", "rewards"
    criterion = "one_step_gain"
    Options = Options

    def select(self, tables: Tables) -> torch.Tensor:
        if self.options.by == "decision":
            value = beyond_state(self.actor, tables, self.options.discount)
            return several(tables) & torch.from_numpy(value >= np.quantile(value, 1.0 - self.options.share))
        episodes, first, inverse = np.unique(tables.episode, return_index=True, return_inverse=True)
        mean = np.bincount(inverse, tables.rewards.numpy()) / np.bincount(inverse)
        settings, kept = tables.settings[first], np.zeros(len(episodes), bool)
        for setting in np.unique(settings):
            mine = np.flatnonzero(settings == setting)
            best = mine[np.argsort(-mean[mine], kind="stable")]
            kept[best[:max(1, round(self.options.share * len(mine)))]] = True
        return several(tables) & torch.from_numpy(kept[inverse])

    def loss(self, batch: Batch) -> torch.Tensor:
        return behaviour_cloning(self.actor(batch.observations), batch.actions, batch.masks)

    def figures(self, tables: Tables) -> dict[str, float]:
        return one_step_gain(self.actor, tables, self.options.discount)
