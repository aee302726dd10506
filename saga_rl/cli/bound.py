"""`saga-rl bound`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from saga_rl.errors import UserError
from saga_rl.files import check_target, write_json
from saga_rl.policies.parameters import DEFAULT_PROFILE, EXPIRY_S
from saga_rl.provenance import provenance

DEFAULT = "lru,lru-protect,wa-lru,wa-lru-literal"


def _bound(
    trace: Annotated[Path, typer.Argument(help="A trace file (see `saga-rl trace`).")],
    kv_tokens: Annotated[int, typer.Option(help="KV pool of the worker, tokens; 0 = the profile's.")] = 0,
    eviction: Annotated[str, typer.Option(help="Eviction policies to compare, or learned:FOLDER, with commas "
                                          "between. A wrong name lists all.")] = DEFAULT,
    profile: Annotated[str, typer.Option(help="Cost profile (`saga-rl profile list`), or a JSON file.")]
    = DEFAULT_PROFILE,
    population: Annotated[int, typer.Option(help="Closed population: sessions at once; 0 = the trace's arrivals.")] = 0,
    sessions: Annotated[int, typer.Option(help="Only so many sessions, drawn with --seed; 0 = all.")] = 0,
    seed: Annotated[int, typer.Option(help="Draws the sessions.")] = 0,
    end_hint: Annotated[bool, typer.Option(help="Clients say which step is their last.")] = False,
    expiry_s: Annotated[float, typer.Option(help="Idle seconds after which a session is presumed ended.")] = EXPIRY_S,
    json: Annotated[Path | None, typer.Option(help="Write the result there.")] = None,
) -> None:
    """Tokens computed again by each eviction policy, over Bélády's on the same reference string (see
    docs/explanation/bound.md)."""
    import numpy as np

    from saga_rl.aeg.io import read_trace
    from saga_rl.aeg.quality import quality
    from saga_rl.policies.registry import make, split_specs
    from saga_rl.sim.config import SimConfig
    from saga_rl.sim.cost.profile import load_profile
    from saga_rl.sim.openloop.bound import LOW_PRESSURE, bound

    check_target(json)
    specs = split_specs(eviction)
    for spec in specs:
        make("eviction", spec)  # a mistyped name is told before any work
    if sessions < 0:
        raise UserError("--sessions", f"is {sessions}", "give 0 (all) or more")
    costs = load_profile(profile)
    config = SimConfig(kv_tokens=kv_tokens or costs.kv_tokens, profile=costs, population=population, end_hint=end_hint,
                       expiry_s=expiry_s)
    loaded = read_trace(trace)
    if 0 < sessions < loaded.n_sessions:
        loaded = loaded.select(np.random.default_rng(seed).choice(loaded.n_sessions, sessions, replace=False))
    err = Console(stderr=True)
    with err.status(f"{loaded.n_sessions} sessions, {loaded.n_steps} steps") as status:
        result = bound(loaded, config, specs, status.update)
    if json:
        write_json(json, {**result, "simulated": True, "trace_quality": quality(loaded),
                          "provenance": provenance(seed=seed, trace=trace, profile=costs.name)})
    _show(trace.name, result)
    if result["low_pressure"]:
        err.print(f"Bélády computes less than {LOW_PRESSURE:.0%} of the first-time tokens again: too little pressure "
                  "for ratios to mean anything; lower --kv-tokens or raise the load", style="yellow", markup=False)


def _show(name: str, result: dict[str, Any]) -> None:
    table = Table(title=f"{name}: tokens computed again, one reference string, {result['capacity_tokens']:,} KV tokens")
    for column in ("policy", "tokens", "over Bélády", "over first-time tokens"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    first = max(result["first_time_tokens"], 1)
    rows = {"belady (bound)": {"recomputed_tokens": result["belady_recomputed_tokens"], "ratio": None},
            **result["policies"]}
    for policy, row in rows.items():
        table.add_row(policy, f"{row['recomputed_tokens']:,}", "-" if row["ratio"] is None else f"{row['ratio']:.3f}",
                      f"{row['recomputed_tokens'] / first:.3f}")
    Console().print(table)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("bound")(_bound)
