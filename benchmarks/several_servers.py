"""What several API servers cost in placement: the same sessions behind one server, and behind N that share a table, or
that draw homes from names.

    python benchmarks/several_servers.py [--workload swe-bench] [--sessions 60] [--engines 4] [--alive 24 ...]
        [--servers 2 ...] [--seeds 3] [--policy saga+] [--placement saga:theta=100] [--drawn] [--json FILE]

vLLM's real schedulers in virtual time (`saga_rl.runtime.emulate.virtual`), each request through a server drawn from its
number. Figures: mean completion time and its P95 over one server's on the same sessions; geometric mean over seeds,
least and most. They do not depend on this machine's speed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from typer import Option

from saga_rl.aeg.generators import generate
from saga_rl.files import check_target, write_json
from saga_rl.learn.script import check_range, run_script
from saga_rl.policies.presets import PRESETS, from_specs
from saga_rl.provenance import provenance
from saga_rl.runtime.emulate.virtual import VirtualConfig, play
from saga_rl.sim.config import SimConfig

FIGURES = ("tct_mean_s", "tct_p95_s")


def ratios(trace: Any, sim: SimConfig, policy: dict[str, str], servers: int, table: bool,
           one: dict[str, float]) -> list[float]:
    """Of each of `FIGURES`, with so many servers over `one`, the figures of one server."""
    figures = play(trace, VirtualConfig(sim, servers=servers, shared_table=table), from_specs(policy)).figures()
    return [figures[name] / one[name] for name in FIGURES]


def main(
    workload: Annotated[str, Option(help="Generated workload.")] = "swe-bench",
    sessions: Annotated[int, Option(help="Of a run.")] = 60,
    engines: Annotated[int, Option(help="Behind the servers.")] = 4,
    alive: Annotated[list[int] | None, Option(help="Sessions at once; 24 and 48 unless given.")] = None,
    servers: Annotated[list[int] | None, Option(help="API servers; 2 and 4 unless given.")] = None,
    seeds: Annotated[int, Option(help="Sets of sessions.")] = 3,
    policy: Annotated[str, Option(help="Preset.")] = "saga+",
    placement: Annotated[str, Option(help="In place of the preset's.")] = "saga:theta=100",
    drawn: Annotated[bool, Option("--drawn", help="Also servers that share no table.")] = False,
    json: Annotated[Path | None, Option(help="File for the figures.")] = None,
) -> None:
    """Compare one API server with several."""
    check_range("--seeds", seeds, 1, 100)
    check_range("--sessions", sessions, 1)
    check_range("--engines", engines, 2, 1024)
    if json is not None:
        check_target(json)
    specs = PRESETS[policy] | {"placement": placement}
    shown = Table(title=f"{workload}, {sessions} sessions, {engines} engines, {policy}, {placement}: over one server")
    for column in ("alive", "servers", "homes", "mean completion", "P95"):
        shown.add_column(column, justify="right")
    rows = []
    for n in alive or [24, 48]:
        sim = SimConfig(workers=engines, population=n, end_hint=False)
        found: dict[tuple[int, bool], list[list[float]]] = {}
        for seed in range(seeds):
            trace = generate(workload, seed, sessions=sessions)
            one = play(trace, VirtualConfig(sim), from_specs(specs)).figures()
            for k in servers or [2, 4]:
                for table in (True, False) if drawn else (True,):
                    found.setdefault((k, table), []).append(ratios(trace, sim, specs, k, table, one))
        for (k, table), each in found.items():
            logs = np.log(np.array(each))
            cells = [f"{np.exp(c.mean()):.4f} ({np.exp(c.min()):.3f} - {np.exp(c.max()):.3f})" for c in logs.T]
            rows.append({"alive": n, "servers": k, "table": table, "ratios": each})
            shown.add_row(str(n), str(k), "shared" if table else "drawn", *cells)
    Console(width=140).print(shown)
    if json is not None:
        write_json(json, {"figures": FIGURES, "rows": rows, "policy": specs, "workload": workload, "sessions": sessions,
                          "engines": engines, "seeds": seeds, "provenance": provenance(seed=0, trace=None)})


if __name__ == "__main__":
    run_script(main)
