"""From paired runs to figures: ratios with intervals, collapses marked, targets met or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.experiments.intervals import MIN_PAIRS, bootstrap, geometric, ratio_of_means

Values = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """One line of the report. value, low, high are None where nothing may be quoted; `note` then says why.

    target: what is asked for, None = told for comparison only; at_most: smaller is better.
    """

    row: str
    what: str
    value: float | None
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    target: float | None = None
    at_most: bool = True
    note: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`met`: the whole interval is on the target's side. `met on average`: the value is, the interval not all."""
        if self.value is None:
            return "not quotable"
        if self.target is None:
            return ""
        sign = 1 if self.at_most else -1
        if sign * self.value > sign * self.target:
            return "not met"
        worst = self.high if self.at_most else self.low
        return "met" if worst is not None and sign * worst <= sign * self.target else "met on average"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"status": self.status, "detail": dict(self.detail)}


def paired(row: str, what: str, ours: Sequence[Values], theirs: Sequence[Values],
           usable: Sequence[NDArray[np.bool_]], target: float | None = None, at_most: bool = True,
           detail: Mapping[str, Any] | None = None) -> Figure:
    """Geometric mean of ours / theirs over seeds and workloads, and its interval over seeds.

    ours, theirs, usable: for each workload a list over the same seeds. A seed counts where every workload is usable:
    then its value is the mean log ratio over the workloads. Fewer than `MIN_PAIRS` seeds: not quotable.
    """
    good = np.logical_and.reduce(usable)
    n, total = int(good.sum()), len(good)
    note = "" if n == total else f"{total - n} of {total} arrangements left out: a collapse, no pressure or no limit"
    more = dict(detail or {})
    if n < MIN_PAIRS:
        return Figure(row, what, None, pairs=n, target=target, at_most=at_most, detail=more,
                      note=note or f"{n} pairs make no interval")
    logs = np.mean([np.log(np.asarray(a, float)[good] / np.asarray(b, float)[good])
                    for a, b in zip(ours, theirs, strict=True)], axis=0)
    return Figure(row, what, *geometric(logs), n, target, at_most, note, more)


def share(row: str, what: str, ours: Sequence[Values], base: Sequence[Values], best: Sequence[Values],
          usable: Sequence[NDArray[np.bool_]], target: float) -> Figure:
    """How much of the way from `base` to `best` is gone: mean log(base / ours) over mean log(base / best).

    Percentile bootstrap over seeds of the ratio of means. Not quotable where `best` is not shown to be better than
    `base`: there is then no way to speak of.
    """
    good = np.logical_and.reduce(usable)
    n = int(good.sum())
    if n < MIN_PAIRS:
        return Figure(row, what, None, pairs=n, target=target, at_most=False, note=f"{n} pairs make no interval")

    def gain(x: Sequence[Values]) -> NDArray[np.float64]:
        return np.mean([np.log(np.asarray(b, float)[good] / np.asarray(a, float)[good])
                        for a, b in zip(x, base, strict=True)], axis=0)

    mine, whole = gain(ours), gain(best)
    if bootstrap(whole)[0] <= 0:
        return Figure(row, what, None, pairs=n, target=target, at_most=False,
                      note="the reference is not shown to be better than the heuristic, so there is no way to go")
    return Figure(row, what, *ratio_of_means(mine, whole), n, target, False)
