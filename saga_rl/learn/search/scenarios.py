"""Where a search judges its candidates: sessions to draw from, how they arrive, and a cluster.

A person writes a scenario as a trace file, or `workload:NAME` for the sessions of a named workload, and behind it
`@ends` (clients announce the end of a session; else nobody does) and `@load=X`: open arrivals instead of a closed
population, at X times the trace's own rate or, of a workload, at X times its peak (`learn.judge.points.peak`) for each
worker. A closed population shows what a policy loses; how long sessions wait for others, and so what their order is
worth, shows in open arrivals only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from saga_rl.aeg.io import read_trace
from saga_rl.aeg.trace import Trace
from saga_rl.aeg.validate import check_fits
from saga_rl.env.episodes import arrange, resample, sim_config
from saga_rl.errors import UserError
from saga_rl.learn.judge.sessions import arranged
from saga_rl.learn.judge.workloads import Workload, workload
from saga_rl.learn.script import file_label
from saga_rl.provenance import sha256
from saga_rl.sim.config import SimConfig

WORKLOAD = "workload:"
LIMITS = ("block_tokens", "max_num_seqs", "max_batched_tokens", "expiry_s")
"""Of `SimConfig`: told where they are not the usual ones."""
OPEN_ROUNDS = 8
"""Sessions of an episode with open arrivals for each that is alive at once at P1: a queue takes time to build up."""


@dataclass(frozen=True)
class Scenario:
    """One place to be judged at; `episode(seed)` is the same for every candidate."""

    name: str
    trace: Trace
    config: SimConfig
    sessions: int
    """Of one episode."""
    part: str = ""
    """Of the workload, where its own arrangements are played: `arranged`."""
    workload: Workload | None = None
    per_min: float = 0.0
    """Sessions a minute, all workers; 0 = as many alive as `config.population`, or the trace's own arrivals."""

    def described(self) -> str:
        """One line that says what the scenario is."""
        c = self.config
        alive = f"{self.per_min:.2f} arriving a minute" if self.per_min else f"{c.population or 'open'} alive"
        usual = sim_config(c.kv_tokens)
        own = [f"{name} {getattr(c, name):g}" for name in LIMITS if getattr(c, name) != getattr(usual, name)]
        return ", ".join([f"{self.name}: {self.sessions} sessions an episode", alive,
                          f"{c.kv_tokens:,} KV tokens on each of {c.workers}",
                          *(["ends announced"] if c.end_hint else []),
                          *([] if c.profile == usual.profile else [f"costs of {c.profile.name}"]), *own])

    def episode(self, seed: int) -> Trace:
        if self.workload is not None:
            return arranged(self.workload, self.part, seed, self.sessions, self.per_min)
        return resample(self.trace, np.random.default_rng(seed), self.sessions)


@dataclass(frozen=True)
class Wanted:
    """A scenario as it was written."""

    source: str
    ends: bool = False
    load: float = 0.0

    @property
    def workload(self) -> str:
        """Its name; empty for a file."""
        return self.source.removeprefix(WORKLOAD) if self.source.startswith(WORKLOAD) else ""

    def origin(self) -> str:
        """What its sessions are determined by, for a card."""
        return f"workload {self.workload}" if self.workload else f"sha256 {sha256(Path(self.source))[:12]}"


def wanted(text: str) -> Wanted:
    """Raises `UserError` for an option that there is not, or a load that is no positive number."""
    source, *options = text.split("@")
    ends, load = False, 0.0
    for option in options:
        key, _, value = option.partition("=")
        if option in ("ends", "hidden"):  # hidden: how command lines said it when announced ends were the default
            ends = option == "ends"
        elif key == "load":
            try:
                load = float(value)
            except ValueError:
                load = np.nan
            if not 0 < load < np.inf:
                raise UserError(f"scenario {text!r}", f"its load is {value!r}",
                                "write a positive number, as in @load=1.2")
        else:
            raise UserError(f"scenario {text!r}", f"has an option {option!r}", "choose from @ends and @load=NUMBER")
    return Wanted(source, ends, load)


def scenario(asked: Wanted, part: str, population: int, sessions: int, cluster: SimConfig) -> Scenario:
    """The scenario of `part` of a workload, or of all sessions of a file, on `cluster`. population: alive at once on
    each worker (0, or with a load: open arrivals); sessions: of an episode, 0 = `OPEN_ROUNDS` times the population of
    all workers with a load (a workload of phases: one round of them), else three times; never more than there are.
    Raises `UserError`."""
    name, workload_ = asked.workload, None
    if name:
        workload_ = workload(name, not asked.ends)
        trace = workload_.split(part)
    else:
        trace = read_trace(Path(asked.source))
    check_fits(trace, kv_tokens=cluster.kv_tokens)
    workers = cluster.workers
    config = replace(cluster, population=0 if asked.load else population * workers, end_hint=asked.ends)
    if not asked.load:
        n = min(sessions or 3 * population * workers or trace.n_sessions, trace.n_sessions)
        return Scenario(name or file_label(Path(asked.source)), trace, config, n)
    n = min(sessions or OPEN_ROUNDS * population * workers or trace.n_sessions, trace.n_sessions)
    if workload_ is None:
        quick = arrange(trace, np.arange(trace.n_sessions), trace.sessions.arrival_s / asked.load)
        return Scenario(f"{file_label(Path(asked.source))} x {asked.load:g}", quick, config, n)
    from saga_rl.learn.judge.points import peak

    per_min = asked.load * peak(name)["per_worker_per_min"] * workers
    if not sessions and workload_.definition.kind == "phases":
        n = min(workload_.default_sessions("P3", 1, per_min), trace.n_sessions)
    return Scenario(f"{name} at {asked.load:g} of its peak", trace, config, n, part, workload_, per_min)
