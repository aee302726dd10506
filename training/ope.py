"""Rank policies from logged decisions alone, and say how well that predicts the simulator's own ranking.

Estimates come from the dataset of a validation split; nothing is played for them. Then each policy plays the dataset's
episodes (unless --no-online) and the ranks are compared. `--pick` names the checkpoint to keep, without the test set.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from saga_rl.errors import UserError, unknown_name
from saga_rl.files import write_json
from saga_rl.learn.data.collect import label
from saga_rl.learn.data.dataset import Decisions, episode_facts, read_dataset, rows_hash
from saga_rl.learn.judge.ope.estimators import Estimate
from saga_rl.learn.judge.ope.fqe import FqeConfig
from saga_rl.learn.judge.ope.paths import MODES, cut
from saga_rl.learn.judge.ope.picture import study_picture
from saga_rl.learn.judge.ope.study import ESTIMATORS, Study, estimate, pick, play_targets, rank_correlations
from saga_rl.learn.script import check_range, new_folder, progress, run_script, words
from saga_rl.policies.registry import make
from saga_rl.provenance import provenance, sha256

TARGETS = "lru,lru-protect,wa-lru,youngest"
NAMES = {"wis": "importance sampling", "fqe": "fitted Q", "dr": "doubly robust", "labels": "Belady's labels"}


def main(
    dataset: Annotated[Path, Argument(help="Dataset of a validation split (training/collect.py).")],
    out: Annotated[Path, Option(help="Folder to write: ope.json, ope.png.")],
    traces: Annotated[str, Option(help="Trace files it was collected from, with commas between.")] = "",
    targets: Annotated[str, Option(help="Policies to evaluate, also learned:FOLDER.")] = TARGETS,
    mode: Annotated[str, Option(help="Stretches: " + ", ".join(MODES) + ".")] = "windows",
    horizon: Annotated[int, Option(help="Decisions of a stretch that is weighed.")] = 8,
    model_horizon: Annotated[int, Option(help="Decisions of a stretch for fitted Q alone.")] = 64,
    gamma: Annotated[float, Option(help="Discount a decision.")] = 1.0,
    sweeps: Annotated[int, Option(help="Fitted Q: passes over the data; 0 = horizon + 20.")] = 0,
    online: Annotated[bool, Option(help="Also play the targets, to compare.")] = True,
    picking: Annotated[bool, Option("--pick", help="Name the best learned target (or the best of all).")] = False,
    by: Annotated[str, Option(help="Estimator that picks: " + ", ".join(ESTIMATORS) + "; empty = labels for evictions, "
                                   "else dr.")] = "",
    seed: Annotated[int, Option(help="Of fitted Q and the resamples.")] = 0,
    overwrite: Annotated[bool, Option("--overwrite", help="Write into --out although it is not empty.")] = False,
) -> None:
    """Rank policies from logged decisions alone, and say how well that predicts the simulator's ranking."""
    if by and by not in ESTIMATORS:
        raise unknown_name("--by", by, ESTIMATORS)
    if mode not in MODES:
        raise unknown_name("--mode", mode, MODES)
    for option, value, low, high in (("--horizon", horizon, 1, 1e6), ("--gamma", gamma, 0, 1),
                                     ("--model-horizon", model_horizon, 1, 1e6),
                                     ("--sweeps", sweeps, 0, 1e6), ("--seed", seed, 0, 2**31)):
        check_range(option, value, low, high)
    new_folder(out, overwrite)
    if not out.parent.is_dir():
        raise UserError(out, f"its folder {out.parent} does not exist", "create it or name another place")
    data = read_dataset(dataset)
    if data.meta.get("feature_hash") != rows_hash(data.seam):
        raise UserError(dataset, "was collected with other feature code", "collect it again")
    if data.seam not in ("eviction", "placement"):
        raise UserError(dataset, f"is of seam {data.seam}", "name a dataset of evictions or placements")
    by = by or ("labels" if data.seam == "eviction" else "dr")
    specs = {label(spec): spec for spec in words(targets)}
    if len(specs) < len(words(targets)) or not specs:
        raise UserError("--targets", "names nothing, or a name twice", "give each checkpoint folder its own name")
    policies = {name: make(data.seam, spec) for name, spec in specs.items()}  # type: ignore[arg-type]
    facts = episode_facts(dataset)
    if not all("file" in fact for fact in facts):
        raise UserError(dataset, "does not say how its episodes were played", "collect it again")
    files = _files(data, words(traces)) if online else {}
    paths, long = cut(data, mode, horizon), cut(data, mode, model_horizon)
    with progress() as bar:
        job = bar.add_task("off-policy evaluation", total=len(policies) + (len(facts) if online else 0), note="")

        def tick(note: str) -> None:
            bar.update(job, advance=1, note=note)

        estimates, agreement = estimate(data, policies, paths, long, gamma, FqeConfig(sweeps=sweeps, seed=seed), tick)
        truth = play_targets(facts, files, data.seam, policies, specs, tick) if online else None
    study = Study(estimates, agreement, truth, 0 if truth is None else truth.size)
    learned = [name for name in specs if name.startswith("learned:")]
    result: dict[str, Any] = {
        "provenance": provenance(seed=seed, trace=None, dataset_sha256=sha256(dataset / "data" / "main_data.hdf5")),
        "dataset": dataset.name, "seam": data.seam, "mode": mode, "horizon": horizon, "model_horizon": model_horizon,
        "gamma": gamma, "paths": len(paths.cluster), "episodes": len(facts), "online_evaluations": study.online,
        "targets": {name: _row(study, k, name) for k, name in enumerate(specs)},
        "rank_correlation": rank_correlations(study, seed) if online else None,
        "picked": pick(study, by, learned or list(specs)) if picking else None, "picked_by": by if picking else None}
    out.mkdir(exist_ok=True)
    write_json(out / "ope.json", result)
    study_picture(result, out / "ope.png")
    _print(result)


def _files(data: Decisions, given: list[str]) -> dict[str, Path]:
    """The trace file behind each label of the dataset, known by its contents."""
    if not given:
        raise UserError("--traces", "is empty", "name the traces that were collected from, or pass --no-online")
    mine = {sha256(p): Path(p) for p in given if Path(p).is_file()}
    files = {}
    for name, digest in data.meta["traces"].items():
        if digest not in mine:
            raise UserError("--traces", f"holds no file with the contents of {name}", "name the file that was "
                            "collected from, or pass --no-online")
        files[name] = mine[digest]
    return files


def _row(study: Study, k: int, name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"agreement": study.agreement[name],
                           "mean_return": None if study.truth is None else float(study.truth[k].mean())}
    for estimator, e in study.estimates[name].items():
        row[estimator] = None if e is None else {
            "value": e.value, **{key: value if math.isfinite(value) else None for key, value in
                                 (("low", e.low), ("high", e.high), ("effective", e.effective))}}
    return row


def _cell(e: dict[str, Any] | Estimate | None) -> str:
    if e is None:
        return "-"
    assert isinstance(e, dict)
    span = "" if e["low"] is None else f" [{e['low']:.3f}, {e['high']:.3f}]"
    return f"{e['value']:.3f}{span}"


def _print(result: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"{result['paths']:,} stretches of {result['episodes']} episodes ({result['mode']}, horizon "
                        f"{result['horizon']}; fitted Q {result['model_horizon']})",
                  caption=f"online evaluations spent: {result['online_evaluations']}; -: no overlap, or no labels")
    for column in ("target", "agrees", *NAMES.values(), "effective stretches", "return when played"):
        table.add_column(column, justify="left" if column == "target" else "right")
    for name, row in result["targets"].items():
        effective = "-" if row["wis"] is None else f"{row['wis']['effective']:.1f}"
        played = "-" if row["mean_return"] is None else f"{row['mean_return']:,.1f}"
        table.add_row(name, f"{row['agreement']:.2f}", *(_cell(row[e]) for e in ESTIMATORS), effective, played)
    console.print(table)
    for estimator, row in (result["rank_correlation"] or {}).items():
        if "spearman" not in row:
            console.print(f"{NAMES[estimator]}: estimates for {row['targets']} targets, too few to rank")
            continue
        text = ", ".join(f"{measure} {_cell(row[measure]) if row[measure]['value'] is not None else 'undefined'}"
                         for measure in ("spearman", "kendall"))
        console.print(f"{NAMES[estimator]}: {text}; its choice costs {row['regret']:.1f} of return", highlight=False)
    if result["picked"]:
        console.print(f"picked by {NAMES[result['picked_by']]}: {result['picked']}", highlight=False)


if __name__ == "__main__":
    run_script(main)
