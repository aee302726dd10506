"""Search the options of an offline learner, and write the best trial's checkpoint.

Trials train on the same split with the same seed and differ in what they draw. They are compared on held-out episodes
of the datasets given, never on test data. Beside the trials lie `sweep.json` and `sweep.png`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from saga_rl.cli.ray_option import Ray
from saga_rl.errors import UserError, unknown_name
from saga_rl.files import write_json
from saga_rl.learn.script import check_range, progress
from saga_rl.provenance import provenance


def main(
    dataset: Annotated[list[Path], Argument(help="Folders that training/collect.py wrote, of one decision.")],
    out: Annotated[Path, Option(help="Checkpoint folder for the best trial; an older checkpoint there is replaced.")],
    algo: Annotated[str, Option(help="rank, listwise, hazard, bc, iql or cql.")] = "rank",
    backend: Annotated[str, Option(help="local (here, one by one), tune (Ray Tune, two at once) or wandb.")] = "local",
    trials: Annotated[int, Option(help="Trials.")] = 20,
    epochs: Annotated[int, Option(help="Passes over the decisions, each trial.")] = 20,
    validation: Annotated[float, Option(help="Share of the episodes held out.")] = 0.2,
    clone: Annotated[str, Option(help="bc: the behaviour whose actions are cloned; eviction: belady by default.")] = "",
    reward: Annotated[str, Option(help="Weigh cost components anew: log_tct=1,recomputed_tokens=0.001.")] = "",
    ray: Ray = "",
    trials_dir: Annotated[Path | None, Option(help="Where trials go; default: OUT-sweep. Local trials that are there "
                                                   "are not run again.")] = None,
    project: Annotated[str, Option(help="W&B project (backend wandb).")] = "saga-rl",
    seed: Annotated[int, Option(help="What is drawn, the split and the weights follow from it.")] = 0,
) -> None:
    """Search the options of an offline learner, and write the best trial's checkpoint."""
    from saga_rl.experiments.place import place
    from saga_rl.learn.offline.from_datasets import check_target, load, others_of, republish
    from saga_rl.learn.offline.learners import learner
    from saga_rl.learn.offline.sweep import best_of, criterion_of, summary
    from saga_rl.learn.offline.sweep_backends import BACKENDS, Plan, local, tune, wandb
    from saga_rl.learn.offline.sweep_picture import sweep_picture

    learner(algo)
    if backend not in BACKENDS:
        raise unknown_name("--backend", backend, BACKENDS)
    for option, value, low, high in (("--trials", trials, 1, 10_000), ("--epochs", epochs, 1, 1e6),
                                     ("--validation", validation, 0, 0.9), ("--seed", seed, 0, 2**31)):
        check_range(option, value, low, high)
    if ray and backend != "local":
        raise UserError("--ray", f"is given with --backend {backend}", "leave one of the two out")
    check_target(out)
    folder = trials_dir or out.with_name(f"{out.name}-sweep")
    if folder.exists() and not folder.is_dir():
        raise UserError(folder, "is a file", "name a folder with --trials-dir")
    decision = load(dataset, reward=reward).data.decision
    if algo == "bc" and decision == "eviction":
        clone = clone or "belady"
    clone = clone if algo == "bc" else ""
    if clone:
        load(dataset, clone, reward)
    others = others_of(decision, {})
    plan = Plan(algo, trials, tuple(str(f.resolve()) for f in dataset), reward, clone, epochs, validation,
                seed, str(folder.resolve()), others)
    records = []
    with place(1, ray, out) as chosen, progress() as bar:
        runs: dict[str, Iterator[dict[str, Any]]] = {"local": local(plan, chosen), "tune": tune(plan),
                                                     "wandb": wandb(plan, project)}
        folder.mkdir(parents=True, exist_ok=True)
        job = bar.add_task(f"{trials} trials of {algo}", total=trials, note="")
        for record in runs[backend]:
            records.append(record)
            bar.update(job, advance=1, note=f"best {criterion_of(algo)} {best_of(records)['score']}")
    best = best_of(records)
    if best["score"] is None:
        raise UserError("sweep", f"no trial has a {criterion_of(algo)}", "hold out more, or collect more episodes")
    result = {**summary(algo, records), "backend": backend, "plan": plan.identity(), "trials": records,
              "provenance": provenance(seed=seed, trace=None)}
    write_json(folder / "sweep.json", result)
    sweep_picture(result, folder / "sweep.png")
    budget = result["budget"]
    republish(plan.checkpoint(best["trial"]), out, source=result["provenance"],
              note=f"best of {budget['trials']} trials by {result['criterion']} on held-out episodes; the search saw "
                   f"{budget['decisions_seen']:,} decisions",
              sweep={k: result[k] for k in ("budget", "criterion", "plan")})
    _print(result, out)


def _print(result: dict[str, Any], out: Path) -> None:
    ranked = sorted(result["trials"], key=lambda t: (t["score"] is None, -(t["score"] or 0.0)))
    table = Table(title=f"{out}: {result['algo']}, best 10 of {len(ranked)} trials",
                  caption=f"{result['budget']['decisions_seen']:,} decisions seen; figures are of held-out decisions")
    for column in ("trial", result["criterion"], *result["space"]):
        table.add_column(column, justify="right")
    for t in ranked[:10]:
        values = [v if isinstance(v, str) else f"{v:.3g}" for v in (t["values"][name] for name in result["space"])]
        table.add_row(str(t["trial"]), "-" if t["score"] is None else f"{t['score']:.4f}", *values)
    Console().print(table)
