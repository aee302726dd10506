"""Offline training of the row network on decision tables: the loop that `training/train_offline.py` runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from saga_rl.errors import UserError
from saga_rl.learn.dataset import Decisions
from saga_rl.learn.losses import behaviour_cloning, pair_accuracy, pairwise_ranking, top_agreement
from saga_rl.learn.network import HIDDEN, RowNet, normalisation
from saga_rl.policies.features import E_ENDED, E_WAITING


@dataclass(frozen=True)
class TrainConfig:
    """`algo` is `rank` (pairwise ranking on Belady labels) or `bc` (behaviour cloning of the logged actions)."""

    algo: str = "rank"
    epochs: int = 20
    batch: int = 256
    lr: float = 3e-3
    hidden: Sequence[int] = HIDDEN
    validation: float = 0.1
    """Share of the episodes (whole episodes, never single decisions) kept out of training."""
    seed: int = 0


@dataclass(frozen=True)
class TrainResult:
    net: RowNet
    figures: dict[str, float]
    """Of the best epoch, on the validation episodes."""
    train_decisions: int
    validation_decisions: int


Tables = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
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


def train(data: Decisions, config: TrainConfig, on_epoch: OnEpoch) -> TrainResult:
    """Fit a `RowNet` with Adam and a cosine learning rate; the epoch with the lowest validation loss is kept.

    Normalisation is that of the training episodes' valid rows. Deterministic from `config.seed`. `on_epoch(epoch,
    curves)` is called after each epoch, first epoch = 1.
    """
    generator = deterministic(config.seed)
    if config.algo == "rank":
        data = undecided(data)
    held = split_episodes(data, config.validation, config.seed)
    if held.all():
        raise UserError("--validation", "leaves nothing to train on", "hold out less, or collect more episodes")
    useful = _has_signal(data, config.algo)
    fit, check = _tensors(data, ~held & useful), _tensors(data, held & useful)
    if not len(fit[0]) or not len(check[0]):
        raise UserError("dataset", "holds no decision with a choice to learn from", "collect under more pressure")
    rows = data.observations[~held][data.masks[~held]]
    net = RowNet(data.observations.shape[2], config.hidden, *normalisation(rows))
    optimiser = torch.optim.Adam(net.parameters(), config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs, config.lr * 0.05)
    best, best_state, figures = float("inf"), net.state_dict(), {}
    for epoch in range(1, config.epochs + 1):
        order = torch.randperm(len(fit[0]), generator=generator)
        total = 0.0
        for part in order.split(config.batch):
            value = _loss(net, tuple(t[part] for t in fit), config.algo)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            total += value.item() * len(part)
        schedule.step()
        curves = {"train_loss": total / len(order), **evaluate(net, check, config.algo)}
        on_epoch(epoch, curves)
        if curves["validation_loss"] < best:
            best, best_state, figures = curves["validation_loss"], copy.deepcopy(net.state_dict()), curves
    net.load_state_dict(best_state)
    return TrainResult(net, figures, len(fit[0]), len(check[0]))


def undecided(data: Decisions) -> Decisions:
    """`data` with those candidates masked that are settled ahead of the network (`policies.eviction.learned`): what
    waits in the queue and what has ended. Its weights then go into what it will be asked."""
    settled = (data.observations[..., E_WAITING] > 0) | (data.observations[..., E_ENDED] > 0)
    return replace(data, masks=data.masks & ~settled)


def evaluate(net: RowNet, tables: Tables, algo: str, batch: int = 1024) -> dict[str, float]:
    """Loss, pair accuracy and agreement with Belady over `tables`, in batches weighted by their decisions."""
    sums = np.zeros(3)
    with torch.no_grad():
        for at in range(0, len(tables[0]), batch):
            part = tuple(t[at:at + batch] for t in tables)
            scores = net(part[0])
            metrics = (_loss(net, part, algo), pair_accuracy(scores, part[2], part[1]),
                       top_agreement(scores, part[2], part[1]))
            sums += np.nan_to_num([m.item() for m in metrics]) * len(part[0])
    loss, pairs, top = (sums / len(tables[0])).tolist()
    return {"validation_loss": loss, "pair_accuracy": pairs, "belady_agreement": top}


def _loss(net: RowNet, tables: tuple[torch.Tensor, ...], algo: str) -> torch.Tensor:
    observations, masks, next_use, actions = tables
    scores = net(observations)
    if algo == "bc":
        return behaviour_cloning(scores, actions, masks)
    return pairwise_ranking(scores, next_use, masks)


def _has_signal(data: Decisions, algo: str) -> NDArray[np.bool_]:
    """Decisions that can teach anything: two candidates, and for ranking two different next uses."""
    if algo == "bc":
        return data.masks.sum(axis=1) > 1
    low = np.where(data.masks, data.next_use, np.inf).min(axis=1)
    high = np.where(data.masks, data.next_use, -np.inf).max(axis=1)
    return low < high


def _tensors(data: Decisions, keep: NDArray[np.bool_]) -> Tables:
    return (torch.from_numpy(data.observations[keep]), torch.from_numpy(data.masks[keep]),
            torch.from_numpy(data.next_use[keep]), torch.from_numpy(data.actions[keep]))
