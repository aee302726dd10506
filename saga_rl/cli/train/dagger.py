"""Rounds of ranking on the policy's own states (DAgger): train, play, label, add, train again.

A policy that learned from other policies' states meets states of its own; here it learns what to do there. Eviction
only: other decisions have no labels. How, and from where: `saga_rl.learn.offline.dagger`.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.progress import TaskID
from rich.table import Table
from typer import Argument, Option

from saga_rl.errors import UserError
from saga_rl.files import write_json
from saga_rl.learn.script import capacities, check_range, progress
from saga_rl.provenance import provenance, sha256


def main(
    dataset: Annotated[Path, Argument(help="Folder that training/collect.py wrote, of eviction decisions.")],
    traces: Annotated[list[Path], Argument(help="Training traces to play; never those of the test set.")],
    out: Annotated[Path, Option(help="Checkpoint folder for the last round; an older checkpoint there is replaced.")],
    rounds: Annotated[int, Option(help="Rounds of playing and training again.")] = 3,
    algo: Annotated[str, Option(help="rank, listwise or hazard.")] = "rank",
    set_: Annotated[list[str] | None, Option("--set", help="key=value, an option of the learner. Repeatable.")] = None,
    kv_tokens: Annotated[str, Option(help="KV capacities, tokens, with commas between.")] = "",
    pressure: Annotated[str, Option(help="Instead: demand of the live sessions over capacity, e.g. 1.5,3.")] = "",
    epsilon: Annotated[float, Option(help="Chance of a uniformly random action when playing.")] = 0.05,
    episodes: Annotated[int, Option(help="Episodes of each trace and capacity, each round.")] = 2,
    sessions: Annotated[int, Option(help="Sessions of one episode; 0 = all of the trace.")] = 0,
    population: Annotated[int, Option(help="Closed population: sessions alive at once; 0 = the trace's arrivals.")] = 0,
    record: Annotated[str, Option(help="Preset under which the reference strings are recorded.")] = "lru",
    max_decisions: Annotated[int, Option(help="Cut an episode after so many decisions; 0 = never.")] = 0,
    epochs: Annotated[int, Option(help="Passes over the decisions, each round.")] = 20,
    batch: Annotated[int, Option(help="Decisions a gradient step.")] = 256,
    lr: Annotated[float, Option(help="Learning rate of Adam at the start.")] = 3e-3,
    validation: Annotated[float, Option(help="Share of the episodes held out.")] = 0.1,
    profile: Annotated[str | None, Option(help="Cost profile of the simulator.")] = None,
    ends: Annotated[bool, Option(help="Clients announce the end of a session.")] = False,
    rounds_dir: Annotated[Path | None, Option(help="Where rounds go; default: OUT-rounds.")] = None,
    resume: Annotated[bool, Option("--resume", help="Keep the rounds that a stopped run finished.")] = False,
    seed: Annotated[int, Option(help="Everything follows from it.")] = 0,
) -> None:
    """Train on labels, play, and train again on what was seen."""
    from saga_rl.learn.offline.dagger import DECISION, Play, fit_round, gather, judge, rounds_picture
    from saga_rl.learn.offline.from_datasets import check_target, load, republish
    from saga_rl.learn.offline.learners import LEARNERS, learner
    from saga_rl.learn.offline.learners.options import parse
    from saga_rl.learn.offline.train import TrainConfig
    from saga_rl.policies.presets import preset

    options = parse(learner(algo).Options, algo, set_ or [])
    if learner(algo).needs != "labels":
        labelled = [name for name, kind in LEARNERS.items() if kind.needs == "labels"]
        raise UserError("--algo", f"{algo} does not learn from labels", "choose one of: " + ", ".join(labelled))
    for option, value, low, high in (("--rounds", rounds, 1, 100), ("--epochs", epochs, 1, 1e6), ("--lr", lr, 1e-9, 10),
                                     ("--batch", batch, 1, 1e9), ("--validation", validation, 0, 0.9),
                                     ("--epsilon", epsilon, 0, 1), ("--episodes", episodes, 1, 1e6),
                                     ("--sessions", sessions, 0, 1e9), ("--population", population, 0, 1e9),
                                     ("--max-decisions", max_decisions, 0, 1e12), ("--seed", seed, 0, 2**31)):
        check_range(option, value, low, high)
    preset(record)
    check_target(out)
    folder = rounds_dir or out.with_name(f"{out.name}-rounds")
    loaded = load([dataset])
    if loaded.data.decision != DECISION:
        raise UserError(dataset, f"is of {loaded.data.decision}, which has no labels", "collect evictions")
    places = [(path, kv) for path in traces
              for kv in capacities(path, kv_tokens, pressure, population, profile, ends)]
    play = Play(places, episodes, epsilon, sessions, population, record, max_decisions, loaded.data.masks.shape[1],
                profile, seed, ends)
    config = TrainConfig(algo, epochs, batch, lr, validation=validation, seed=seed, options=options)
    plan = {"config": config.facts(), "play": play.facts(), "dataset": sha256(dataset / "data" / "main_data.hdf5")}
    _check_folder(folder, json.loads(json.dumps(plan)), resume)
    rows: list[dict[str, Any]] = []
    folders = [dataset]
    with progress() as bar:
        for number in range(rounds + 1):
            if number:
                played = bar.add_task(f"round {number}, playing", total=len(places) * episodes, note="")
                before = folder / f"policy-{number - 1}"
                seen = gather(play, number, before, folder / f"round-{number}-v0",
                              partial(bar.update, played, advance=1))
                bar.update(played, completed=len(places) * episodes)
                folders.append(seen)
                rows.append(judge(number, before, seen))
            trained = bar.add_task(f"round {number}, training", total=epochs, note="")

            def on_epoch(epoch: int, curves: dict[str, float], trained: TaskID = trained) -> None:
                bar.update(trained, completed=epoch, note=f"pairs in order {curves['pair_accuracy']:.3f}")

            figures = fit_round(number, folders, config, folder / f"policy-{number}", on_epoch)
            bar.update(trained, completed=epochs)
    source = provenance(seed=seed, trace=None)
    result = {"rounds": rows, "held_out_figures": figures, "plan": plan, "provenance": source}
    write_json(folder / "rounds.json", result)
    rounds_picture(rows, folder / "rounds.png")
    republish(folder / f"policy-{rounds}", out, source=source, note=f"{rounds} rounds on the policy's own states")
    _print(rows, out)


def _check_folder(folder: Path, plan: dict[str, Any], resume: bool) -> None:
    """Make the folder of the rounds, or check that it holds rounds of this very plan."""
    path = folder / "plan.json"
    if not folder.exists():
        if not folder.parent.is_dir():
            raise UserError(folder, f"its folder {folder.parent} does not exist", "create it or name another place")
        folder.mkdir()
        write_json(path, plan)
        return
    if not resume:
        raise UserError(folder, "exists", "pass --resume to go on there, or name another --rounds-dir")
    if not path.is_file() or json.loads(path.read_text()) != plan:
        raise UserError(folder, "holds rounds of other options or data", "give the same, or name another --rounds-dir")


def _print(rows: list[dict[str, Any]], out: Path) -> None:
    table = Table(title=f"{out}: policies on states of their own, before they were trained on them",
                  caption="figures of single decisions; training/evaluate.py measures whole runs")
    for column in ("trained for, rounds", "decisions", "pairs in order", "Belady's own choice"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(str(row["round"] - 1), f"{row['own_decisions']:,.0f}", f"{row['own_pair_accuracy']:.3f}",
                      f"{row['own_belady_agreement']:.3f}")
    Console().print(table)
