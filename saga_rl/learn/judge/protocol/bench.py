"""Runs of many policies at many places, all in one batch, on the same arrangements; and tuning on training sessions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.experiments.cell import Result, Spec
from saga_rl.experiments.intervals import sound
from saga_rl.experiments.tuning import best, choose, settings_of
from saga_rl.learn.judge.protocol.lab import Lab
from saga_rl.learn.judge.protocol.settings import EVICTIONS, INFINITE, TRAIN_SEEDS, Arm, Settings
from saga_rl.learn.judge.sessions import DEFINED, RECORDED

Columns = dict[str, list[float]]
QUICK_PHASES = 120
"""Sessions of a run at P3 in a smoke test, far less than a round of phases."""
LONGER = 2
"""A run that looks for the sustained load has so many times the sessions of another."""


@dataclass(frozen=True)
class Place:
    """Where policies are compared in closed loop. population: times P1's; load: times the arrivals of P2, P3."""

    workload: str
    point: str = "P1"
    workers: int = 4
    hidden: bool = False
    population: float = 1.0
    load: float = 1.0

    def __str__(self) -> str:
        return (f"{self.workload}{', ends hidden' if self.hidden else ''}, {self.point}"
                f"{'' if self.population == 1 else f' x {self.population:g}'}"
                f"{'' if self.load == 1 else f' at {self.load:g} of its load'}, {self.workers} workers")


class Bench:
    """A lab, the settings, and what was tuned."""

    def __init__(self, lab: Lab, s: Settings) -> None:
        self.lab, self.s = lab, s
        self.tuned: list[dict[str, Any]] = []

    def sessions(self, place: Place) -> int:
        """Of one run; 0 = a whole round of phases."""
        if place.point == "P3":
            return 0 if self.s.rounds > 1 else QUICK_PHASES
        return self.s.rounds * (DEFINED | RECORDED)[place.workload].population * place.workers

    def spec(self, kind: str, place: Place, arm: Arm, part: str, seed: int) -> Spec:
        out = {"kind": kind, "workload": place.workload, "hidden": place.hidden, "part": part, "seed": seed,
               "point": place.point, "workers": place.workers, "sessions": self.sessions(place), "arm": arm}
        if kind == "sustain":  # a queue that grows without end needs time to show
            out["sessions"] = LONGER * self.sessions(place)
        return (out | ({"population": place.population} if place.population != 1 else {})
                | ({"load": place.load} if place.load != 1 else {}))

    def measure(self, what: str, places: Mapping[Place, Mapping[str, Arm]], part: str = "test",
                seeds: Sequence[int] = (), kind: str = "closed") -> dict[tuple[Place, str], Columns]:
        """(place, arm's name) -> figure -> values over seeds. places: the arms of each by name."""
        over = list(seeds) or list(self.s.test_seeds)
        keys = [(place, name) for place, arms in places.items() for name in arms]
        specs = [self.spec(kind, place, places[place][name], part, seed) for place, name in keys for seed in over]
        found = self.lab.ask(what, specs)
        out = {}
        for i, key in enumerate(keys):
            runs: list[Result] = found[i * len(over):(i + 1) * len(over)]
            out[key] = {k: [r[k] for r in runs] for k in runs[0]}
        return out

    def tune(self, what: str, places: Sequence[Place], grid: Sequence[Arm], goal: str = "tct_mean_s"
             ) -> dict[Place, Arm]:
        """The arm of `grid`, its first `budget`, with the least geometric mean of `goal` on training sessions."""
        tried = {json.dumps(arm, sort_keys=True): arm for arm in list(grid)[:max(self.s.budget, 1)]}
        runs = self.measure(f"tuning: {what}", dict.fromkeys(places, tried), "train", TRAIN_SEEDS)
        found = choose((place, name, x) for place in places for name in tried for x in runs[place, name][goal])
        chosen = {place: tried[found[place].spec] for place in places}
        self.tuned += [{"what": what, "where": str(place), "settings": len(tried),
                        "runs": len(tried) * len(TRAIN_SEEDS), "chosen": arm} for place, arm in chosen.items()]
        return chosen

    def tune_evictions(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Workload -> heuristic -> the setting that computes least again on training sessions."""
        tried = {e: settings_of("eviction", e, self.s.tune) for e in EVICTIONS}
        every = [spec for specs in tried.values() for spec in specs]
        runs = self.open("tuning: eviction", names, dict.fromkeys(names, every), "train", TRAIN_SEEDS)
        out: dict[str, dict[str, str]] = {}
        for n in names:
            again = {spec: [max(r["recomputed"][spec], 1) for r in runs[n]] for spec in every}
            out[n] = {e: best({x: again[x] for x in specs}) for e, specs in tried.items()}
            overall = best({spec: again[spec] for spec in out[n].values()})
            out[n]["best"] = overall
            self.tuned.append({"what": "eviction", "where": n, "settings": len(every),
                               "runs": len(every) * len(TRAIN_SEEDS), "chosen": overall})
        return out

    def open(self, what: str, names: Sequence[str], evictions: Mapping[str, Sequence[str]], part: str = "test",
             seeds: Sequence[int] = ()) -> dict[str, list[Result]]:
        """Workload -> results over seeds."""
        over = list(seeds) or list(self.s.test_seeds)
        size = {n: RECORDED[n].sessions if n in RECORDED else self.s.rounds * max(40, 2 * DEFINED[n].population)
                for n in names}
        specs = [{"kind": "open", "workload": n, "part": part, "seed": seed, "evictions": list(evictions[n]),
                  "sessions": size[n]} for n in names for seed in over]
        found = self.lab.ask(what, specs)
        return {n: found[i * len(over):(i + 1) * len(over)] for i, n in enumerate(names)}


def usable(runs: Mapping[tuple[Place, str], Columns], place: Place, *names: str) -> NDArray[np.bool_]:
    """Seeds in which none of the arms collapsed at `place`; wants an arm `infinite` there."""
    free = runs[place, "infinite"]["tct_mean_s"]
    return np.logical_and.reduce([sound(runs[place, n]["tct_mean_s"], free) for n in names])


def with_infinite(**arms: Arm) -> dict[str, Arm]:
    return {"infinite": INFINITE, **arms}
