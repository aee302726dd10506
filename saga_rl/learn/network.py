"""The learned scorer: one small MLP that every row passes through alone.

Shared weights make it equivariant to the order of rows and independent of their number, so one checkpoint serves any
count of sessions or workers. It is exported as plain layers and runs in the simulator and in vLLM without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from saga_rl.policies.learned.mlp import CLIP

HIDDEN = (24, 24)
MIN_STD = 1e-3
"""A column that (almost) never varied in training is not blown up when it varies in service."""


class RowNet(nn.Module):
    """score(x) = MLP(clip((x - mean) / std)), F -> hidden (ReLU) -> 1, for x of shape (..., F); returns shape (...).

    The same network as `saga_rl.policies.learned.mlp`, which runs it in service, and with its clipping bound.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, features: int, hidden: Sequence[int] = HIDDEN, mean: NDArray | None = None,
                 std: NDArray | None = None) -> None:
        super().__init__()
        sizes = [features, *hidden, 1]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.register_buffer("mean", torch.zeros(features) if mean is None else _float(mean))
        self.register_buffer("std", torch.ones(features) if std is None else _float(std))

    @property
    def features(self) -> int:
        return int(self.mean.shape[0])

    def normal(self, x: torch.Tensor) -> torch.Tensor:
        """What the first layer sees of x (..., F)."""
        return ((x - self.mean) / self.std).clamp(-CLIP, CLIP)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.normal(x)
        *hidden, last = self._linears()
        for linear in hidden:
            h = torch.relu(linear(h))
        return last(h).squeeze(-1)

    def _linears(self) -> Iterator[nn.Linear]:
        for module in self.linears:
            assert isinstance(module, nn.Linear)
            yield module

    def layers(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """[(W, b)] with W of shape (out, in), first layer first: what `policies.learned.checkpoint.save_checkpoint`
        takes."""
        return [(_array(linear.weight), _array(linear.bias)) for linear in self._linears()]

    @classmethod
    def from_layers(cls, layers: Sequence[tuple[NDArray, NDArray]], mean: NDArray, std: NDArray) -> RowNet:
        """The network of a checkpoint, to train it further."""
        net = cls(layers[0][0].shape[1], [w.shape[0] for w, _ in layers[:-1]], mean, std)
        with torch.no_grad():
            for linear, (w, b) in zip(net._linears(), layers, strict=True):
                linear.weight.copy_(_float(w))
                linear.bias.copy_(_float(b))
        return net


def beside_rule(net: RowNet, column: int, trust: float) -> RowNet:
    """The network whose score is the normalised `column` + `trust` x that of `net`: where what it learned does not
    apply, the order that the column gives is left. Two units a hidden layer carry the column (relu(z) - relu(-z) = z).
    """
    layers, features = net.layers(), net.features
    carried = np.zeros((2, features), np.float32)
    carried[:, column] = 1.0, -1.0
    out, into = [], carried
    for w, b in layers[:-1]:
        w, before = np.concatenate([w, np.zeros((len(w), into.shape[1] - w.shape[1]), np.float32)], axis=1), into
        out.append((np.concatenate([w, before]), np.concatenate([b, np.zeros(2, np.float32)])))
        into = np.zeros((2, len(w) + 2), np.float32)
        into[0, -2] = into[1, -1] = 1.0
    weight, bias = layers[-1]
    last = np.concatenate([trust * weight, np.zeros((1, into.shape[1] - weight.shape[1]), np.float32)], axis=1)
    out.append((last + (into[0] - into[1] if len(layers) > 1 else into[0]), trust * bias))
    return RowNet.from_layers(out, _array(net.mean), _array(net.std))


def serving_layers(net: RowNet, decision: str) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """`net.layers()` in the decision's own convention. Learners prefer the row with the highest score; in service

    - eviction, placement: the highest goes first, as here;
    - ordering: the lowest goes first, so the last layer changes its sign;
    - admission: a request enters if its score is over 0. Here it enters if it scores more than the row of zeros that
      stands for holding it, so that row's score is taken off the last bias.
    """
    layers = net.layers()
    weight, bias = layers[-1]
    if decision == "ordering":
        layers[-1] = (-weight, -bias)
    if decision == "admission":
        with torch.no_grad():
            layers[-1] = (weight, bias - net(torch.zeros(net.features)).item())
    return layers


def normalisation(rows: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation (floored at `MIN_STD`) of each column of `rows` (n, F)."""
    mean = rows.mean(axis=0, dtype=np.float64)
    std = np.maximum(rows.std(axis=0, dtype=np.float64), MIN_STD)
    return mean.astype(np.float32), std.astype(np.float32)


def _float(a: NDArray) -> torch.Tensor:
    return torch.tensor(np.asarray(a), dtype=torch.float32)


def _array(t: torch.Tensor) -> NDArray[np.float32]:
    return t.detach().cpu().numpy().astype(np.float32).copy()
