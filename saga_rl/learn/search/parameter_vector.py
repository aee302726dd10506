"""A small scorer for each decision as one vector of numbers, for direct search: linear in scaled features, plus a few
ReLU units. Written out, it is the same network as every learned policy (`policies.learned.mlp`), and serves as any
checkpoint does.

For a decision with F features and U units the numbers are

    w (F), b (1), and for each unit its input weights (F), bias (1) and output weight (1)

    score(x) = w . z + b + sum over units of  out_u * relu(in_u . z + c_u),     z = x / scale

The start is the best rule that needs no learning, exactly: youngest session out, oldest session first, reserve for what
older sessions will likely come back to (`reserve-older:likely=1`), home, or for a new chain where the fewest live.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saga_rl.errors import UserError
from saga_rl.policies.base import DECISIONS, Decision, Policy, PolicySet
from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES, load_checkpoint
from saga_rl.policies.learned.mlp import Layers, mlp_score, pack, scratch_size
from saga_rl.policies.learned.settled import settled_score
from saga_rl.policies.registry import make

START: dict[str, dict[str, float]] = {
    "eviction": {"age_log": -1.0},
    "ordering": {"age_log": -1.0},
    "admission": {"bias": 1.0, "need_share": -1.0, "pinned_share": -1.0, "growth_share": -1.0, "likely_share": -1.0},
    "placement": {"home": 30.0, "load": -1.0, "sessions": -100.0},
}
"""In units of the raw features."""
LOG_SCALE, SHARE_SCALE, SLOT = 3.0, 0.5, 1 / 256


@dataclass(frozen=True)
class ParameterVector:
    """Which decisions are searched, and how many units each has."""

    decisions: tuple[Decision, ...]
    units: int = 0

    def features(self, decision: str) -> tuple[str, ...]:
        return LEARNED_FEATURES[decision]

    def length(self, decision: str) -> int:
        n = len(self.features(decision))
        return n + 1 + self.units * (n + 2)

    @property
    def size(self) -> int:
        return sum(self.length(s) for s in self.decisions)

    def start(self, rules: Mapping[str, Mapping[str, float]] = START) -> NDArray[np.float64]:
        """(size,) the rules above, or others as they are written there; units begin at zero output."""
        parts = []
        for decision in self.decisions:
            names = self.features(decision)
            part = np.zeros(self.length(decision))
            for name, value in rules[decision].items():
                at = len(names) if name == "bias" else names.index(name)
                part[at] = value * (1.0 if name == "bias" else scales(names)[at])
            parts.append(part)
        return np.concatenate(parts)

    def fits(self, folder: str | Path) -> bool:
        """Whether the checkpoint `folder` is one that a search with the same units wrote. Raises `UserError`."""
        found = load_checkpoint(folder)
        names = self.features(found.decision)
        shapes = [(w.shape, b.shape) for w, b in found.layers]
        mine = ParameterVector((found.decision,), self.units)
        return shapes == [(w.shape, b.shape) for w, b in mine.layers(found.decision, mine.start())] and not (
            np.any(found.mean)) and np.allclose(found.std, scales(names))

    def of_checkpoints(self, folder: str | Path) -> NDArray[np.float64]:
        """(size,) the numbers of the checkpoints below `folder`, one a decision, of a search with the same units.
        Raises `UserError`."""
        parts = []
        for decision in self.decisions:
            where = Path(folder) / decision
            if not self.fits(where):
                raise UserError(where, "is no scorer of this search",
                                f"name what training/search.py wrote with --units {self.units}")
            loaded = load_checkpoint(where)
            (w, b), (last, bias) = loaded.layers[0], loaded.layers[-1]
            parts += [w[0], bias]
            if self.units:
                parts.append(np.concatenate([w[2:], b[2:, None], last[0, 2:, None]], axis=1).ravel())
        return np.concatenate(parts).astype(np.float64)

    def layers(self, decision: str, theta: NDArray[np.float64]) -> Layers:
        """The network of a decision as `torch.nn.Linear` would keep it, (W, b) each."""
        at = sum(self.length(s) for s in self.decisions[:self.decisions.index(decision)])
        n = len(self.features(decision))
        w, b = theta[at:at + n], theta[at + n]
        if self.units == 0:
            return [(w[None].astype(np.float32), np.array([b], np.float32))]
        units = theta[at + n + 1:at + self.length(decision)].reshape(self.units, n + 2)
        first = np.concatenate([w[None], -w[None], units[:, :n]])  # relu(v) - relu(-v) = v
        bias = np.concatenate([[0.0, 0.0], units[:, n]])
        last = np.concatenate([[1.0, -1.0], units[:, n + 1]])
        return [(first.astype(np.float32), bias.astype(np.float32)),
                (last[None].astype(np.float32), np.array([b], np.float32))]

    def policies(self, theta: NDArray[np.float64], others: Mapping[str, str]) -> PolicySet:
        """The searched decisions with these numbers, the `others` by spec."""
        def policy(decision: Decision) -> Policy:
            layers, scale = self.layers(decision, theta), scales(self.features(decision))
            score = settled_score if decision == "eviction" else mlp_score
            return Policy(decision, "learned", score, pack(layers, np.zeros(len(scale)), scale), scratch_size(layers))

        return PolicySet(**{each: policy(each) if each in self.decisions else make(each, others[each])
                            for each in DECISIONS})


def scales(names: tuple[str, ...]) -> NDArray[np.float64]:
    """(F,) what each feature is divided by: of a logarithm, of a share of the pool, of a share of the running slots,
    1 for the rest."""
    return np.array([LOG_SCALE if n.endswith("_log") else SHARE_SCALE if n.endswith("_share")
                     else SLOT if n in ("slots", "sessions") else 1.0 for n in names])
