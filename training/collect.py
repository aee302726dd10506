"""Collect eviction decisions under behaviour policies into a Minari dataset.

Every combination of trace, capacity and behaviour is played `--episodes` times, each time on another random subset and
order of the trace's sessions. The chance of each logged action is written beside it, and the Belady label of each row.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from saga_rl.errors import UserError
from saga_rl.learn.cards import dataset_card
from saga_rl.learn.collect import Task, collect
from saga_rl.learn.dataset import Episode, new_dataset
from saga_rl.learn.script import capacities, check_range, file_label, new_folder, progress, run_script, words
from saga_rl.policies.features import LEARNED_EVICTION, feature_hash
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.provenance import provenance, sha256


def main(
    traces: Annotated[list[Path], Argument(help="Trace files (training split).")],
    out: Annotated[Path, Option(help="Folder to write; Minari wants its name to end in -v0, -v1, ...")],
    kv_tokens: Annotated[str, Option(help="KV capacities, tokens, with commas between.")] = "",
    pressure: Annotated[str, Option(help="Instead: demand of the live sessions over capacity, e.g. 1.5,3.")] = "",
    behaviour: Annotated[str, Option(help="Eviction policies to play.")] = "lru,lru-protect,wa-lru,belady",
    epsilon: Annotated[float, Option(help="Chance of a uniformly random action.")] = 0.1,
    episodes: Annotated[int, Option(help="Episodes of each trace, capacity and behaviour.")] = 1,
    sessions: Annotated[int, Option(help="Sessions of one episode; 0 = all of the trace.")] = 0,
    population: Annotated[int, Option(help="Closed population: sessions alive at once; 0 = the trace's arrivals.")] = 0,
    record: Annotated[str, Option(help="Presets under which the reference strings are recorded.")] = "lru",
    max_decisions: Annotated[int, Option(help="Cut an episode after so many decisions; 0 = never.")] = 0,
    max_rows: Annotated[int, Option(help="Candidates offered at a decision, at most.")] = 32,
    profile: Annotated[str | None, Option(help="Cost profile of the simulator.")] = None,
    seed: Annotated[int, Option(help="Everything follows from it.")] = 0,
    jobs: Annotated[int, Option(help="Processes.")] = 2,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace --out if it is there.")] = False,
) -> None:
    """Collect eviction decisions under behaviour policies into a Minari dataset."""
    check_range("--epsilon", epsilon, 0, 1)
    check_range("--max-rows", max_rows, 2, 4096)
    check_range("--episodes", episodes, 1)
    check_range("--jobs", jobs, 1)
    for option, value in (("--sessions", sessions), ("--population", population), ("--max-decisions", max_decisions),
                          ("--seed", seed)):
        check_range(option, value, 0)
    new_folder(out, overwrite)
    policies, presets = words(behaviour), words(record)
    if not policies or not presets:
        raise UserError("--behaviour and --record", "name nothing", "name at least one policy each")
    for spec in policies:
        make("eviction", spec)
    for name in presets:
        preset(name)
    places = [(path, kv) for path in traces for kv in capacities(path, kv_tokens, pressure, population, profile)]
    plan = list(product(places, presets, policies, range(episodes)))
    seeds = np.random.SeedSequence(seed).generate_state(len(plan))
    tasks = [Task(str(path), kv, spec, epsilon, int(s), max_rows, sessions, population, max_decisions, name, profile)
             for ((path, kv), name, spec, _), s in zip(plan, seeds, strict=True)]
    facts = {"source": provenance(seed=seed, trace=None), "traces": {file_label(p): sha256(p) for p in traces},
             "epsilon": epsilon, "max_rows": max_rows, "features": list(LEARNED_EVICTION),
             "feature_hash": feature_hash(), "record": presets, "population": population,
             "capacities": sorted({kv for _, kv in places}), "description": "eviction decisions with Belady labels"}
    with new_dataset(out, max_rows, len(LEARNED_EVICTION), overwrite=overwrite) as writer:
        counts = _play(tasks, jobs, writer.add)
        facts["statistics"] = counts
        writer.finish(facts, dataset_card(out.name, facts))
    _print(counts, out)


def _results(tasks: list[Task], jobs: int, stack: ExitStack) -> Iterator[Episode]:
    if jobs == 1 or len(tasks) == 1:
        yield from map(collect, tasks)
        return
    yield collect(tasks[0])  # compiles the simulator; the pool's processes then load it instead of compiling it too
    pool = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")))
    stack.callback(pool.shutdown, wait=False, cancel_futures=True)
    yield from pool.map(collect, tasks[1:])


def _play(tasks: list[Task], jobs: int, add) -> dict[str, dict]:
    """Play all tasks in order of the plan; what each behaviour did, by name."""
    totals: dict[str, Counter] = {}
    with ExitStack() as stack:
        results = _results(tasks, jobs, stack)
        bar = stack.enter_context(progress())
        job = bar.add_task("collecting", total=len(tasks), note="compiling the simulator")
        for episode in results:
            add([episode])
            count = totals.setdefault(episode.behaviour, Counter())
            count.update(episodes=1, decisions=len(episode), recomputed_tokens=episode.facts["recomputed_tokens"],
                         candidates=int(episode.masks.sum()))
            bar.update(job, advance=1, note=f"{sum(c['decisions'] for c in totals.values()):,} decisions")
    return {name: dict(c) for name, c in totals.items()}


def _print(counts: dict[str, dict], out: Path) -> None:
    table = Table(title=f"dataset {out}", caption="computed again: tokens, summed over episodes; every behaviour saw "
                                                  "other subsets, so do not compare them here")
    for column in ("behaviour", "episodes", "decisions", "candidates a decision", "computed again"):
        table.add_column(column, justify="left" if column == "behaviour" else "right")
    for name, c in counts.items():
        table.add_row(name, str(c["episodes"]), f"{c['decisions']:,}", f"{c['candidates'] / c['decisions']:.1f}",
                      f"{c['recomputed_tokens']:,}")
    Console().print(table)


if __name__ == "__main__":
    run_script(main)
