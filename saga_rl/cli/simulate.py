"""`saga-rl simulate` and `saga-rl bound`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from saga_rl.files import check_target, write_json
from saga_rl.policies.parameters import DEFAULT_PROFILE, EXPIRY_S
from saga_rl.provenance import provenance

if TYPE_CHECKING:
    from saga_rl.policies.base import PolicySet


LISTED = "A wrong name lists all; docs/reference/policies.md says what each does."


def choose_policies(base: str, **specs: str | None) -> PolicySet:
    """The preset or checkpoint `base`, with the decisions that `specs` names replaced. Raises `UserError`."""
    from saga_rl.policies.base import DECISIONS
    from saga_rl.policies.presets import preset
    from saga_rl.policies.registry import make

    chosen = preset(base)
    for decision in DECISIONS:
        spec = specs.get(decision)
        if spec:
            chosen = replace(chosen, **{decision: make(decision, spec)})
    return chosen


def show_tenants(rows: list[dict[str, Any]]) -> None:
    """A line for each tenant, if there are several."""
    if len(rows) < 2:
        return
    table = Table(title="tenants", caption="slowdown: TCT over the time that the session takes alone")
    for i, key in enumerate(rows[0]):
        table.add_column(key.replace("_", " "), justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*("-" if v is None else f"{v:,.3g}" if isinstance(v, float) and v < 1000 else
                        f"{v:,.0f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


def _simulate(
    trace: Annotated[Path, typer.Argument(help="A trace file (see `saga-rl trace`).")],
    policy: Annotated[str, typer.Option(help="Preset (lru, saga, saga+, likely, auto) or checkpoint folder; the "
                                        "options below replace its parts.")] = "lru",
    eviction: Annotated[str | None, typer.Option(help="Eviction policy, or learned:FOLDER. " + LISTED)] = None,
    placement: Annotated[str | None, typer.Option(help="Placement policy. " + LISTED)] = None,
    ordering: Annotated[str | None, typer.Option(help="Ordering policy. " + LISTED)] = None,
    admission: Annotated[str | None, typer.Option(help="Admission policy. " + LISTED)] = None,
    workers: Annotated[int, typer.Option(help="Equal workers, each with its own KV pool.")] = 1,
    kv_tokens: Annotated[int, typer.Option(help="KV pool of one worker, tokens; 0 = the profile's.")] = 0,
    profile: Annotated[str, typer.Option(help="Cost profile (`saga-rl profile list`), or a JSON file.")]
    = DEFAULT_PROFILE,
    population: Annotated[int, typer.Option(help="Closed population: sessions at once; 0 = the trace's arrivals.")] = 0,
    end_hint: Annotated[bool, typer.Option(help="Clients say which step is their last.")] = False,
    expiry_s: Annotated[float, typer.Option(help="Idle seconds after which a session is presumed ended.")] = EXPIRY_S,
    max_num_seqs: Annotated[int, typer.Option(help="Running slots of one worker, as vLLM's flag.")] = 256,
    horizon_s: Annotated[float | None, typer.Option(help="Stop there (simulated seconds); inf = never. Default: "
                                                    "4 x (last arrival + longest session alone).")] = None,
    prefix_caching: Annotated[bool, typer.Option(help="Engines keep blocks for later prompts; without, every request "
                                                 "computes its whole prompt.")] = True,
    cpu_tokens: Annotated[int, typer.Option(help="CPU tier beside each worker, KV tokens; 0 = none.")] = 0,
    cpu_eviction: Annotated[str, typer.Option(help="What the tier forgets first: lru or fifo.")] = "lru",
    offloading: Annotated[str, typer.Option(help="How the tier is used: ideal, vllm (as its OffloadingConnector "
                                            "does it), or lazy (it holds what the GPU lost).")] = "ideal",
    pcie_tokens_per_s: Annotated[float, typer.Option(help="KV between a worker and its tier.")] = 300_000.0,
    prefetch_tokens: Annotated[int, typer.Option(help="KV on its way from a tier ahead of its chain's return, at once; "
                                                 "0 = no prefetch.")] = 0,
    service_gap: Annotated[float | None, typer.Option(help="Tokens of service that a tenant may be ahead of the one "
                                                      "that had least and waits; holds for any policy.")] = None,
    kv_floor: Annotated[list[str] | None, typer.Option(help="[TENANT=]SHARE of each pool that others cannot evict; "
                                                       "repeat it. Without a name: every tenant not named.")] = None,
    afs_preempt: Annotated[float | None, typer.Option(help="Seconds of waiting after which a tenant with a lower Agent "
                                                      "Fair Share yields (SAGA: 0.5).")] = None,
    tool_names: Annotated[bool, typer.Option(help="The scheduler knows which tool a step called.")] = True,
    starve_s: Annotated[float, typer.Option(help="Seconds of waiting after which a request goes ahead of what the "
                                            "policies choose; `saga-rl serve` has 600.")] = math.inf,
    async_scheduling: Annotated[bool, typer.Option(help="Compose each iteration while the one before it runs, as vLLM "
                                                   "does on GPUs.")] = False,
    link_tokens_per_s: Annotated[float, typer.Option(help="KV that moves with a session to another worker; 0 = it is "
                                                     "computed again.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Recorded in the result; a run of one trace is deterministic.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the result there.")] = None,
) -> None:
    """Run a trace through the simulated cluster, tools' waits included, and report completion times."""
    from saga_rl.aeg.io import read_trace
    from saga_rl.aeg.quality import doubts, quality
    from saga_rl.policies.constraints import read_constraints
    from saga_rl.sim.cluster import check_runs, simulate, stated_horizon
    from saga_rl.sim.config import SimConfig
    from saga_rl.sim.cost.profile import load_profile

    check_target(json)
    costs = load_profile(profile)
    config = SimConfig(workers=workers, kv_tokens=kv_tokens or costs.kv_tokens, profile=costs, population=population,
                       end_hint=end_hint, expiry_s=expiry_s, max_num_seqs=max_num_seqs, cpu_tokens=cpu_tokens,
                       cpu_eviction=cpu_eviction, pcie_tokens_per_s=pcie_tokens_per_s, prefetch_tokens=prefetch_tokens,
                       link_tokens_per_s=link_tokens_per_s, tool_names=tool_names, starve_s=starve_s,
                       async_scheduling=async_scheduling, offloading=offloading, prefix_caching=prefix_caching,
                       constraints=read_constraints(service_gap, kv_floor, afs_preempt),
                       horizon_s=math.inf if horizon_s is None else horizon_s)
    chosen = choose_policies(policy, eviction=eviction, placement=placement, ordering=ordering, admission=admission)
    loaded = read_trace(trace)
    check_runs(loaded, config, chosen)
    err = Console(stderr=True)
    with err.status(f"simulating {loaded.n_sessions} sessions, {loaded.n_steps} steps on {workers} workers"):
        if horizon_s is None:
            config = replace(config, horizon_s=stated_horizon(loaded, config))
        result = simulate(loaded, config, chosen, seed)
    out = {**result.metrics, "policies": chosen.names(), "simulated": True, "trace_quality": quality(loaded),
           "provenance": provenance(seed=seed, trace=trace, profile=costs.name)}
    if json:
        write_json(json, out)
    table = Table(title=f"{trace.name}: simulated, {workers} x {config.kv_tokens:,} KV tokens, "
                  + ", ".join(chosen.names().values()))
    table.add_column("figure")
    table.add_column("value", justify="right")
    for key, value in result.metrics.items():
        if not isinstance(value, list):
            table.add_row(key, "-" if value is None else f"{value:,.3f}" if isinstance(value, float) else f"{value:,}")
    Console().print(table)
    show_tenants(result.metrics["tenants"])
    if doubt := doubts(loaded):
        err.print(doubt, style="yellow")
    for sentence in result.metrics["extrapolated"]:
        err.print(sentence, style="yellow")
    unfinished = loaded.n_sessions - result.metrics["sessions_done"]
    if unfinished:
        over = "the load is over what this cluster can serve: " if horizon_s is None else ""
        mend = " (--horizon-s inf runs on)" if over else ""
        err.print(f"{over}{unfinished} of {loaded.n_sessions} sessions were not done at the horizon of "
                  f"{config.horizon_s:,.0f} s; times are of the others{mend}", style="yellow")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("simulate")(_simulate)
