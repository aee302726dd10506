"""Random search over the options of a learner: where it draws from, one trial, and what came of all of them.

The space follows from the learner's own options (`Range.search`) and the ranges below. Trial n of seed s draws from its
own stream, so the local search can be stopped and resumed, and asking for more trials keeps those that are there.
A trial is judged on held-out episodes of the same dataset by the learner's `criterion`; test data never come near.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from saga_rl.learn.offline.from_datasets import Loaded, save
from saga_rl.learn.offline.learners import learner
from saga_rl.learn.offline.learners.options import Range
from saga_rl.learn.offline.train import TrainConfig, TrainResult, train

SHARED: dict[str, Range] = {
    "lr": Range(1e-9, 10, "learning rate of Adam at the start", (3e-4, 1e-2), True),
    "width": Range(1, 512, "of both hidden layers", (8, 48), True),
    "batch": Range(1, 1e9, "decisions a gradient step", (64, 512), True),
}
WHOLE = ("width", "batch")


@dataclass(frozen=True)
class Dimension:
    """One number (or word) that a trial draws."""

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()

    def draw(self, u: float) -> Any:
        """The value at u in [0, 1) of the range, evenly, or evenly in the logarithm."""
        if self.choices:
            return self.choices[int(u * len(self.choices))]
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + u * (high - low)
        value = min(max(math.exp(value) if self.log else value, self.low), self.high)
        return round(value) if self.whole else value


def space(algo: str) -> list[Dimension]:
    """What a sweep of that learner searches."""
    out = [Dimension(name, r.search[0], r.search[1], r.log, name in WHOLE) for name, r in SHARED.items() if r.search]
    for f in fields(learner(algo).Options):
        if "choices" in f.metadata:
            out.append(Dimension(f.name, choices=f.metadata["choices"]))
        elif (r := f.metadata["range"]).search:
            out.append(Dimension(f.name, r.search[0], r.search[1], r.log, isinstance(f.default, int)))
    return out


def draw(algo: str, seed: int, trial: int) -> dict[str, Any]:
    """The values of trial number `trial` (from 0)."""
    dimensions = space(algo)
    return {d.name: d.draw(u) for d, u in zip(dimensions, np.random.default_rng([seed, trial]).random(len(dimensions)),
                                              strict=True)}


def config_of(algo: str, values: Mapping[str, Any], epochs: int, validation: float, seed: int) -> TrainConfig:
    """The training that `values` ask for. Seed and split are the same in all trials: only the values differ."""
    own = {k: v for k, v in values.items() if k not in SHARED}
    width = int(values["width"])
    return TrainConfig(algo, epochs, int(values["batch"]), float(values["lr"]), (width, width), validation, seed,
                       learner(algo).Options(**own))


def score(algo: str, figures: Mapping[str, float]) -> float:
    """By what trials are compared, the higher the better; -inf where the figure could not be told."""
    criterion = learner(algo).criterion
    return figures.get(criterion, -math.inf) if criterion else -figures["validation_loss"]


def criterion_of(algo: str) -> str:
    """In words, for tables and pictures."""
    return (learner(algo).criterion or "validation loss, negative").replace("_", " ")


def trial(number: int, algo: str, values: Mapping[str, Any], loaded: Loaded, epochs: int, validation: float, seed: int,
          out: Path, others: dict[str, str],
          on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, curves: None) -> dict[str, Any]:
    """Train once and write the checkpoint to `out`. Returns the trial's record, all JSON values."""
    start = time.perf_counter()
    config = config_of(algo, values, epochs, validation, seed)
    result: TrainResult = train(loaded.data, config, on_epoch)
    save(out, loaded, config, result, others, f"trial {number} of a sweep")
    found = score(algo, result.figures)
    return {"trial": number, "values": dict(values), "score": found if math.isfinite(found) else None,
            "figures": result.figures, "epoch": result.epoch, "decisions_seen": result.seen,
            "seconds": round(time.perf_counter() - start, 2)}


def best_of(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The trial with the highest score; ties: the first one."""
    return max(trials, key=lambda t: (-math.inf if t["score"] is None else t["score"], -t["trial"]))


def summary(algo: str, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """What a sweep says of itself besides its trials: the budget it spent, and its best."""
    best = best_of(trials)
    return {"algo": algo, "criterion": criterion_of(algo), "best": best["trial"],
            "budget": {"trials": len(trials), "decisions_seen": sum(t["decisions_seen"] for t in trials),
                       "seconds": round(sum(t["seconds"] for t in trials), 2)},
            "space": {d.name: list(d.choices) or {"low": d.low, "high": d.high, "log": d.log} for d in space(algo)}}
