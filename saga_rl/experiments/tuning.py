"""The same budget for every policy that has a parameter to tune, spent on training sessions only."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

MOST = 5
W = TypeVar("W", bound=Hashable)
_WEIGHTS = ("alpha=1,beta=0,gamma=0", "alpha=0.1,beta=0.8,gamma=0.1", "alpha=0.6,beta=0.3,gamma=0.1",
            "alpha=0.2,beta=0.3,gamma=0.5")


def _grid(name: str, *parameters: str) -> tuple[str, ...]:
    return (name, *(f"{name}:{p}" for p in parameters))


TUNE: dict[str, dict[str, tuple[str, ...]]] = {
    "eviction": {
        "bayes-tables": _grid("bayes-tables", "horizon_s=60", "horizon_s=1000", "horizon_s=30", "horizon_s=3600"),
        "continuum": _grid("continuum", "price=0.25", "price=4", "price=0.5", "price=2"),
        "greedy-dual": _grid("greedy-dual", "frequency=0", "fixed=1,linear=0,square=0", "linear=1,square=0",
                             "frequency=0,fixed=1,linear=0,square=0"),
        "kvflow": _grid("kvflow", "far=10", "ends=0", "far=30", "far=300"),
        "s3-fifo": _grid("s3-fifo", "small=0.02", "small=0.25", "small=0.05", "small=0.5"),
        "tail-lru": _grid("tail-lru", "xi=300", "xi=4800", "xi=19200", "xi=76800"),
        "wa-lru": _grid("wa-lru", *_WEIGHTS),
        "wa-lru-literal": _grid("wa-lru-literal", *_WEIGHTS),
        "youngest": _grid("youngest", "expiry_s=60", "expiry_s=1000", "expiry_s=30", "expiry_s=3600"),
    },
    "placement": {
        "consistent-hash": _grid("consistent-hash", "c=1.05", "c=2", "c=1.5", "c=4"),
        "prefix-aware": _grid("prefix-aware", "hit=4", "excess=8", "hit=0.25", "hit=4,excess=8"),
        "saga": _grid("saga", "theta=20", "theta=1.5,steal=1", "theta=5", "theta=20,steal=1"),
    },
    "ordering": {
        "dlpm": _grid("dlpm", "quantum=5000", "quantum=80000", "quantum=1000", "quantum=320000"),
        "las": _grid("las", "base_s=10", "base_s=30", "base_s=10,starve=4", "factor=4"),
    },
    "admission": {
        "aimd": _grid("aimd", "low=0.6", "start=4", "cut=0.5", "period=128"),
        "grow": _grid("grow", "factor=0", "factor=0.25", "factor=0.75", "factor=1"),
        "limit": _grid("limit", "sessions=4", "sessions=8", "sessions=2", "sessions=32"),
        "limit-live": _grid("limit-live", "share=0.75", "share=1.5", "share=0.5", "share=2"),
        "pause-resume": _grid("pause-resume", "margin=0", "margin=0.2", "margin=0.1", "margin=0.4"),
        "reserve-older": _grid("reserve-older", "likely=1"),
    },
}
"""Decision -> policy -> its settings, its own default first; `MOST` of them, or as many as its parameter has values."""


def settings_of(decision: str, spec: str, budget: int) -> list[str]:
    """The specs that are tried for `spec`: just itself if it names parameters, has none to tune, or budget is 0."""
    return list(TUNE[decision].get(spec, (spec,))[:max(budget, 1)])


@dataclass(frozen=True)
class Choice:
    """What was chosen of what was tried. tried: setting -> its scores over training arrangements, less is better."""

    spec: str
    tried: Mapping[str, Sequence[float]]


def choose(scores: Iterable[tuple[W, str, float]]) -> dict[W, Choice]:
    """By what was tuned, the best of its settings. scores: (what, setting, score on one arrangement), scores > 0."""
    tried: dict[W, dict[str, list[float]]] = {}
    for what, setting, score in scores:
        tried.setdefault(what, {}).setdefault(setting, []).append(float(score))
    return {what: Choice(best(found), found) for what, found in tried.items()}


def best(scores: Mapping[str, Sequence[float]]) -> str:
    """The spec with the least geometric mean over training seeds; the earlier one among equals. Scores are > 0."""
    def mean(spec: str) -> float:
        return sum(math.log(x) for x in scores[spec]) / len(scores[spec])

    return min(scores, key=mean)
