"""Collect decisions under behaviour policies into Minari datasets.

Every combination of trace, load, capacity and behaviour is played `--episodes` times, each time on another random
subset and order of the trace's sessions. The chance of each logged action is written beside it, and what followed:
tokens computed again, completion times, the gap between tenants; for evictions the Belady label of each candidate, too.
"""

from __future__ import annotations

import os
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from saga_rl.cli.ray_option import Ray
from saga_rl.errors import UserError, unknown_name
from saga_rl.learn.script import capacities, check_range, file_label, new_folder, numbers, progress, words
from saga_rl.policies.parameters import DEFAULT_PRESET, DEFAULT_PROFILE
from saga_rl.provenance import provenance, sha256

BEHAVIOURS = {"eviction": "lru,lru-protect,wa-lru,belady", "placement": "sticky,saga:theta=100,least-load",
              "ordering": "fcfs,session-fcfs,srpt,las", "admission": "none,grow,limit-live,reserve-older",
              "joint": "fcfs+none,session-fcfs+grow,session-fcfs+reserve-older,srpt+limit-live"}
PLACEMENT_WORKERS = 4
TEST = "test"


def main(
    traces: Annotated[list[Path], Argument(help="Trace files, generated, imported or recorded.")],
    out: Annotated[Path, Option(help="Folder to write; Minari wants its name to end in -v0, -v1, ...")],
    decision: Annotated[str, Option("--decision", "--seam", help="eviction, placement, ordering, admission, "
                                    "or joint (of ordering and admission).")] = "eviction",
    kv_tokens: Annotated[str, Option(help="KV capacities, tokens, with commas between.")] = "",
    pressure: Annotated[str, Option(help="Instead: demand of the live sessions over capacity, e.g. 1.5,3.")] = "",
    load: Annotated[str, Option(help="Arrivals so many times as fast as in the trace, e.g. 0.8,1,1.2.")] = "1",
    behaviour: Annotated[str, Option(help="Policies to play, also learned:FOLDER, joint: ORDERING+ADMISSION; empty = a "
                                          "usual mix.")] = "",
    epsilon: Annotated[float, Option(help="Chance of a uniformly random action.")] = 0.1,
    episodes: Annotated[int, Option(help="Episodes of each trace, load, capacity and behaviour.")] = 1,
    sessions: Annotated[int, Option(help="Sessions of one episode; 0 = all of the trace.")] = 0,
    population: Annotated[int, Option(help="Closed population: sessions alive at once; 0 = the trace's arrivals.")] = 0,
    workers: Annotated[int, Option(help="Workers of the cluster (closed loop); 0 = the decision's default.")] = 0,
    policies: Annotated[str, Option(help="Closed loop: preset or checkpoint for the other decisions."
                                    )] = DEFAULT_PRESET,
    record: Annotated[str, Option(help="Eviction: presets under which the reference strings are recorded.")] = "lru",
    max_decisions: Annotated[int, Option(help="Cut an episode after so many decisions; 0 = never.")] = 0,
    max_rows: Annotated[int, Option(help="Candidates offered at a decision, at most.")] = 32,
    fractions: Annotated[str, Option(help="Split by session group: train=.7,validation=.15,test=.15.")] = "",
    parts: Annotated[str, Option(help="Parts to collect; empty = all but test.")] = "",
    as_it_is: Annotated[bool, Option("--as-it-is", help="Keep the trace's own order (mixes that shift).")] = False,
    profile: Annotated[str | None, Option(help="Cost profile of the simulator.")] = None,
    ends: Annotated[bool, Option(help="Clients announce the end of a session.")] = False,
    seed: Annotated[int, Option(help="Everything follows from it.")] = 0,
    jobs: Annotated[int, Option(help="Processes; 0 = one a core. The result does not depend on it.")] = 0,
    ray: Ray = "",
    overwrite: Annotated[bool, Option("--overwrite", help="Replace --out if it is there.")] = False,
) -> None:
    """Collect decisions under behaviour policies into Minari datasets."""
    import numpy as np

    from saga_rl.aeg.io import read_trace
    from saga_rl.aeg.split import split
    from saga_rl.experiments.place import place
    from saga_rl.learn.cards import dataset_card
    from saga_rl.learn.data.collect import Task, label
    from saga_rl.learn.data.collect_many import Statistics, play_all
    from saga_rl.learn.data.dataset import new_dataset, rows_hash
    from saga_rl.learn.data.rollouts import FEATURES, ROLLOUTS, check_behaviour, rows_of, spec_of
    from saga_rl.policies.presets import preset

    if decision not in ROLLOUTS:
        raise unknown_name("decision", decision, ROLLOUTS)
    check_range("--epsilon", epsilon, 0, 1)
    check_range("--max-rows", max_rows, 2, 4096)
    check_range("--episodes", episodes, 1)
    for option, value in (("--sessions", sessions), ("--population", population), ("--max-decisions", max_decisions),
                          ("--seed", seed), ("--workers", workers), ("--jobs", jobs)):
        check_range(option, value, 0)
    specs, presets = words(behaviour or BEHAVIOURS[decision]), words(record) if decision == "eviction" else [""]
    if not specs or not presets:
        raise UserError("--behaviour and --record", "name nothing", "name at least one policy each")
    for spec in specs:
        check_behaviour(decision, spec)
    for name in filter(None, presets):
        preset(name)
    if decision != "eviction":
        preset(policies)
    workers = workers or (PLACEMENT_WORKERS if decision == "placement" else 1)
    shares = _shares(fractions)
    chosen = _parts(shares, parts)
    folders = {part: new_folder(_folder(out, part), overwrite) for part in chosen}
    loads = numbers("--load", load, 0.001, 1000)
    places = [(path, kv) for path in traces
              for kv in capacities(path, kv_tokens, pressure, population, profile, ends)]
    groups: dict[str, dict[str, list[str]]] = {part: {} for part in chosen}
    for path in traces:
        whole = read_trace(path)
        pieces = split(whole, shares, seed) if shares else {"": whole}
        for part in chosen:
            groups[part][file_label(path)] = sorted(set(pieces[part].sessions.group))
    with place(jobs or os.cpu_count() or 1, ray, out) as chosen_place:
        for number, (part, folder) in enumerate(folders.items()):
            plan = list(product(places, loads, presets, specs, range(episodes)))
            seeds = np.random.SeedSequence([seed, number]).generate_state(len(plan))
            tasks = [Task(str(path), kv, spec, epsilon, int(s), max_rows, sessions, population, max_decisions,
                          name or "lru", profile, decision, workers, policies, rate, not as_it_is,
                          tuple(shares.items()), part, seed, ends)
                     for ((path, kv), rate, name, spec, _), s in zip(plan, seeds, strict=True)]
            rows, features = rows_of(decision, max_rows, workers), FEATURES[decision]
            facts: dict[str, Any] = {
                "source": provenance(seed=seed, trace=None), "traces": {file_label(p): sha256(p) for p in traces},
                "seam": decision, "epsilon": epsilon, "max_rows": rows, "features": list(features),
                "feature_hash": rows_hash(decision), "record": [p for p in presets if p], "population": population,
                "ends": ends, "profile": profile or DEFAULT_PROFILE,
                "loads": loads, "part": part, "session_groups": groups[part],
                "capacities": sorted({kv for _, kv in places}), "behaviours": [label(s) for s in specs],
                "description": f"{decision} decisions"}
            statistics = Statistics()
            with (new_dataset(folder, rows, len(features), decision=decision, overwrite=overwrite) as writer,
                  progress() as bar, closing(play_all(tasks, chosen_place)) as played):
                job = bar.add_task(f"collecting {part}".strip(), total=len(tasks), note="compiling the simulator")
                for episode in played:
                    writer.add([episode])
                    statistics.add(episode)
                    bar.update(job, advance=1, note=f"{statistics.decisions:,} decisions")
                facts["statistics"] = statistics.summary()
                writer.finish(facts, dataset_card(folder.name, facts), spec_of(tasks[0]))
            _print(facts["statistics"], folder)


def _shares(text: str) -> dict[str, float]:
    out: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, eq, value = item.partition("=")
        if not eq:
            raise UserError("--fractions", f"{item!r} names no share", "write train=.7,validation=.15,test=.15")
        out[name] = numbers("--fractions", value, 0, 1)[0]
    return out


def _parts(shares: dict[str, float], text: str) -> list[str]:
    """The parts to collect. The test part is left alone unless it is named: nobody should choose by it."""
    if not shares:
        if text:
            raise UserError("--parts", "is given without --fractions", "say how to split the traces")
        return [""]
    chosen = words(text) or [name for name in shares if name != TEST]
    for name in chosen:
        if name not in shares:
            raise unknown_name("--parts", name, shares)
    if not chosen:
        raise UserError("--fractions", "leave only the test part", "name it with --parts if you mean it")
    return chosen


def _folder(out: Path, part: str) -> Path:
    """`runs/swe-v0` and part `train`: `runs/swe-train-v0`."""
    if not part:
        return out
    stem, dash, version = out.name.rpartition("-v")
    return out.with_name(f"{stem}-{part}{dash}{version}" if dash else f"{out.name}-{part}")


def _print(counts: dict[str, dict], out: Path) -> None:
    table = Table(title=f"dataset {out}", caption="every behaviour saw other sessions: do not compare them here")
    for column in ("behaviour", "episodes", "decisions", "candidates", "propensity", "median return", "computed again"):
        table.add_column(column, justify="left" if column == "behaviour" else "right")
    for name, c in counts.items():
        table.add_row(name, str(c["episodes"]), f"{c['decisions']:,}", f"{c['candidates'] / c['decisions']:.1f}",
                      f"{c['propensity'][0]:.3g} - {c['propensity'][1]:.3g}", f"{c['returns'][1]:.1f}",
                      f"{c['recomputed_tokens']:,.0f}")
    Console().print(table)
