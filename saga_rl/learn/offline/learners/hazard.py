"""A survival model of return times, and its Bayes index as a score.

A network gives each row the hazard to return in each of K spans of time (`losses.hazard_likelihood`); the index is the
expected closeness of the next use, sum over k of P(return in k) / (1 + t_k), t_k the median time in span k, never = 0:
the hits that keeping a block is expected to earn for each event it is kept (hit density: Beckmann, Chen and Cidon, LHD,
NSDI 2018). The actor is fitted to -log(index) by least squares beside it, so the block of the lowest index goes first.

Time is counted in events of the reference string. Datasets hold when a row is used next, not what time it is; taken for
now is the soonest next use of any candidate in this and all later decisions of the episode, which is never too early.
Rows that are never used again are taken for censored after the last span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from saga_rl.learn.offline.learners.base import Learner, ranked
from saga_rl.learn.offline.learners.critics import mlp
from saga_rl.learn.offline.learners.options import option
from saga_rl.learn.offline.learners.tables import Batch, Tables
from saga_rl.learn.offline.losses import hazard_likelihood


@dataclass(frozen=True)
class Options:
    spans: int = option(12, 2, 64, "spans of time", (4, 32), log=True)
    weight: float = option(1.0, 1e-3, 1e3, "of the fit of the actor beside the likelihood")


class Hazard(Learner):
    name, says, needs = "hazard", "discrete-time hazard of return times, Bayes index as score", "labels"
    criterion = "pair_accuracy"
    Options = Options
    edges: torch.Tensor
    middles: torch.Tensor

    def __init__(self, tables: Tables, hidden: Sequence[int], options: Any) -> None:
        super().__init__(tables, hidden, options)
        times = times_to_next_use(tables)[tables.masks]
        finite = times[torch.isfinite(times)].numpy()
        if not len(finite):
            finite = np.ones(1)
        edges = np.unique(np.quantile(finite, np.arange(1, options.spans) / options.spans))
        spans = np.searchsorted(edges, finite, side="left")
        middles = [np.median(finite[spans == k]) for k in range(len(edges) + 1) if (spans == k).any()]
        edges = edges[:len(middles) - 1]
        self.register_buffer("edges", torch.from_numpy(edges))
        self.register_buffer("middles", torch.tensor(middles, dtype=torch.float32))
        self.hazards = mlp([self.actor.features, *hidden, len(middles)])

    def prepare(self, tables: Tables) -> None:
        times = times_to_next_use(tables)
        spans = torch.bucketize(times, self.edges)
        tables.extra["span"] = torch.where(torch.isfinite(times), spans, len(self.middles))

    def select(self, tables: Tables) -> torch.Tensor:
        return ranked(tables)

    def index(self, observations: torch.Tensor) -> torch.Tensor:
        """(..., F) -> (...): the expected closeness, in (0, 1)."""
        logits = self.hazards(self.actor.normal(observations))
        alive = torch.cumsum(F.logsigmoid(-logits), dim=-1)
        before = torch.cat([torch.zeros_like(alive[..., :1]), alive[..., :-1]], dim=-1)
        return (torch.exp(before + F.logsigmoid(logits)) / (1.0 + self.middles)).sum(dim=-1)

    def loss(self, batch: Batch) -> torch.Tensor:
        logits = self.hazards(self.actor.normal(batch.observations))
        with torch.no_grad():
            goal = -torch.log(self.index(batch.observations) + 1e-9)
        fit = ((self.actor(batch.observations) - goal) ** 2)[batch.masks].mean()
        return hazard_likelihood(logits, batch.extra["span"], batch.masks) + self.options.weight * fit


def times_to_next_use(tables: Tables) -> torch.Tensor:
    """(N, R) events from the decision to each row's next use, infinity = never; see above for what counts as now."""
    soonest = tables.next_use.amin(dim=1).numpy()
    now = np.empty_like(soonest)
    last, bound = tables.last.numpy(), np.inf
    for i in range(len(now) - 1, -1, -1):
        bound = min(np.inf if last[i] else bound, soonest[i])
        now[i] = bound
    now = np.where(np.isfinite(now), now, 0.0)  # then no row of the decision is ever used again
    return tables.next_use - torch.from_numpy(now).unsqueeze(1)
