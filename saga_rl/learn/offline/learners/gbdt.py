"""A gradient-boosted ranker, as an honest rival: LightGBM's lambdarank on Belady labels.

Trees are no network, so the ranker itself serves nowhere; it is there to be compared with (`predict`, and its figures
`rival_*` on held-out decisions). What is exported is a student: the actor, fitted to the trees' scores by listwise
cross-entropy. Ke et al., "LightGBM", NIPS 2017; LambdaMART: Burges, MSR-TR-2010-82; distillation: Hinton et al.,
1503.02531.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saga_rl.errors import UserError
from saga_rl.learn.offline.learners.base import Learner, nothing_to_learn, ranked
from saga_rl.learn.offline.learners.options import option
from saga_rl.learn.offline.learners.tables import Batch, Tables
from saga_rl.learn.offline.losses import pair_accuracy, places, soft_cross_entropy, top_agreement


@dataclass(frozen=True)
class Options:
    trees: int = option(200, 1, 10_000, "trees", (50, 500), log=True)
    leaves: int = option(31, 2, 1024, "leaves of a tree", (8, 128), log=True)
    shrinkage: float = option(0.1, 1e-3, 1, "learning rate of the trees", (0.03, 0.3), log=True)
    least: int = option(50, 1, 1_000_000, "rows of a leaf, at least", (10, 500), log=True)
    temperature: float = option(1.0, 0.01, 100, "of the trees' scores, for the student", (0.3, 3), log=True)


class Gbdt(Learner):
    name, says, needs = "gbdt", "boosted trees (LightGBM lambdarank) as a rival; a network fitted to them", "labels"
    criterion = "pair_accuracy"
    Options = Options

    def __init__(self, tables: Tables, hidden: Sequence[int], options: Any) -> None:
        super().__init__(tables, hidden, options)
        self.text = ""
        self._booster: Any = None

    def settled(self) -> dict[str, Any]:
        return {"trees": self.text}

    def restore(self, settled: dict[str, Any]) -> None:
        self.text = settled["trees"]

    def prepare(self, tables: Tables) -> None:
        if not ranked(tables).any():
            raise nothing_to_learn()
        if not self.text:
            self.text = grow(tables, ranked(tables), self.options)
        tables.extra["teacher"] = torch.from_numpy(self.predict(tables.observations.numpy())).float()

    def predict(self, rows: NDArray) -> NDArray[np.float64]:
        """The trees' score of rows (..., F) -> (...); highest first, as any eviction score."""
        if self._booster is None:
            self._booster = lightgbm().Booster(model_str=self.text)
        flat = self._booster.predict(rows.reshape(-1, rows.shape[-1]), num_threads=1)
        return np.asarray(flat, np.float64).reshape(rows.shape[:-1])

    def select(self, tables: Tables) -> torch.Tensor:
        return ranked(tables)

    def loss(self, batch: Batch) -> torch.Tensor:
        wanted = (batch.extra["teacher"] / self.options.temperature).masked_fill(~batch.masks, float("-inf"))
        return soft_cross_entropy(self.actor(batch.observations), torch.softmax(wanted, dim=1), batch.masks)

    def figures(self, tables: Tables) -> dict[str, float]:
        sums = {"rival_pair_accuracy": 0.0, "rival_belady_agreement": 0.0}
        use = torch.nonzero(ranked(tables)).flatten()
        for part in use.split(1024):
            scores, labels, masks = tables.extra["teacher"][part], tables.next_use[part], tables.masks[part]
            sums["rival_pair_accuracy"] += float(pair_accuracy(scores, labels, masks)) * len(part) / len(use)
            sums["rival_belady_agreement"] += float(top_agreement(scores, labels, masks)) * len(part) / len(use)
        return sums


def grow(tables: Tables, use: torch.Tensor, options: Options) -> str:
    """The trees, as LightGBM writes them: one thread, no sampling, so the same rows give the same trees."""
    masks = tables.masks[use]
    labels = places(tables.next_use[use], masks)[masks].numpy().astype(np.int32)
    data = lightgbm().Dataset(tables.observations[use][masks].numpy().astype(np.float64), labels,
                              group=masks.sum(dim=1).numpy(), free_raw_data=False)
    settings = {"objective": "lambdarank", "num_leaves": options.leaves, "learning_rate": options.shrinkage,
                "min_data_in_leaf": options.least, "label_gain": list(range(masks.shape[1] + 1)),
                "lambdarank_truncation_level": masks.shape[1], "deterministic": True, "force_row_wise": True,
                "num_threads": 1, "seed": 0, "verbosity": -1}
    return lightgbm().train(settings, data, options.trees).model_to_string()


def lightgbm() -> Any:
    try:
        import lightgbm as module
    except ImportError:
        raise UserError("lightgbm", "is not installed", "install the extra saga-rl[train]") from None
    return module
