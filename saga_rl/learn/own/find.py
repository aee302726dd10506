"""The searches: from the shipped checkpoint, and from rules found by hand, whose basins of order lie apart."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import arrange
from saga_rl.errors import UserError
from saga_rl.experiments.pool import Jobs
from saga_rl.experiments.progress import EVERY_S
from saga_rl.learn.own.settings import SEARCH_ROUNDS, SHIPPED, Settings
from saga_rl.learn.own.world import World, of_an_episode
from saga_rl.learn.script import progress
from saga_rl.learn.search.checkpoints import left_to_search, save_set
from saga_rl.learn.search.cma_es import Found, SearchConfig, search
from saga_rl.learn.search.parameter_vector import START, ParameterVector
from saga_rl.learn.search.scenarios import Scenario
from saga_rl.policies.base import Decision
from saga_rl.policies.learned.checkpoint import load_parts
from saga_rl.policies.parameters import DEFAULT_PRESET
from saga_rl.policies.presets import PRESETS

FOUND = "found"
SIGMA = 0.1
RULES: dict[str, dict[str, dict[str, float]]] = {
    "rules": START | {"eviction": {"until_log": 1.0}},
    "rules, least served first": START | {"eviction": {"until_log": 1.0}, "ordering": {"attained_log": 1.0}},
}
"""By hand: what is needed again last goes first; the oldest session is served first, or the one that had least."""
Log = Callable[[str, int, dict[str, float]], None]


@dataclass(frozen=True)
class Start:
    """Where one search begins. decisions: what is searched from there; others: specs of the rest."""

    name: str
    decisions: tuple[Decision, ...]
    others: dict[str, str]
    theta: NDArray[np.float64]


def shipped() -> Path | None:
    """The checkpoint that ships, if it is there and can be read with this code."""
    try:
        return SHIPPED if SHIPPED.is_dir() and load_parts(SHIPPED) else None
    except UserError:
        return None


def starts(s: Settings) -> list[Start]:
    """As many as are paid for; the shipped checkpoint's first, if it is there."""
    beside = {k: v for k, v in PRESETS[DEFAULT_PRESET].items() if k not in s.decisions}
    out = []
    folder = shipped()
    if folder is not None:
        there = [d for d in s.decisions if d in load_parts(folder)]
        left, others = left_to_search(folder, there, 0, beside)
        searched = tuple(d for d in s.decisions if d in left or d not in there)
        parts = [ParameterVector((d,)).of_checkpoints(folder) if d in left else ParameterVector((d,)).start()
                 for d in searched]
        out.append(Start("the shipped checkpoint", searched, others, np.concatenate(parts)))
    for name, rules in RULES.items():
        out.append(Start(name, s.decisions, beside, ParameterVector(s.decisions).start(rules)))
    return out[:s.spending.starts]


def scenarios(s: Settings, world: World, parts: dict[str, Trace]) -> dict[str, Scenario]:
    """Of training and of validation sessions."""
    out = {}
    for part in ("train", "validation"):
        trace = parts[part]
        n = of_an_episode(world.pressure.population, SEARCH_ROUNDS, trace.n_sessions)
        if world.load:
            trace = arrange(trace, np.arange(trace.n_sessions), trace.sessions.arrival_s / world.load)
        out[part] = Scenario(f"{part} sessions", trace, world.sim(), n)
    return out


def find(s: Settings, world: World, parts: dict[str, Trace], generations: int, out: Path, jobs: Jobs, console: Console,
         log: Log) -> list[tuple[Start, Found]]:
    """Search from every start, and write the best of all to `out`/found. A journal of each stands in `out`; what is
    there is not run again. log: start, generation, curves."""
    places = scenarios(s, world, parts)
    begun = starts(s)
    results: list[tuple[Start, Found, SearchConfig]] = []
    for i, start in enumerate(begun):
        spent = s.spending
        config = SearchConfig(decisions=start.decisions, generations=generations, population=spent.candidates,
                              episodes=spent.episodes, sigma=SIGMA, checks=spent.checks, seed=s.seed,
                              others=start.others, reference=PRESETS[DEFAULT_PRESET],
                              start=tuple(start.theta.tolist()))
        with Left(console, f"search {i + 1} of {len(begun)}, from {start.name}", generations + 2) as left:
            def on_generation(g: int, curves: dict[str, float], left: Left = left, start: Start = start) -> None:
                log(start.name, g, curves)
                left.done(g + 1, f"best on validation sessions {curves['validation']:+.3f}")

            found = search([places["train"]], [places["validation"]], config, out / f"search-{i + 1}.jsonl", jobs,
                           on_generation)
            left.done(generations + 2, f"validation cost {found.validation_cost:+.3f}")
        results.append((start, found, config))
    best = min(range(len(results)), key=lambda i: results[i][1].validation_cost)
    start, found, config = results[best]
    shutil.rmtree(out / FOUND, ignore_errors=True)
    save_set(out / FOUND, found, config, [p.described() for p in places.values()],
             f"found by `saga-rl learn` from {start.name}, the best of {len(results)} searches", s.seed)
    return [(start, found) for start, found, _ in results]


class Left:
    """Progress of one search with the time left: a bar on a terminal, else a line every few seconds."""

    def __init__(self, console: Console, what: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.what, self.total, self._clock = console, what, total, clock
        self._began = self._said = clock()
        self.bar = progress(console) if console.is_terminal else None
        if self.bar is not None:
            self._job = self.bar.add_task(what, total=total, note="the simulator is loaded")

    def __enter__(self) -> Left:
        if self.bar is not None:
            self.bar.start()
        else:
            self._say(self.what)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def done(self, n: int, note: str) -> None:
        """So many generations are done."""
        left = (self._clock() - self._began) / max(n, 1) * (self.total - n)
        note += f", about {in_words(left)} left of this search" if n < self.total else ""
        if self.bar is not None:
            self.bar.update(self._job, completed=n, note=note)
        elif n == self.total or self._clock() - self._said >= EVERY_S:
            self._say(f"  [{n}/{self.total}] {note}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._said = self._clock()


def in_words(seconds: float) -> str:
    """`40 s`, `12 min`, `1 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def summaries(results: Sequence[tuple[Start, Found]]) -> list[dict[str, object]]:
    """For `result.json`: what each search came to."""
    return [{"from": start.name, "searched": list(start.decisions), "validation_cost": found.validation_cost,
             "start_cost": found.start_cost, "runs": found.runs, "curve": found.curve} for start, found in results]
