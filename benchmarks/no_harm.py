"""Policies beside stock vLLM *with the same tier*, under pressure and without: what is won, and that nothing is lost.

    python benchmarks/no_harm.py --out DIR [--data DATA] [--workload NAME ...] [--policy NAME ...] [--tier 0 ...]
        [--alive 4 ...] [--workers 1] [--seeds 3] [--profile NAME] [--window 128000] [--jobs 2]

Simulated workers with the pool of a fitted profile; closed populations of test sessions (`alive` for each worker), ends
hidden, tools not named. Stock is vLLM's eviction and order with sessions that stay on their engine. A tier of so many
pools beside each worker is vLLM's own KV offloading (`OffloadingConnector`); a policy NAME@lazy has one of the same
size that holds what its GPU lost (`saga_rl.sim.engine.demotion`). Recorded sessions want DATA, the folder of the
collections; sessions beyond the model's window are left out, and counted. Columns are means over seeds (geometric, of
ratios to stock): mean and P95 of completion time, mean of the time to first token, throughput. `over` is stock's mean
completion time over that of infinite memory: up to 1.02 there is no pressure. DIR gets a journal, so that a run that
was cut short goes on, and `no_harm.json` and `no_harm.md` in the end.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from typer import Option

from saga_rl.aeg.trace import Trace
from saga_rl.errors import run_user_command, unknown_name
from saga_rl.experiments import pool
from saga_rl.experiments.cell import Spec, make_cell
from saga_rl.experiments.closed import roomy
from saga_rl.experiments.journal import Head, Kind, opened, state_of
from saga_rl.experiments.runner import Runner
from saga_rl.experiments.simulated import Processes, Timed, code_digest, timed
from saga_rl.files import atomic, write_json
from saga_rl.learn.judge.sessions import DEFINED, RECORDED, Sessions, arranged
from saga_rl.policies.learned.checkpoint import digest as weights_of
from saga_rl.policies.learned.checkpoint import load_parts
from saga_rl.policies.presets import preset
from saga_rl.provenance import provenance, sha256
from saga_rl.report.tables import markdown
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile

KIND = Kind("saga-rl no-harm", "table of what is won and lost")
STOCK = "lru"
FIGURES = ("tct_mean_s", "tct_p95_s", "ttft_mean_s")
CALM, ROUNDS, FEWEST = 1.02, 4, 24
EVERYTHING = 1_000_000


@dataclass(frozen=True)
class Run:
    """One cell: a policy, or stock with memory for everything."""

    workload: str
    alive: int
    tier: float
    seed: int
    policy: str
    profile: str
    window: int
    workers: int
    infinite: bool = False


def named(workload: list[str] | None, data: str, policies: list[str]) -> list[str]:
    """The workloads that are asked for. Raises `UserError` for an unknown one, and for an unknown policy."""
    known = {k for k in DEFINED if k != "drift"} | {k for k in RECORDED if data and k in ("weka", "katas")}
    names = workload or sorted(known)
    for name in names:
        if name not in known:
            raise unknown_name("workload", name, known)
    for p in policies:
        preset(split(p)[0])
    return names


def split(policy: str) -> tuple[str, str]:
    """(preset or folder, way of offloading) of NAME or NAME@WAY."""
    name, _, way = policy.partition("@")
    return name, way or "vllm"


def inputs(data: str, names: list[str], policies: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of recorded collections by workload, and of weights by policy: what a run depends on beside the code."""
    return ({w: sha256(Path(data) / RECORDED[w].file) for w in names if w in RECORDED},
            {p: weights_of(load_parts(split(p)[0])) for p in policies if Path(split(p)[0]).is_dir()})


def drawn_and_fitting(name: str, data: str, seed: int, n: int, window: int) -> tuple[Trace, np.ndarray]:
    """`n` test sessions, of a recording all, and the rows of those that fit the window."""
    recorded = name in RECORDED
    drawn = arranged(Sessions(name, True, data if recorded else ""), "test", seed, EVERYTHING if recorded else n, 0.0)
    longest = np.maximum.reduceat(drawn.steps.prompt_tokens + drawn.steps.output_tokens, drawn.session_offsets[:-1])
    return drawn, np.flatnonzero(longest <= window)


@lru_cache(maxsize=8)
def sessions_of(name: str, data: str, seed: int, alive: int, window: int) -> tuple[Trace, int]:
    """Test sessions that fit the window, and how many of those drawn were left out."""
    n = max(ROUNDS * alive, FEWEST)
    drawn, fits = drawn_and_fitting(name, data, seed, n, window)
    last = int(fits[:n][-1]) + 1
    return drawn.select(fits[:n]), last - len(fits[:n])


def measure(data: str, run: Run) -> dict[str, Any]:
    """The figures of one run."""
    profile = load_profile(run.profile)
    trace, left_out = sessions_of(run.workload, data, run.seed, run.alive * run.workers,
                                  min(run.window, profile.kv_tokens))
    tokens = roomy(trace, profile.kv_tokens) if run.infinite else profile.kv_tokens
    below = 0 if run.infinite else int(run.tier * profile.kv_tokens)
    name, way = split(run.policy)
    config = SimConfig(workers=run.workers, kv_tokens=tokens, profile=profile, end_hint=False, tool_names=False,
                       population=run.alive * run.workers, cpu_tokens=below, offloading=way)
    out = simulate(trace, config, preset(name), slo=False)
    return {**asdict(run), "tct_mean_s": float(out.tct_s.mean()), "tct_p95_s": float(np.quantile(out.tct_s, 0.95)),
            "ttft_mean_s": float((out.steps["first_token_s"] - out.steps["ready_s"]).mean()),
            "makespan_s": float(out.steps["done_s"].max()), "sessions": trace.n_sessions, "left_out": left_out}


def run_cells(data: str, specs: list[Spec]) -> list[Timed]:
    """In a worker."""
    (spec,) = specs
    return timed(f"{spec['workload']}, {spec['alive']} alive", lambda: [measure(data, Run(**spec))])


def rows_of(done: dict[Run, dict[str, Any]], places: list[tuple[str, int, float]], policies: list[str],
            seeds: int, base: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a workload, population, tier and policy: ratios to stock, geometric means over seeds."""
    out = []
    for workload, alive, tier in places:
        def each(policy: str, figure: str, infinite: bool = False,
                 place: tuple[str, int, float] = (workload, alive, tier)) -> np.ndarray:
            return np.array([done[Run(place[0], place[1], 0.0 if infinite else place[2], s, policy, **base,
                                      infinite=infinite)][figure] for s in range(seeds)])
        over = float(np.exp(np.log(each(STOCK, "tct_mean_s") / each(STOCK, "tct_mean_s", True)).mean()))
        for policy in policies:
            ratio = {k: float(np.exp(np.log(each(policy, k) / each(STOCK, k)).mean())) for k in FIGURES}
            out.append({"workload": workload, "alive": alive, "tier": tier, "over": over, "policy": policy, **ratio,
                        "throughput": float(np.exp(np.log(each(STOCK, "makespan_s") / each(policy, "makespan_s"))
                                                   .mean())),
                        "way": float(np.log(ratio["tct_mean_s"]) / -np.log(over)) if over > CALM else None})
    return out


def summary(rows: list[dict[str, Any]], policies: list[str]) -> str:
    """Markdown: by tier and policy, the worst without pressure, and the mean under it."""
    out = []
    for tier in dict.fromkeys(r["tier"] for r in rows):
        for policy in policies:
            mine = [r for r in rows if r["tier"] == tier and r["policy"] == policy]
            calm = [r for r in mine if r["over"] <= CALM]
            some, hard = ([r for r in mine if low < r["over"] <= high] for low, high in ((CALM, 1.3), (1.3, 4.0)))
            line = [f"{tier:g}x", policy, str(len(calm))]
            line += [f"{max(r[k] for r in calm):.3f}" if calm else "" for k in FIGURES[:2]]
            for group in (some, hard):
                line.append(str(len(group)))
                line += [f"{np.exp(np.mean([np.log(r[k]) for r in group])):.3f}" if group else "" for k in FIGURES]
            line.append(f"{np.mean([r['way'] for r in hard]):.2f}" if hard else "")
            out.append(line)
    return markdown(("tier", "policy", "calm rows", "worst mean", "worst P95", "rows over 1.02 - 1.3", "mean", "P95",
                     "first token", "rows over 1.3 - 4", "mean", "P95", "first token", "way to infinite memory"), out)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: all rows."""
    return markdown(("sessions", "alive", "tier", "stock over infinite", "policy", "mean", "P95", "first token",
                     "throughput"),
                    [[r["workload"], str(r["alive"]), f"{r['tier']:g}x", f"{r['over']:.2f}", r["policy"],
                      *(f"{r[k]:.3f}" for k in (*FIGURES, "throughput"))] for r in rows])


def main(
    out: Annotated[Path, Option(help="Folder for the journal and the tables.")],
    data: Annotated[str, Option(help="Folder of the recorded collections; without it they are left out.")] = "",
    workload: Annotated[list[str] | None, Option(help="Named workloads; default: all but mooncake's.")] = None,
    policy: Annotated[list[str], Option(help="Presets and folders, each also NAME@lazy.")] = ["likely", "auto"],  # noqa: B006
    tier: Annotated[list[float], Option(help="CPU tier, times the pool; 0 = none.")] = [0, 1, 2, 4],  # noqa: B006
    alive: Annotated[list[int], Option(help="Sessions alive at once.")] = [4, 9, 13, 19],  # noqa: B006
    workers: Annotated[int, Option(help="Engines.", min=1)] = 1,
    seeds: Annotated[int, Option(help="Arrangements of the sessions.", min=1)] = 3,
    profile: Annotated[str, Option(help="Cost profile.")] = "h100-llama3-70b-tp4",
    window: Annotated[int, Option(help="The model's, tokens.")] = 128_000,
    jobs: Annotated[int, Option(help="Runs at a time.")] = 2,
) -> None:
    """Write the table of what policies win under pressure, and that they lose nothing without."""
    names = named(workload, data, policy)
    base = {"profile": profile, "window": window, "workers": workers}
    places = [(w, a, t) for w in names for a in alive for t in tier]
    runs = [Run(w, a, t, s, p, **base) for w, a, t in places for s in range(seeds) for p in (STOCK, *policy)]
    runs += [Run(w, a, 0.0, s, STOCK, **base, infinite=True) for w in names for a in alive for s in range(seeds)]
    digest = code_digest([Path(__file__).resolve()])
    sums, weights = inputs(data, names, policy)
    cells = {r: make_cell(asdict(r), digest, [sums.get(r.workload), weights.get(r.policy)]) for r in runs}
    state_of(out, KIND)
    out.mkdir(exist_ok=True)
    with opened(out, KIND, Head(digest)) as journal, pool.workers(jobs) as executor:
        backend = Processes(executor, run_cells, data, open_loop=False)
        done = Runner(journal, backend, Console(stderr=True)).run("runs", cells)
    rows = rows_of(done, places, policy, seeds, base)
    text = summary(rows, policy) + "\n\n" + table(rows) + "\n"
    write_json(out / "no_harm.json", {"rows": rows, "provenance": provenance(seed=None, trace=None)})
    with atomic(out / "no_harm.md") as tmp:
        tmp.write_text(text, encoding="utf-8")
    print(summary(rows, policy))


if __name__ == "__main__":
    run_user_command(lambda: typer.run(main))
