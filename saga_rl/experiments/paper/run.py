"""The reproduction from settings to results: choose the pressure, run what is missing, judge. What is there is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from saga_rl.errors import UserError, unknown_name
from saga_rl.experiments import journal, pool
from saga_rl.experiments.cell import Cell, Result, Spec
from saga_rl.experiments.journal import Head, Kind
from saga_rl.experiments.paper import cells
from saga_rl.experiments.paper import values as paper
from saga_rl.experiments.paper.arms import ARMS
from saga_rl.experiments.paper.judge import judge, reached
from saga_rl.experiments.paper.tables import TABLES, Row, at_pressure
from saga_rl.experiments.runner import Runner
from saga_rl.experiments.simulated import Processes
from saga_rl.policies.presets import PRESETS, preset
from saga_rl.sim.cost.profile import load_profile

KIND = Kind("saga-rl reproduce", "reproduction")
PROFILES = ("a100-llama3.0-70b-tp4", "a100-llama3-70b-tp4")
"""The paper's machine and model: fitted, and with round constants that were assumed before there was a fit."""
OURS = ("likely", "auto")
CROWDS = (8, 16, 24, 32, 48)
"""Sessions alive on a worker among which completions a minute are at their most."""
ALIVE = (4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16)
"""Sessions alive on a worker among which the pressure is chosen."""


@dataclass(frozen=True)
class Settings:
    """tables: names of `TABLES`. profiles: of the cluster. ours: presets and checkpoint folders in the tables' places
    for SAGA. seeds: arrangements, each with tasks of its own; `quick`: fewer tasks."""

    tables: tuple[str, ...] = tuple(TABLES)
    profiles: tuple[str, ...] = PROFILES
    ours: tuple[str, ...] = OURS
    seeds: int = 5
    quick: bool = False

    def check(self) -> None:
        """Raise `UserError` for what does not exist or is out of range."""
        for name in self.tables:
            if name not in TABLES:
                raise unknown_name("table", name, TABLES)
        for name in self.profiles:
            load_profile(name)
        for name in self.ours:
            preset(name)
            if name in ARMS and name not in PRESETS:
                raise UserError("--policy", f"{name} is a system of the paper here, not the folder of that name",
                                f"give ./{name}")
        if self.seeds < 1:
            raise UserError("--seeds", f"is {self.seeds}", "give at least 1; fewer than 3 give no interval")


@dataclass
class Outcome:
    """points: by profile and workload, the sessions alive on a worker and LRU over Bélády there. rows: by profile and
    table, each with the row's name, the paper's value and the verdict."""

    settings: Settings
    code: str
    points: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    rows: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)


def run(s: Settings, out: Path, jobs: pool.Jobs, fresh: bool, console: Console) -> Outcome:
    """The whole reproduction in the folder `out`. Raises `UserError`; finished cells are then kept."""
    s.check()
    o = Outcome(s, cells.code())
    ours = journal.state_of(out, KIND) == "ours"
    if ours and fresh:
        console.print(f"the old folder is now {journal.move_aside(out, KIND)}", markup=False, soft_wrap=True)
    elif ours:
        journal.check_same(out, KIND, Head(o.code))
    out.mkdir(exist_ok=True)
    with pool.workers(jobs) as executor, journal.opened(out, KIND, Head(o.code)) as opened:
        runner = Runner(opened, Processes(executor, cells.run_cells), console)
        for profile in s.profiles:
            _one_profile(o, profile, runner)
    return o


def _one_profile(o: Outcome, profile: str, runner: Runner) -> None:
    s = o.settings

    def cell(spec: Spec, seed: int) -> Cell:
        few = {"tasks": 160} if s.quick and spec["what"] != "overhead" and "tasks" not in spec else {}
        return cells.cell(spec | few | {"seed": seed, "profile": profile}, o.code)

    wanted = {w for name in s.tables for w in TABLES[name].wants}
    scouted = runner.run(f"pressure, {profile}", {(w, n): cell(at_pressure(w, n), 0) for w in sorted(wanted)
                                                    for n in ALIVE})
    o.points[profile] = points = {w: choose(w, {n: scouted[w, n] for n in ALIVE}) for w in sorted(wanted)}
    peak = _peak(o, profile, runner, cell)
    alive = {w: int(p["alive"]) for w, p in points.items()}
    rows = {name: TABLES[name].rows(alive, s.ours) for name in s.tables}
    runs = {(name, r.name, part, seed): cell(_at_rate(spec, peak), seed) for name, table in rows.items()
            for r in table for part, spec in r.runs.items() for seed in range(s.seeds)}
    found = runner.run(f"tables, {profile}", runs)
    o.rows[profile] = {name: [_judged(name, r, found, s.seeds) for r in table] for name, table in rows.items()}


def choose(workload: str, scouted: dict[int, Result]) -> dict[str, Any]:
    """Sessions alive on a worker at which LRU over Bélády is nearest the paper's value, and what it is there. A
    pressure so low that the ratio is noise is passed over. Raises `UserError` where all are."""
    target = paper.OVER_BELADY["LRU"][list(paper.TASKS).index(workload)]
    ratios = {n: r["ratio"]["LRU"] for n, r in scouted.items() if not r["low_pressure"] and r["ratio"]["LRU"]}
    if not ratios:
        raise UserError(workload, "never fills the pool", "name a profile with a smaller one")
    best = min(ratios, key=lambda n: abs(ratios[n] - target))
    return {"alive": best, "lru_over_belady": ratios[best], "paper": target}


def _peak(o: Outcome, profile: str, runner: Runner, cell: Any) -> float:
    """BurstGPT's peak: the most tasks a minute that SAGA completes with any of `CROWDS` sessions alive on a worker."""
    if not {"deadlines", "headline"} & set(o.settings.tables):
        return 0.0
    spec = {"what": "closed", "workload": "burstgpt", "arm": "saga-read", "workers": paper.WORKERS}
    found = runner.run(f"peak, {profile}", {n: cell(spec | {"alive": n}, 0) for n in CROWDS})
    return max(float(found[n]["throughput_sessions_per_min"]) for n in CROWDS)


def _at_rate(spec: Spec, peak: float) -> Spec:
    """The spec with its arrivals a minute in place of a share of the peak."""
    if "rate_of_peak" not in spec:
        return spec
    return {k: v for k, v in spec.items() if k != "rate_of_peak"} | {"rate": round(spec["rate_of_peak"] * peak, 3)}


def _judged(table: str, row: Row, found: dict[tuple[str, str, str, int], Result], seeds: int) -> dict[str, Any]:
    values: list[float | None] = [] if row.why else [
        row.value({part: found[table, row.name, part, seed] for part in row.runs}) for seed in range(seeds)]
    said = reached(row.paper, values, row.less) if row.claim else judge(row.paper, values, row.why)
    return {"row": row.name, "paper": row.paper} | said
