"""Offline training on decision tables: the one loop in which every learner of `saga_rl.learn.offline.learners` is
trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saga_rl.errors import UserError
from saga_rl.learn.data.dataset import Decisions, labels_of
from saga_rl.learn.network import HIDDEN, RowNet, beside_rule
from saga_rl.learn.offline.learners import learner as learner_named
from saga_rl.learn.offline.learners.base import Learner, nothing_to_learn
from saga_rl.learn.offline.learners.tables import Batch, Tables
from saga_rl.learn.offline.losses import pair_accuracy, top_agreement
from saga_rl.learn.offline.resume import (
    check_same,
    fingerprint,
    flat,
    optimiser_tensors,
    read_state,
    restore_optimiser,
    under,
    write_state,
)
from saga_rl.policies.features import E_ENDED, E_WAITING, LEARNED_EVICTION

RULE = "until_log"
"""What evictions are ordered by where the network is trusted in part only: the index of `bayes-tables`."""
LAST_LR = 0.05
"""Share of the learning rate that is left in the last epoch; a half cosine leads there."""


@dataclass(frozen=True)
class TrainConfig:
    """`algo`: a name of `saga_rl.learn.offline.learners.LEARNERS`."""

    algo: str = "rank"
    epochs: int = 20
    batch: int = 256
    lr: float = 3e-3
    hidden: Sequence[int] = HIDDEN
    validation: float = 0.1
    """Share of the episodes (whole episodes, never single decisions) kept out of training."""
    seed: int = 0
    options: Any = None
    """The learner's own, an instance of its `Options`; None = its defaults."""
    trust: float = 0.0
    """Over 0, eviction: the score is the column `RULE`, normalised, + so many times the network's."""

    def facts(self) -> dict[str, Any]:
        """Everything that the weights follow from, but the data; JSON values."""
        options = learner_named(self.algo).Options() if self.options is None else self.options
        return {**{k: v for k, v in vars(self).items() if k != "options"}, "hidden": list(self.hidden),
                "options": asdict(options)}


@dataclass(frozen=True)
class TrainResult:
    net: RowNet
    figures: dict[str, float]
    """Of the epoch that was kept, on the validation episodes."""
    train_decisions: int
    validation_decisions: int
    learner: Learner
    """All of it, critics too; `net` is its actor."""
    epoch: int
    """The one that was kept."""
    seen: int
    """Decisions that went through a gradient step, counted as often as they did."""


OnEpoch = Callable[[int, dict[str, float]], None]


def deterministic(seed: int) -> torch.Generator:
    """One thread, deterministic kernels, everything seeded: the same weights bit for bit on the same machine. One
    thread is also the faster choice for a network this small."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def split_episodes(data: Decisions, share: float, seed: int) -> NDArray[np.bool_]:
    """(N,) True for decisions of validation episodes: `share` of each behaviour's episodes, at least one in all.

    Raises `UserError` if there are fewer than two episodes.
    """
    episodes, first = np.unique(data.episode, return_index=True)
    if len(episodes) < 2:
        raise UserError("dataset", "holds one episode only", "collect at least 2, so that one can be held out")
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for b in range(len(data.behaviours)):
        mine = episodes[data.behaviour[first] == b]
        chosen += rng.permutation(mine)[:int(len(mine) * share)].tolist()
    return np.isin(data.episode, chosen or rng.permutation(episodes)[:1])


def train(data: Decisions, config: TrainConfig, on_epoch: OnEpoch, state: Path | None = None,
          resume: bool = False) -> TrainResult:
    """Fit a learner with Adam and a cosine learning rate, and keep its best or last epoch (`Learner.keeps`).

    Normalisation is that of the training episodes' valid rows. Deterministic from `config.seed`. After each epoch the
    whole state goes to `state`, then `on_epoch(epoch, curves)` is called, first epoch = 1. `resume` goes on from
    `state`, to the same weights bit for bit. Raises `UserError` for data that the learner cannot learn from, and for a
    state of another run.
    """
    kind = learner_named(config.algo)
    if kind.needs == "labels" and data.decision != "eviction":
        raise UserError("--algo", f"{config.algo} learns from Belady labels, and a dataset of {data.decision} has none",
                        "choose a learner of actions or rewards")
    if config.trust and data.decision != "eviction":
        raise UserError("--trust", f"a dataset of {data.decision} has no column {RULE}", "leave it out")
    generator = deterministic(config.seed)
    ours = {**config.facts(), "data": fingerprint(data)} if state else {}
    tensors, facts = read_state(state) if state and resume else ({}, {})
    if state and facts:
        check_same(state, facts["run"], ours)
    data = undecided(data) if kind.needs == "labels" else replace(data, next_use=labels_of(data))
    held = split_episodes(data, config.validation, config.seed)
    if held.all():
        raise UserError("--validation", "leaves nothing to train on", "hold out less, or collect more episodes")
    learn, check = Tables.of(data.where(~held)), Tables.of(data.where(held))
    learner = kind(learn, config.hidden, kind.Options() if config.options is None else config.options)
    learner.prepare(learn)
    learner.prepare(check)
    mine, theirs = (torch.nonzero(learner.select(tables)).flatten() for tables in (learn, check))
    if not len(mine) or not len(theirs):
        raise nothing_to_learn()
    optimiser = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], config.lr)
    best, best_state, kept, figures, start = math.inf, learner.state_dict(), 0, {}, 0
    if facts:
        learner.load_state_dict(under("model", tensors))
        restore_optimiser(optimiser, under("adam", tensors))
        generator.set_state(tensors["generator"])
        best, kept, figures, start = facts["best"], facts["kept"], facts["figures"], facts["epoch"]
        best_state = under("best", tensors)
    for epoch in range(start + 1, config.epochs + 1):
        for group in optimiser.param_groups:
            group["lr"] = config.lr * (LAST_LR + (1 - LAST_LR) * (1 + math.cos(
                math.pi * (epoch - 1) / config.epochs)) / 2)
        loss = _epoch(learner, learn, mine, optimiser, config.batch, generator)
        curves = {"train_loss": loss, **evaluate(learner, check, theirs)}
        if not math.isfinite(loss + curves["validation_loss"]):
            raise UserError("--lr", f"the loss is no number after epoch {epoch}", "choose a smaller learning rate")
        if learner.keeps == "last" or curves["validation_loss"] < best:
            best, best_state, figures, kept = (
                curves["validation_loss"], copy.deepcopy(learner.state_dict()), curves, epoch)
        if state:
            write_state(state, {**flat("model", learner.state_dict()), **flat("best", best_state),
                                **flat("adam", optimiser_tensors(optimiser)), "generator": generator.get_state()},
                        {"run": ours, "epoch": epoch, "best": best, "kept": kept, "figures": figures})
        on_epoch(epoch, curves)
    learner.load_state_dict(best_state)
    if config.trust:
        learner.actor = beside_rule(learner.actor, LEARNED_EVICTION.index(RULE), config.trust)
        figures = {**figures, **evaluate(learner, check, theirs)}
    more = {k: v for k, v in learner.figures(check).items() if math.isfinite(v)}
    return TrainResult(learner.actor, {**figures, **more}, len(mine), len(theirs), learner, kept,
                       len(mine) * config.epochs)


def undecided(data: Decisions) -> Decisions:
    """`data` with those candidates masked that are settled ahead of the network (`policies.learned.settled`): what
    waits in the queue, what has ended and what holds more than it can use (it has no label). Its weights then go into
    what it will be asked."""
    settled = (data.observations[..., E_WAITING] > 0) | (data.observations[..., E_ENDED] > 0) | np.isnan(data.next_use)
    return replace(data, masks=data.masks & ~settled, next_use=labels_of(data))


def _epoch(learner: Learner, tables: Tables, use: torch.Tensor, optimiser: torch.optim.Optimizer, batch: int,
           generator: torch.Generator) -> float:
    """One pass over the decisions `use` in a random order; the mean loss."""
    total = 0.0
    for part in use[torch.randperm(len(use), generator=generator)].split(batch):
        value = _loss(learner, tables.part(part))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        learner.after_step()
        total += value.item() * len(part)
    return total / len(use)


def evaluate(learner: Learner, tables: Tables, use: torch.Tensor, batch: int = 1024) -> dict[str, float]:
    """The loss over the decisions `use`; where there are labels, also pairs in order and agreement with Belady."""
    sums, counts = np.zeros(3), np.zeros(3)
    with torch.no_grad():
        for index in use.split(batch):
            part = tables.part(index)
            scores = learner.actor(part.observations)
            values = np.array([_loss(learner, part).item(), pair_accuracy(scores, part.next_use, part.masks).item(),
                               top_agreement(scores, part.next_use, part.masks).item()])
            known = np.array([True, *np.isfinite(values[1:])])  # NaN: not a pair of different next uses
            sums += np.where(known, values, 0.0) * len(index)
            counts += known * len(index)
    loss, pairs, top = (sums / np.maximum(counts, 1)).tolist()
    if counts[1] == 0:
        return {"validation_loss": loss}
    return {"validation_loss": loss, "pair_accuracy": pairs, "belady_agreement": top}


def _loss(learner: Learner, batch: Batch) -> torch.Tensor:
    return learner.loss(batch)
