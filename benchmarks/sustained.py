"""Open arrivals: the load that a policy sustains, and what it does at shares of the load that stock vLLM sustains.

    python benchmarks/sustained.py --out DIR [--data DATA] [--workload NAME ...] [--policy NAME ...] [--tier 0 ...]
        [--share .6 ...] [--seeds 3] [--sessions 120] [--workers 1] [--profile NAME] [--window 128000] [--jobs 2]

Simulated workers with the pool of a fitted profile; test sessions that fit the model's window arrive as a Poisson
stream, in the order of the workload; ends hidden, tools not named. The first fifth of the sessions warms the tables and
is not counted. A load is **sustained** where the mean completion time is at most 1.3 times that of infinite memory with
the same arrivals; the greatest such load is looked for on a grid of 5 % steps, by halves. Stock is vLLM's eviction and
order with sessions that stay on their engine, and the same tier, which is vLLM's own offloading; a policy NAME@lazy has
one of the same size that holds what its GPU is about to lose. Columns: sustained load over stock's, and at each
share of stock's load the mean and P95 of completion and the P95 of the time to first token over stock's; geometric
means over seeds. DIR gets a journal, so that a run that was cut short goes on, and `sustained.json` and `sustained.md`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from no_harm import STOCK, drawn_and_fitting, inputs, named, split
from rich.console import Console
from typer import Option

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import arrange
from saga_rl.errors import run_user_command
from saga_rl.experiments import pool
from saga_rl.experiments.cell import Spec, make_cell
from saga_rl.experiments.closed import roomy
from saga_rl.experiments.intervals import paired_ratio
from saga_rl.experiments.journal import Head, Kind, opened, state_of
from saga_rl.experiments.runner import Runner
from saga_rl.experiments.simulated import Processes, Timed, code_digest, timed
from saga_rl.files import atomic, write_json
from saga_rl.policies.presets import preset
from saga_rl.provenance import provenance
from saga_rl.report.tables import markdown, ratio_text
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile

KIND = Kind("saga-rl sustained", "table of sustained loads")
FIGURES = ("tct_mean_s", "tct_p95_s", "ttft_p95_s")
SUSTAINED, STEP, WARM = 1.3, 1.05, 0.2
STEPS = 180
"""Of the grid, up to a session a second: 1.05 ** 180 is 6,500 times."""


@dataclass(frozen=True)
class Place:
    """Where a policy is judged."""

    workload: str
    tier: float
    seed: int
    policy: str
    profile: str
    window: int
    workers: int
    sessions: int


@dataclass(frozen=True)
class At(Place):
    """... at a load, steps of the grid."""

    step: int = 0


@lru_cache(maxsize=8)
def sessions_of(name: str, data: str, seed: int, n: int, window: int) -> Trace:
    """Test sessions that fit the window, one a second on average."""
    drawn, fits = drawn_and_fitting(name, data, seed, n, window)
    rows = fits[:n]
    gaps = np.random.default_rng([seed, 1]).exponential(1.0, len(rows))
    return arrange(drawn, rows, np.cumsum(gaps))


def played(data: str, place: Place, step: int, infinite: bool) -> dict[str, float]:
    """The figures of one run, without its warm-up."""
    profile = load_profile(place.profile)
    trace = sessions_of(place.workload, data, place.seed, place.sessions * place.workers,
                        min(place.window, profile.kv_tokens))
    per_s = STEP ** (step - STEPS) * place.workers
    trace = arrange(trace, np.arange(trace.n_sessions), trace.sessions.arrival_s / per_s)
    tokens = roomy(trace, profile.kv_tokens) if infinite else profile.kv_tokens
    name, way = split(STOCK if infinite else place.policy)
    config = SimConfig(workers=place.workers, kv_tokens=tokens, profile=profile, end_hint=False, tool_names=False,
                       cpu_tokens=0 if infinite else int(place.tier * profile.kv_tokens), offloading=way)
    out = simulate(trace, config, preset(name), slo=False)
    cold = int(WARM * trace.n_sessions)
    counted = trace.steps.session >= cold
    first = (out.steps["first_token_s"] - out.steps["ready_s"])[counted]
    return {"tct_mean_s": float(out.tct_s[cold:].mean()), "tct_p95_s": float(np.quantile(out.tct_s[cold:], 0.95)),
            "ttft_p95_s": float(np.quantile(first, 0.95)), "per_min": 60 * per_s / place.workers,
            "counted": trace.n_sessions - cold}


def over(data: str, place: Place, step: int) -> float:
    """Mean completion over that of infinite memory at the same arrivals."""
    return played(data, place, step, False)["tct_mean_s"] / played(data, place, step, True)["tct_mean_s"]


def sustained(data: str, place: Place) -> dict[str, Any]:
    """The greatest load of the grid that is sustained: by halves between one that is and one that is not."""
    low, high = 0, STEPS
    tried = {}
    while high - low > 1:
        middle = (low + high) // 2
        tried[middle] = over(data, place, middle)
        low, high = (middle, high) if tried[middle] <= SUSTAINED else (low, middle)
    return {**asdict(place), "step": low, "per_min": 60 * STEP ** (low - STEPS), "tried": sorted(tried.items())}


def run_cells(data: str, specs: list[Spec]) -> list[Timed]:
    """In a worker."""
    (spec,) = specs
    where = f"{spec['workload']}, {spec['policy']}"
    if "step" not in spec:
        return timed(where, lambda: [sustained(data, Place(**spec))])
    at = At(**spec)
    return timed(where, lambda: [{**spec, **played(data, at, at.step, False)}])


def share_step(step: int, share: float) -> int:
    """The step of the grid at a share of the load of another."""
    return max(0, step + round(np.log(share) / np.log(STEP)))


def table(found: dict[Place, dict[str, Any]], at: dict[At, dict[str, Any]], names: list[str], tiers: list[float],
          policies: list[str], shares: list[float], seeds: int, base: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a workload, tier and policy."""
    rows = []
    for name in names:
        for tier in tiers:
            places = {p: [Place(name, tier, s, p, **base) for s in range(seeds)] for p in (STOCK, *policies)}
            stock = [found[p] for p in places[STOCK]]
            for policy in policies:
                mine = [found[p] for p in places[policy]]
                row: dict[str, Any] = {"workload": name, "tier": tier, "policy": policy,
                                       "stock_per_min": float(np.mean([f["per_min"] for f in stock])),
                                       "sustained": paired_ratio(np.array([f["per_min"] for f in mine]),
                                                                 np.array([f["per_min"] for f in stock]))}
                for share in shares:
                    steps = [share_step(f["step"], share) for f in stock]
                    ours, theirs = ([at[At(**asdict(p), step=k)] for p, k in zip(places[who], steps, strict=True)]
                                    for who in (policy, STOCK))
                    row[f"{share:g}"] = {k: float(np.exp(np.mean([np.log(a[k] / b[k]) for a, b in
                                                                  zip(ours, theirs, strict=True)]))) for k in FIGURES}
                rows.append(row)
    return rows


def shown(rows: list[dict[str, Any]], shares: list[float]) -> str:
    """Markdown: by tier and policy the geometric means and the worst, then all rows."""
    heads = [f"at {s:g}: mean / P95 / first token P95" for s in shares]
    text = []
    for tier in dict.fromkeys(r["tier"] for r in rows):
        for policy in dict.fromkeys(r["policy"] for r in rows):
            mine = [r for r in rows if r["tier"] == tier and r["policy"] == policy]
            mean = np.exp(np.mean([np.log(r["sustained"]["ratio"]) for r in mine]))
            worst = [" / ".join(f"{max(r[f'{s:g}'][k] for r in mine):.3f}" for k in FIGURES) for s in shares]
            text.append([f"{tier:g}x", policy, str(len(mine)), f"{mean:.2f}",
                         f"{min(r['sustained']['ratio'] for r in mine):.2f}", *worst])
    every = [[r["workload"], f"{r['tier']:g}x", r["policy"], f"{r['stock_per_min']:.3g}", ratio_text(r["sustained"]),
              *(" / ".join(f"{r[f'{s:g}'][k]:.3f}" for k in FIGURES) for s in shares)] for r in rows]
    return (markdown(("tier", "policy", "workloads", "sustained, of stock", "least", *(f"worst {h}" for h in heads)),
                     text) + "\n\n"
            + markdown(("sessions", "tier", "policy", "stock sustains, a minute", "sustained, of stock", *heads), every)
            + "\n")


def main(
    out: Annotated[Path, Option(help="Folder for the journal and the tables.")],
    data: Annotated[str, Option(help="Folder of the recorded collections; without it they are left out.")] = "",
    workload: Annotated[list[str] | None, Option(help="Named workloads; default: all but mooncake's.")] = None,
    policy: Annotated[list[str], Option(help="Presets and folders, each also NAME@lazy.")] = ["likely", "auto"],  # noqa: B006
    tier: Annotated[list[float], Option(help="CPU tier, times the pool; 0 = none.")] = [0, 2],  # noqa: B006
    share: Annotated[list[float], Option(help="Of what stock sustains.")] = [0.6, 0.8, 0.95],  # noqa: B006
    workers: Annotated[int, Option(help="Engines.", min=1)] = 1,
    sessions: Annotated[int, Option(help="Of a run, for each engine.", min=20)] = 120,
    seeds: Annotated[int, Option(help="Arrangements of the sessions.", min=3)] = 3,
    profile: Annotated[str, Option(help="Cost profile.")] = "h100-llama3-70b-tp4",
    window: Annotated[int, Option(help="The model's, tokens.")] = 128_000,
    jobs: Annotated[int, Option(help="Runs at a time.")] = 2,
) -> None:
    """Write the table of loads that policies sustain."""
    names = named(workload, data, policy)
    base = {"profile": profile, "window": window, "workers": workers, "sessions": sessions}
    every = [STOCK, *policy]
    places = [Place(w, t, s, p, **base) for w in names for t in tier for s in range(seeds) for p in every]
    here = Path(__file__).resolve()
    digest = code_digest([here, here.with_name("no_harm.py")])
    sums, weights = inputs(data, names, policy)

    def cells(where: list[Any]) -> dict[Any, Any]:
        return {p: make_cell(asdict(p), digest, [sums.get(p.workload), weights.get(p.policy)]) for p in where}

    state_of(out, KIND)
    out.mkdir(exist_ok=True)
    with opened(out, KIND, Head(digest)) as journal, pool.workers(jobs) as executor:
        runner = Runner(journal, Processes(executor, run_cells, data, open_loop=False), Console(stderr=True))
        found = runner.run("sustained loads", cells(places))
        steps = {(p.workload, p.tier, p.seed): found[p]["step"] for p in places if p.policy == STOCK}
        loads = dict.fromkeys(At(**asdict(p), step=share_step(steps[p.workload, p.tier, p.seed], s))
                              for p in places for s in share)
        at = runner.run("shares of what stock sustains", cells(list(loads)))
    rows = table(found, at, names, tier, policy, share, seeds, base)
    text = shown(rows, share)
    write_json(out / "sustained.json", {"rows": rows, "provenance": provenance(seed=None, trace=None)})
    with atomic(out / "sustained.md") as tmp:
        tmp.write_text(text, encoding="utf-8")
    print(text.split("\n\n")[0])


if __name__ == "__main__":
    run_user_command(lambda: typer.run(main))
