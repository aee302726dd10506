"""Fitted Q evaluation: the value of a target policy by regression on what followed each logged action.

    Q(s_t, a_t) <- r_t + gamma * sum_a pi(a | s_t+1) Q(s_t+1, a),    0 beyond a path's end

(Le, Voloshin, Yue 2019). Q is a row network: it reads the chosen row, the mean of the decision's candidates and the
share of the path that is left, so values are those of the rest of the path. The regression is repeated `sweeps` times,
each a pass over the logged decisions with targets of the sweep before; a reward travels back one decision a sweep.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from saga_rl.learn.data.dataset import Decisions
from saga_rl.learn.judge.ope.paths import Paths
from saga_rl.learn.judge.ope.policies import Probabilities
from saga_rl.learn.network import RowNet, normalisation


@dataclass(frozen=True)
class FqeConfig:
    sweeps: int = 0
    """Passes over the data; 0 = as many as the paths are long, and 20 more."""
    batch: int = 512
    lr: float = 3e-3
    hidden: tuple[int, ...] = (24, 24)
    decisions: int = 20_000
    """Fit on at most so many, drawn by path."""
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """Values for the target policy, (N,) each, 0 outside the paths."""

    q: NDArray[np.float64]
    """Of the logged actions."""
    v: NDArray[np.float64]
    """Of the states: the expectation of Q under the target."""
    loss: float
    """Mean squared error of the last sweep, in units of the reward's variance."""


def fit(data: Decisions, policy: Probabilities, paths: Paths, *, gamma: float = 1.0,
        config: FqeConfig | None = None, use: NDArray[np.bool_] | None = None) -> Fitted:
    """Fit Q on the paths of which `use` (n,) is true (all), then value every decision of all paths.

    Leave out paths of behaviours that saw the future: what they chose is tied to what followed, and a regression takes
    that for the action's doing. Deterministic from `config.seed` on one machine.
    """
    config = config or FqeConfig()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(config.seed)
    table = _Table(data, policy, paths)
    chosen = np.flatnonzero(np.ones(len(paths.cluster), bool) if use is None else use)
    order = np.random.default_rng(config.seed).permutation(chosen)
    kept = order[:max(1, int(np.searchsorted(np.cumsum(paths.there[order].sum(axis=1)), config.decisions)) + 1)]
    at, step = np.nonzero(paths.there[kept])
    mine = paths.index[kept[at], step]
    follows = np.where(step + 1 < paths.index.shape[1], paths.index[kept[at], np.minimum(
        step + 1, paths.index.shape[1] - 1)], -1)
    rewards = data.rewards[mine]
    scale = float(rewards.std()) or 1.0
    inputs = table.inputs(mine, data.actions[mine])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = RowNet(inputs.shape[1], config.hidden, *normalisation(inputs))
    x, y0 = torch.as_tensor(inputs), rewards / scale
    goes_on = follows >= 0
    later = table.expectation(follows[goes_on])
    optimiser = torch.optim.Adam(net.parameters(), config.lr)
    sweeps = config.sweeps or paths.index.shape[1] + 20
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, sweeps, config.lr * 0.05)
    total = 0.0
    for _ in range(sweeps):
        target = y0.copy()
        target[goes_on] += gamma * later(net)
        y, total = torch.as_tensor(target, dtype=torch.float32), 0.0
        for part in torch.randperm(len(y), generator=generator).split(config.batch):
            loss = torch.nn.functional.mse_loss(net(x[part]), y[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(part)
        schedule.step()
    q, v = np.zeros(len(data)), np.zeros(len(data))
    everything = paths.index[paths.there]
    q[everything] = scale * _predict(net, table.inputs(everything, data.actions[everything]))
    v[everything] = scale * table.expectation(everything)(net)
    return Fitted(q, v, total / len(x))


class _Table:
    """Inputs of the network for rows of decisions."""

    def __init__(self, data: Decisions, policy: Probabilities, paths: Paths) -> None:
        self.data = data
        counts = np.maximum(data.masks.sum(axis=1, keepdims=True), 1)
        masked = np.where(data.masks[:, :, None], data.observations, 0.0)
        self.mean = (masked.sum(axis=1) / counts).astype(np.float32)
        self.left = np.zeros(len(data), np.float32)
        step = np.broadcast_to(1.0 - np.arange(paths.index.shape[1]) / paths.index.shape[1], paths.index.shape)
        self.left[paths.index[paths.there]] = step[paths.there]
        self.probabilities = policy(data.observations, data.masks)

    def inputs(self, decisions: NDArray, rows: NDArray) -> NDArray[np.float32]:
        return np.concatenate([self.data.observations[decisions, rows], self.mean[decisions],
                               self.left[decisions, None]], axis=1).astype(np.float32)

    def expectation(self, decisions: NDArray):
        """A function of the network: (len(decisions),) expected Q under the target. Rows that it never takes are not
        computed."""
        owner, row = np.nonzero(self.probabilities[decisions] > 0)
        x = torch.as_tensor(self.inputs(decisions[owner], row))
        chance = self.probabilities[decisions[owner], row]

        def expected(net: RowNet) -> NDArray[np.float64]:
            return np.bincount(owner, chance * _predict(net, x), minlength=len(decisions)).astype(np.float64)

        return expected


def _predict(net: RowNet, x: NDArray | torch.Tensor) -> NDArray[np.float64]:
    with torch.no_grad():
        return net(torch.as_tensor(x)).double().numpy()
