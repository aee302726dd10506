"""The fidelity table: what the simulator foretells beside what vLLM's real asynchronous scheduler does in virtual time.

    python benchmarks/emulation.py DATA --out DIR [--source weka --source katas] [--policy likely ...]
        [--over 1.4 --over 2.5 --over 4] [--engines 2 --engines 8] [--kv-tokens N] [--tier 0 --tier 4]
        [--sessions 25] [--jobs 2]

Recorded sessions in full length (DATA: the folder of the collections), a closed population, ends hidden, tools named by
the request that follows them. A row: policy x oversubscription x engines. The pool is the profile's, or --kv-tokens of
each engine: recordings are too few to fill eight whole ones. The population is what makes the KV that live sessions
would hold so many times what the engines have. A tier of so many pools beside each engine is vLLM's own KV offloading,
or of a policy NAME@lazy one that holds what its GPU is about to lose, with a link as fast as an emulated device's. The
simulator is told that it never hears a tool's name, which is what a late name is worth (`Tracker.arrive`). DIR gets a
journal of rows, so that a run that was cut short goes on where it was, and `emulation.json` and `emulation.md` in the
end; rows of other code are run anew.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from typer import Argument, Option

from saga_rl.aeg.importers import import_trace
from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import demand_tokens
from saga_rl.errors import UserError, run_user_command, unknown_name
from saga_rl.experiments import pool
from saga_rl.experiments.cell import Spec, make_cell
from saga_rl.experiments.journal import Head, Kind, opened, state_of
from saga_rl.experiments.runner import Runner
from saga_rl.experiments.simulated import Processes, Timed, code_digest, timed
from saga_rl.files import atomic, must_exist, write_json
from saga_rl.policies.learned.checkpoint import digest as weights_of
from saga_rl.policies.learned.checkpoint import load_parts
from saga_rl.policies.presets import preset
from saga_rl.provenance import provenance, sha256
from saga_rl.report.tables import markdown
from saga_rl.runtime.config.emulated import Settings
from saga_rl.runtime.config.settings import SagaConfig
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile

SOURCES = {"weka": "weka_claude_code/traces.jsonl.gz", "katas": "claude_code_katas/calls.jsonl.gz"}
FIGURES = ("tct_mean_s", "tct_p95_s", "hit_share")
LIMITS = {"tct_mean_s": 0.03, "tct_p95_s": 0.05, "hit_share": 0.01}
"""What counts as agreement: the first two relative, the share absolute."""
ROOT = Path(__file__).resolve().parents[1]
KIND = Kind("saga-rl emulation", "fidelity table")


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    source: str
    policy: str
    over: float
    engines: int
    sessions: int
    """At least; as many as the population needs if that is more."""
    steps: tuple[int, int]
    context: int
    profile: str
    gap_s: float
    """Pauses are cut to so many seconds; 0 = as recorded."""
    asynchronous: bool
    tier: float = 0.0
    """CPU tier beside each engine, pools."""
    kv_tokens: int = 0
    """An engine's pool; 0 = the profile's."""

    @property
    def preset(self) -> str:
        return self.policy.partition("@")[0]

    @property
    def way(self) -> str:
        """How the tier is used, `SimConfig.offloading`: what stands behind @ in `policy`."""
        return self.policy.partition("@")[2] or "vllm"

    @staticmethod
    def of(spec: Spec) -> Row:
        """The row of `asdict`'s JSON."""
        return Row(**spec | {"steps": tuple(spec["steps"])})


@cache
def collection(data: str, source: str) -> Trace:
    return import_trace(source, Path(data) / SOURCES[source])


def workload(data: str, cell: Row) -> tuple[Trace, SimConfig, float]:
    """Sessions, cluster, and the oversubscription that its population comes to."""
    trace = collection(data, cell.source)
    n = np.diff(trace.session_offsets)
    total = trace.steps.prompt_tokens + trace.steps.output_tokens
    longest = np.maximum.reduceat(total, trace.session_offsets[:-1])
    profile = load_profile(cell.profile)
    pool_tokens = cell.kv_tokens or profile.kv_tokens
    fits = np.flatnonzero((n >= cell.steps[0]) & (n <= cell.steps[1])
                          & (longest <= min(cell.context, pool_tokens)))
    if not len(fits):
        raise UserError(f"{cell.source}", "has no such sessions", "allow more steps or longer contexts")
    config = SimConfig(workers=cell.engines, kv_tokens=pool_tokens, profile=profile, end_hint=False,
                       tool_names=False, starve_s=SagaConfig().starve_s, async_scheduling=cell.asynchronous,
                       cpu_tokens=int(cell.tier * pool_tokens), offloading=cell.way,
                       pcie_tokens_per_s=Settings(cell.profile).link_tokens_per_s)
    have = cell.engines * pool_tokens
    population, chosen = 8, trace
    for _ in range(6):  # the demand of a session depends on how many there are, and a little on which
        chosen = trace.select(fits[:max(cell.sessions, population + 1)])
        population = min(population, chosen.n_sessions)
        if cell.gap_s:
            steps = chosen.steps
            chosen = replace(chosen, steps=replace(steps, tool_s=np.minimum(steps.tool_s, cell.gap_s),
                                                   think_s=np.minimum(steps.think_s, cell.gap_s)))
        each = demand_tokens(chosen, replace(config, population=population)) / population
        wanted = max(round(cell.over * have / each), 1)
        if wanted == population:
            break
        population = min(wanted, len(fits))
    population = min(population, chosen.n_sessions)
    config = replace(config, population=population)
    return chosen, config, demand_tokens(chosen, config) / have


def measure(data: str, cell: Row) -> dict[str, Any]:
    """Both sides of one row."""
    from saga_rl.runtime.emulate.virtual import VirtualConfig, play

    started = time.perf_counter()
    trace, config, over = workload(data, cell)
    policies = preset(cell.preset)
    told = simulate(trace, config, policies, slo=False).metrics
    # what a request finds, on the GPU or below it
    loaded = told["loaded_tokens"] / float(trace.steps.prompt_tokens.sum())
    sim = {**told, "hit_share": told["hit_share"] + loaded}
    simulated_s = time.perf_counter() - started
    played = play(trace, VirtualConfig(config, asynchronous=cell.asynchronous), policies)
    real = played.figures()
    kept = ("iterations", "busy_s", "migrations", "let in starving", "expired")
    return {"cell": asdict(cell), "sessions": trace.n_sessions, "llm_steps": trace.n_steps,
            "population": config.population, "oversubscription": over,
            "simulated": {k: float(sim[k]) for k in FIGURES}, "loaded_share": {"simulated": loaded}, "real": real,
            "difference": differences(sim, real), "counts": {k: played.counts.get(k, 0.0) for k in kept},
            "failures": {k: v for k, v in played.counts.items() if k.startswith(("failed/", "fallback/")) and v},
            "seconds": {"simulator": simulated_s, "both": time.perf_counter() - started}}


def run_rows(data: str, specs: list[Spec]) -> list[Timed]:
    """In a worker: (figures, seconds of one core) of the one row in `specs`."""
    (spec,) = specs
    return timed(f"{spec['source']}, {spec['policy']} at {spec['over']:g}x", lambda: [measure(data, Row.of(spec))])


def code() -> str:
    """The digest of all that a row depends on: the simulator, the adapter and this file."""
    return code_digest([Path(__file__).resolve(), *sorted((ROOT / "saga_rl" / "runtime").rglob("*.py"))])


def differences(sim: dict[str, Any], real: dict[str, float]) -> dict[str, float]:
    """Real against simulated: relative for times, absolute for the share."""
    return {k: real[k] - float(sim[k]) if k == "hit_share" else real[k] / float(sim[k]) - 1.0 for k in FIGURES}


def agrees(row: dict[str, Any]) -> bool:
    return all(abs(row["difference"][k]) <= limit for k, limit in LIMITS.items())


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    return markdown(("sessions", "policy", "over", "engines", "tier", "simulated mean / P95, cached", "real scheduler",
                     "mean", "P95", "cached", ""), [cells_of(r) for r in rows]) + "\n"


def cells_of(r: dict[str, Any]) -> list[str]:
    """One row as text."""
    c, d = r["cell"], r["difference"]
    sides = [f"{x['tct_mean_s']:,.1f} / {x['tct_p95_s']:,.1f} s, {x['hit_share']:.3f}"
             for x in (r["simulated"], r["real"])]
    engines = f"{c['engines']} of {c['kv_tokens']:,}" if c["kv_tokens"] else str(c["engines"])
    return [f"{c['source']} ({r['sessions']}, {r['population']} alive)", c["policy"], f"{r['oversubscription']:.2f}x",
            engines, f"{c['tier']:g}x", *sides, f"{d['tct_mean_s']:+.1%}", f"{d['tct_p95_s']:+.1%}",
            f"{d['hit_share']:+.3f}", "" if agrees(r) else "apart"]


def gains(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean completion under the real scheduler, and over that of `lru` at the same place."""
    cells = {tuple(r["cell"][k] for k in ("source", "engines", "tier", "over", "policy")): r for r in rows}
    names = list(dict.fromkeys(r["cell"]["policy"] for r in rows))
    out = []
    for place in dict.fromkeys(key[:4] for key in cells):
        base = cells.get((*place, "lru"))
        line = [f"{place[0]}", f"{place[1]}", f"{place[2]:g}x", f"{place[3]:g}x"]
        for name in names:
            row = cells.get((*place, name))
            mean = None if row is None else row["real"]["tct_mean_s"]
            line.append("" if mean is None else f"{mean:,.0f} s" if base is None or name == "lru" else
                        f"{mean / base['real']['tct_mean_s']:.2f}")
        out.append(line)
    return markdown(("sessions", "engines", "tier", "over", *names), out) + "\n"


def main(
    data: Annotated[Path, Argument(help="Folder of the recorded collections.")],
    out: Annotated[Path, Option(help="Folder for the rows and the table.")],
    source: Annotated[list[str], Option(help="weka, katas.")] = ["weka", "katas"],  # noqa: B006
    policy: Annotated[list[str], Option(help="Presets and folders of checkpoints, each also NAME@lazy.")] = [  # noqa: B006
        "lru", "saga", "saga+", "likely", "checkpoints/joint", "checkpoints/joint-hidden"],
    over: Annotated[list[float], Option(help="KV that live sessions would hold / what the engines hold.")] = [  # noqa: B006
        1.4, 2.5, 4.0],
    engines: Annotated[list[int], Option()] = [2, 8],  # noqa: B006
    tier: Annotated[list[float], Option(help="CPU tier beside each engine, times its pool; 0 = none.")] = [  # noqa: B006
        0.0],
    sessions: Annotated[int, Option(help="Sessions of a row, at least.")] = 25,
    steps: Annotated[tuple[int, int], Option(help="Fewest and most steps of a session.")] = (4, 40),
    context: Annotated[int, Option(help="Longest context of a session, tokens.")] = 200_000,
    kv_tokens: Annotated[int, Option(help="An engine's pool, tokens; 0 = the profile's.")] = 0,
    profile: Annotated[str, Option()] = "h100-llama3.1-8b-tp1",
    gap_s: Annotated[float, Option(help="Cut pauses to so many seconds; 0 = as recorded.")] = 0.0,
    asynchronous: Annotated[bool, Option("--async/--sync")] = True,
    jobs: Annotated[int, Option(help="Rows at a time.")] = 2,
) -> None:
    """Write the table of how the simulator and the real scheduler agree."""
    for s in source:
        if s not in SOURCES:
            raise unknown_name("source", s, SOURCES)
    rows = [Row(s, p, o, n, sessions, steps, context, profile, gap_s, asynchronous, f, kv_tokens)
            for s in source for n in engines for f in tier for o in over for p in policy]
    digest, sums = code(), {s: sha256(must_exist(data / SOURCES[s])) for s in source}
    folders = {p: p.partition("@")[0] for p in policy}
    weights = {p: weights_of(load_parts(f)) for p, f in folders.items() if Path(f).is_dir()}
    cells = {row: make_cell(asdict(row), digest, [sums[row.source], weights.get(row.policy)]) for row in rows}
    state_of(out, KIND)
    out.mkdir(exist_ok=True)
    with opened(out, KIND, Head(digest)) as journal, pool.workers(jobs) as executor:
        backend = Processes(executor, run_rows, str(data), open_loop=False,
                            says=lambda result: " | ".join(cells_of(result)))
        done = list(Runner(journal, backend, Console(stderr=True)).run("rows", cells).values())
    write_json(out / "emulation.json", {"rows": done, "agree": sum(map(agrees, done)), "limits": LIMITS,
                                        "provenance": provenance(seed=None, trace=None)})
    with atomic(out / "emulation.md") as tmp:
        tmp.write_text(table(done) + "\n" + gains(done), encoding="utf-8")
    print(table(done) + "\n" + gains(done))


if __name__ == "__main__":
    run_user_command(lambda: typer.run(main))
