"""Direct search for policies that decide together: CMA-ES over their numbers, judged by whole simulated runs.

Order, admission and eviction act through each other and through the arrivals that they cause, and a decision shows in
completion times minutes later: so a candidate is scored by what it does to whole runs, against a reference rule on the
same runs (common random numbers). With r = candidate / reference over the episodes of a scenario,

    cost = mean over scenarios of  mean log r(mean TCT)  +  P95_WEIGHT * max(0, mean log r(P95 TCT))

Every generation draws new arrangements, so that none is learned by heart; every few generations the search's mean is
judged on validation sessions. The best of many such judgements is best by luck, too: so the start and the `FINAL` best
are judged once more, on four times as many other arrangements, and what is best there is kept, be it the start. What
learned one decision otherwise (`SearchConfig.trained`) is tried there in the place of what was found for it.

The numbers of generation g follow from the seed and from the costs before it: a journal of costs is all that is needed
to resume.

Hansen, "The CMA Evolution Strategy: A Tutorial", 2016 (the package `cma`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.experiments import pool
from saga_rl.files import atomic
from saga_rl.learn.search.parameter_vector import ParameterVector
from saga_rl.learn.search.scenarios import Scenario
from saga_rl.policies.base import PolicySet
from saga_rl.policies.learned.checkpoint import load_checkpoint
from saga_rl.policies.presets import from_specs
from saga_rl.policies.registry import make
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig

P95_WEIGHT = 0.5
FINAL, FINAL_CHECKS = 3, 4
SLOW = 6.0
"""A run is stopped at so many times the reference's length; what is unfinished then counts up to there."""


@dataclass(frozen=True)
class SearchConfig:
    decisions: tuple[str, ...] = ("eviction", "ordering", "admission")
    units: int = 0
    generations: int = 40
    population: int = 16
    episodes: int = 2
    """Of each scenario and candidate, a generation."""
    sigma: float = 0.25
    check_every: int = 4
    checks: int = 4
    """Validation episodes of each scenario."""
    seed: int = 0
    others: Mapping[str, str] = field(default_factory=dict)
    """Specs of the decisions that are not searched."""
    reference: Mapping[str, str] = field(default_factory=dict)
    """Specs of the rule to beat."""
    start: tuple[float, ...] = ()
    """Numbers to begin with; empty: the rules of `vector.START`."""
    trained: Mapping[str, str] = field(default_factory=dict)
    """By searched decision the folder of a checkpoint that was trained otherwise: all of them together are tried in the
    place of what was found, in the final judgement."""

    def vector(self) -> ParameterVector:
        return ParameterVector(tuple(self.decisions), self.units)  # type: ignore[arg-type]

    def begin(self) -> NDArray[np.float64]:
        return np.array(self.start) if self.start else self.vector().start()


@dataclass(frozen=True)
class Found:
    theta: NDArray[np.float64]
    validation_cost: float
    """Of the final judgement."""
    start_cost: float
    """The same, of the rules that the search started from."""
    searched_cost: float
    """The same, of `theta` alone."""
    adopted: bool
    """Whether `SearchConfig.trained` serves better in its place: then `validation_cost` is of both together."""
    runs: int
    """Simulated episodes spent, references included."""
    curve: list[dict[str, float]]
    """Of the generations that were checked: `validation` cost of the search's mean, `train`: of the median candidate
    (none was made in the last one)."""


def outcome(trace: Trace, config: SimConfig, policies: PolicySet, horizon_s: float = np.inf) -> tuple[float, ...]:
    """(mean TCT, P95 TCT, end of the last session), s. Unfinished sessions count from their begin to the horizon."""
    result = simulate(trace, replace(config, horizon_s=horizon_s), policies, slo=False)
    done = result.steps["done_s"]
    begin = np.full(trace.n_sessions, np.nan)
    np.fmin.at(begin, trace.steps.session, result.steps["ready_s"])
    tct = np.where(np.isfinite(result.tct_s), result.tct_s, horizon_s - np.where(np.isfinite(begin), begin, 0.0))
    return float(tct.mean()), float(np.quantile(tct, 0.95)), float(np.nanmax(done))


class Judge:
    """Costs of candidates on scenarios; references are run once an episode and kept."""

    def __init__(self, scenarios: Sequence[Scenario], config: SearchConfig) -> None:
        self.scenarios, self.config, self.vector = scenarios, config, config.vector()
        self._kept: dict[tuple[int, int], tuple[Trace, tuple[float, ...]]] = {}

    def reference(self, scenario: int, seed: int) -> tuple[Trace, tuple[float, ...]]:
        if (scenario, seed) not in self._kept:
            if len(self._kept) > 4096:
                self._kept.clear()
            trace = self.scenarios[scenario].episode(seed)
            self._kept[scenario, seed] = trace, outcome(trace, self.scenarios[scenario].config, from_specs(
                dict(self.config.reference)))
        return self._kept[scenario, seed]

    def ratios(self, theta: NDArray[np.float64], seeds: Sequence[int], trained: bool = False) -> NDArray[np.float64]:
        """(scenarios, seeds, 2) log of (mean, P95) TCT over the reference's. trained: `SearchConfig.trained` in place
        of the decisions of `theta` that it names."""
        policies = self.vector.policies(theta, self.config.others)
        if trained:
            policies = replace(policies, **{
                s: make(s, f"learned:{self.config.trained[s]}") for s in self.vector.decisions
                                            if s in self.config.trained})
        out = np.zeros((len(self.scenarios), len(seeds), 2))
        for a, scenario in enumerate(self.scenarios):
            for k, seed in enumerate(seeds):
                trace, (mean, p95, end) = self.reference(a, seed)
                got = outcome(trace, scenario.config, policies, SLOW * end)
                out[a, k] = np.log(got[0] / mean), np.log(got[1] / p95)
        return out

    def cost(self, theta: NDArray[np.float64], seeds: Sequence[int], trained: bool = False) -> float:
        return total_cost(self.ratios(theta, seeds, trained))


def total_cost(ratios: NDArray[np.float64]) -> float:
    mean, p95 = ratios[:, :, 0].mean(axis=1), ratios[:, :, 1].mean(axis=1)
    return float((mean + P95_WEIGHT * np.maximum(p95, 0.0)).mean())


_JUDGES: dict[str, Judge] = {}


def _begin(train: Sequence[Scenario], validation: Sequence[Scenario], config: SearchConfig) -> None:
    _JUDGES["train"], _JUDGES["validation"] = Judge(train, config), Judge(validation, config)


def _cost(where: str, theta: NDArray[np.float64], seeds: Sequence[int], trained: bool = False) -> float:
    return _JUDGES[where].cost(theta, seeds, trained)


def search(train: Sequence[Scenario], validation: Sequence[Scenario], config: SearchConfig, journal: Path | None = None,
           jobs: pool.Jobs = 2, on_generation: Callable[[int, dict[str, float]], None] = lambda *_: None) -> Found:
    """Minimise the cost; deterministic from the config whatever `jobs` is. An existing `journal` of the same config is
    continued. Raises `UserError` for a journal of another search."""
    import cma

    vector = config.vector()
    es = cma.CMAEvolutionStrategy(config.begin(), config.sigma, {
        "seed": config.seed + 1, "popsize": config.population, "verbose": -9, "CMA_diagonal": vector.size > 60})
    lines = _read(journal, config, train)
    runs, curve = 0, []
    checked: list[tuple[float, int, NDArray[np.float64]]] = []
    checks = [10_000_000 + k for k in range(config.checks)]
    with pool.workers(jobs, _begin, train, validation, config) as executor:
        pool.result(pool.submit(executor, pool.warm, False))  # compiled once, not by every worker side by side
        for g in range(config.generations + 1):
            line: dict[str, Any] = dict(lines[g]) if g < len(lines) else {}
            seeds = [config.seed * 1_000_000 + g * config.episodes + k for k in range(config.episodes)]
            mean = config.begin() if g == 0 else np.asarray(es.result.xfavorite, float)
            check = g % config.check_every == 0 or g == config.generations
            thetas = [np.asarray(x, float) for x in es.ask()] if g < config.generations else []
            unknown = check and line.get("validation") is None
            waiting = [] if line.get("costs") or not thetas else [
                pool.submit(executor, _cost, "train", theta, seeds) for theta in thetas]
            judged = pool.submit(executor, _cost, "validation", mean, checks) if unknown else None
            if waiting or judged:  # of a search with fewer generations the last line holds no costs
                line = {"costs": [pool.result(w) for w in waiting] or line.get("costs", []),
                        "validation": pool.result(judged) if judged else line.get("validation")}
                _note(journal, lines, g, line)
            if not thetas:
                line["costs"] = []
            if thetas:
                es.tell(thetas, line["costs"])
            runs += (len(thetas) + 1) * len(seeds) * len(train) + (config.checks * len(validation) if check else 0)
            if check:
                checked.append((line["validation"], g, mean))
                curve.append({"generation": g, "validation": line["validation"]}
                             | ({"train": float(np.median(line["costs"]))} if line["costs"] else {}))
            on_generation(g, {"validation": min(checked)[0], "train": float(np.median(line["costs"] or [np.nan])),
                              "sigma": float(es.sigma), "runs": float(runs)})
        finalists = [checked[0], *sorted(checked[1:])[:FINAL]]
        seeds = [20_000_000 + k for k in range(FINAL_CHECKS * config.checks)]
        last = [pool.submit(executor, _cost, "validation", theta, seeds) for *_, theta in finalists]
        costs = [pool.result(judged) for judged in last]
        searched, at = min(zip(costs, range(len(costs)), strict=True))
        beside = np.inf
        if config.trained:
            beside = pool.result(pool.submit(executor, _cost, "validation", finalists[at][2], seeds, True))
    runs += (len(finalists) + bool(config.trained)) * len(seeds) * len(validation)
    return Found(finalists[at][2], min(beside, searched), costs[0], searched, beside < searched, runs, curve)


def _identity(config: SearchConfig, train: Sequence[Scenario]) -> dict[str, Any]:
    from saga_rl.policies.features import feature_hash

    rest = {k: v if not isinstance(v, Mapping) else dict(v) for k, v in vars(config).items()
            if k not in ("generations", "trained")}
    weights = {s: load_checkpoint(spec.removeprefix("learned:")).sha256 for s, spec in config.others.items()
               if spec.startswith("learned:")}
    return json.loads(json.dumps(rest | {"arenas": [a.described() for a in train],
                                         "feature_hash": feature_hash(*config.decisions)}
                                 | ({"weights": weights} if weights else {})))


def _read(journal: Path | None, config: SearchConfig, train: Sequence[Scenario]) -> list[dict[str, Any]]:
    if journal is None:
        return []
    identity = _identity(config, train)
    if not journal.exists():
        journal.write_text(json.dumps(identity) + "\n")
        return []
    text = journal.read_text()
    whole = text[:text.rfind("\n") + 1]
    if whole != text:  # killed while it wrote
        journal.write_text(whole)
    first, *rest = whole.splitlines() or ["{}"]
    if json.loads(first) != identity:
        raise UserError(journal, "is the journal of another search", "name another --run-dir, or delete it")
    return [json.loads(line) for line in rest]


def _note(journal: Path | None, lines: list[dict[str, Any]], g: int, line: dict[str, Any]) -> None:
    """Keep the line of generation g, in place of the one that is there."""
    new = g == len(lines)
    lines[g:g + 1] = [line]
    if journal is None:
        return
    if new:
        with journal.open("a") as f:
            f.write(json.dumps(line) + "\n")
        return
    head = journal.read_text().splitlines()[0]
    with atomic(journal) as tmp:
        tmp.write_text("\n".join([head, *map(json.dumps, lines)]) + "\n")
