"""Train an eviction policy offline on a dataset of `training/collect.py`, and write it as a checkpoint.

`rank` learns the order of the Belady labels pair by pair; `bc` clones the logged actions of one behaviour. The losses
and their sources are in `saga_rl.learn.losses`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import numpy as np
from rich.console import Console
from typer import Argument, Option

from saga_rl.errors import UserError, unknown_name
from saga_rl.learn.cards import checkpoint_card
from saga_rl.learn.dataset import Decisions, read_dataset
from saga_rl.learn.script import check_range, numbers, progress, run_script
from saga_rl.learn.tracking import Tracker
from saga_rl.learn.train import TrainConfig, train
from saga_rl.policies.base import Seam
from saga_rl.policies.checkpoint import save_checkpoint
from saga_rl.policies.features import LEARNED_EVICTION, feature_hash
from saga_rl.policies.presets import PRESETS
from saga_rl.policies.registry import make
from saga_rl.provenance import provenance, sha256

ALGORITHMS = {"rank": "pairwise logistic ranking on Belady labels",
              "bc": "behaviour cloning (masked cross-entropy on logged actions)"}


def main(
    dataset: Annotated[Path, Argument(help="Folder that training/collect.py wrote.")],
    out: Annotated[Path, Option(help="Checkpoint folder to write; an older checkpoint there is replaced.")],
    algo: Annotated[str, Option(help="rank or bc.")] = "rank",
    clone: Annotated[str, Option(help="bc: the behaviour whose actions are cloned.")] = "belady",
    epochs: Annotated[int, Option(help="Passes over the decisions.")] = 20,
    batch: Annotated[int, Option(help="Decisions a gradient step.")] = 256,
    lr: Annotated[float, Option(help="Learning rate of Adam at the start.")] = 3e-3,
    hidden: Annotated[str, Option(help="Widths of the hidden layers, with commas between.")] = "24,24",
    validation: Annotated[float, Option(help="Share of the episodes held out.")] = 0.1,
    placement: Annotated[str, Option(help="Companion policy of the checkpoint.")] = PRESETS["saga+"]["placement"],
    ordering: Annotated[str, Option(help="Companion policy of the checkpoint.")] = PRESETS["saga+"]["ordering"],
    admission: Annotated[str, Option(help="Companion policy of the checkpoint.")] = PRESETS["saga+"]["admission"],
    seed: Annotated[int, Option(help="The weights follow from it, bit for bit.")] = 0,
    wandb: Annotated[str, Option(help="disabled, offline (written beside --out) or online.")] = "offline",
    project: Annotated[str, Option(help="W&B project.")] = "saga-rl",
    note: Annotated[str, Option(help="A line for the card, e.g. how the whole pipeline is run.")] = "",
    run_dir: Annotated[Path | None, Option(help="Where W&B writes; default: OUT's folder.")] = None,
) -> None:
    """Train an eviction policy offline and write it as a checkpoint."""
    if algo not in ALGORITHMS:
        raise unknown_name("--algo", algo, ALGORITHMS)
    for option, value, low, high in (("--epochs", epochs, 1, 1e6), ("--batch", batch, 1, 1e9), ("--lr", lr, 1e-9, 10),
                                     ("--validation", validation, 0, 0.9), ("--seed", seed, 0, 2**31)):
        check_range(option, value, low, high)
    widths = [int(w) for w in numbers("--hidden", hidden, 1, 512)]
    companions = {"placement": placement, "ordering": ordering, "admission": admission}
    for seam, spec in companions.items():
        make(cast(Seam, seam), spec)
    if not out.parent.is_dir():
        raise UserError(out, f"its folder {out.parent} does not exist", "create it or name another place")
    data = _checked(read_dataset(dataset), dataset)
    config = TrainConfig(algo, epochs, batch, lr, widths, validation, seed)
    with Tracker(wandb, project, run_dir or out.parent, {**vars(config), "dataset": dataset.name}, "train") as tracker:
        tracker.artifact("dataset", dataset.name, dataset, data.meta)
        with progress() as bar:
            job = bar.add_task("training", total=epochs, note="")

            def on_epoch(epoch: int, curves: dict[str, float]) -> None:
                tracker.log(curves, epoch)
                bar.update(job, advance=1, note=f"validation loss {curves['validation_loss']:.4f}, pairs in order "
                                                f"{curves['pair_accuracy']:.3f}")

            result = train(_to_clone(data, clone) if algo == "bc" else data, config, on_epoch)
        meta = {"algorithm": ALGORITHMS[algo], "config": {**vars(config)}, "figures": result.figures,
                "figures_of": "decisions of held-out episodes", "note": note,
                "data": _data_facts(dataset, data, result.train_decisions, result.validation_decisions),
                "source": provenance(seed=seed, trace=None)}
        card = checkpoint_card(out.name, meta, LEARNED_EVICTION, companions)
        net = result.net
        save_checkpoint(out, "eviction", net.layers(), net.mean.numpy(), net.std.numpy(), card, meta, companions)
        tracker.summary(result.figures)
        tracker.artifact("checkpoint", out.name, out, {"sha256": sha256(out / "policy.safetensors")})
    Console().print(f"{out}: pairs in order {result.figures['pair_accuracy']:.3f}, Belady's own choice "
                    f"{result.figures['belady_agreement']:.3f} of {result.validation_decisions:,} held-out decisions",
                    highlight=False)


def _checked(data: Decisions, folder: Path) -> Decisions:
    if data.meta.get("features") != list(LEARNED_EVICTION) or data.meta.get("feature_hash") != feature_hash():
        raise UserError(folder, "was collected with other features or feature code", "collect it again")
    return data


def _to_clone(data: Decisions, behaviour: str) -> Decisions:
    if behaviour not in data.behaviours:
        raise unknown_name("behaviour in the dataset", behaviour, data.behaviours)
    keep = data.behaviour == data.behaviours.index(behaviour)
    columns = {name: getattr(data, name)[keep] for name in
               ("observations", "masks", "next_use", "actions", "rewards", "propensity", "episode")}
    return replace(data, behaviour=np.zeros(int(keep.sum()), np.int64), behaviours=[behaviour], **columns)


def _data_facts(folder: Path, data: Decisions, fitted: int, held: int) -> dict[str, str]:
    return {"dataset": f"{folder.name}, sha256 {sha256(folder / 'data' / 'main_data.hdf5')[:12]}",
            "traces": ", ".join(f"{n} (sha256 {h[:12]})" for n, h in data.meta["traces"].items()),
            "behaviours": ", ".join(data.behaviours) + f", epsilon {data.meta['epsilon']:g}",
            "KV capacities": ", ".join(map(str, data.meta["capacities"])),
            "reference strings recorded under": ", ".join(data.meta["record"]),
            "decisions": f"{fitted} to train, {held} held out (whole episodes)"}


if __name__ == "__main__":
    run_script(main)
