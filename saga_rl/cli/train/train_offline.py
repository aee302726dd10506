"""Train a policy offline on datasets of `training/collect.py`, and write it as a checkpoint.

The learners are in `saga_rl.learn.offline.learners`, one file each; docs/reference/learners.md says which applies
where. The decision is the dataset's. After every epoch the whole state is kept beside `--out`, so a run that was
stopped goes on (`--resume`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from saga_rl.errors import EXIT_INTERRUPTED
from saga_rl.learn.script import check_range, numbers, progress, stop
from saga_rl.learn.tracking import WandbRun
from saga_rl.provenance import sha256


def main(
    dataset: Annotated[Path, Argument(help="Folder that training/collect.py wrote.")],
    out: Annotated[Path, Option(help="Checkpoint folder to write; an older checkpoint there is replaced.")],
    also: Annotated[list[Path] | None, Option(help="Another dataset of the same decision. Repeatable.")] = None,
    algo: Annotated[str, Option(help="rank, listwise, hazard, bc, iql or cql.")] = "rank",
    set_: Annotated[list[str] | None, Option("--set", help="key=value, an option of the learner. Repeatable.")] = None,
    clone: Annotated[str, Option(help="bc: the behaviour whose actions are cloned; eviction: belady by default.")] = "",
    reward: Annotated[str, Option(help="Weigh cost components anew: log_tct=1,recomputed_tokens=0.001.")] = "",
    epochs: Annotated[int, Option(help="Passes over the decisions.")] = 20,
    batch: Annotated[int, Option(help="Decisions a gradient step.")] = 256,
    lr: Annotated[float, Option(help="Learning rate of Adam at the start.")] = 3e-3,
    hidden: Annotated[str, Option(help="Widths of the hidden layers, with commas between.")] = "24,24",
    validation: Annotated[float, Option(help="Share of the episodes held out.")] = 0.1,
    eviction: Annotated[str, Option(help="Runs beside the checkpoint; empty: that of auto.")] = "",
    placement: Annotated[str, Option(help="Runs beside the checkpoint; empty: that of auto.")] = "",
    ordering: Annotated[str, Option(help="Runs beside the checkpoint; empty: that of auto.")] = "",
    admission: Annotated[str, Option(help="Runs beside the checkpoint; empty: that of auto.")] = "",
    trust: Annotated[float, Option(help="Eviction: score by the Bayes index + so many times the network's (0: by the "
                                        "network alone). Less than 1 keeps it near the rule on traffic it never "
                                        "saw.")] = 0.0,
    seed: Annotated[int, Option(help="The weights follow from it, bit for bit.")] = 0,
    resume: Annotated[bool, Option("--resume", help="Go on where a stopped run with the same options was.")] = False,
    wandb: Annotated[str, Option(help="disabled, offline (written beside --out) or online.")] = "offline",
    project: Annotated[str, Option(help="W&B project.")] = "saga-rl",
    note: Annotated[str, Option(help="A line for the card, e.g. how the whole pipeline is run.")] = "",
    run_dir: Annotated[Path | None, Option(help="Where W&B and the state go; default: OUT's folder.")] = None,
) -> None:
    """Train a policy offline and write it as a checkpoint."""
    from saga_rl.learn.offline.from_datasets import check_target, load, others_of, save
    from saga_rl.learn.offline.learners import learner
    from saga_rl.learn.offline.learners.options import parse
    from saga_rl.learn.offline.train import TrainConfig, train

    options = parse(learner(algo).Options, algo, set_ or [])
    for option, value, low, high in (("--epochs", epochs, 1, 1e6), ("--batch", batch, 1, 1e9), ("--lr", lr, 1e-9, 10),
                                     ("--validation", validation, 0, 0.9), ("--seed", seed, 0, 2**31),
                                     ("--trust", trust, 0, 1000)):
        check_range(option, value, low, high)
    config = TrainConfig(algo, epochs, batch, lr, [int(w) for w in numbers("--hidden", hidden, 1, 512)], validation,
                         seed, options, trust)
    check_target(out)
    folder = run_dir or out.parent
    loaded = load([dataset, *(also or [])], reward=reward)
    others = others_of(loaded.data.decision, {"eviction": eviction, "placement": placement, "ordering": ordering,
                                                  "admission": admission})
    if algo == "bc" and (clone or loaded.data.decision == "eviction"):
        loaded = load([dataset, *(also or [])], clone or "belady", reward)
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / f"{out.name}.state.safetensors"
    done = 0
    with WandbRun(wandb, project, out, {**config.facts(), "dataset": dataset.name}, "train", run_dir) as tracker:
        tracker.artifact("dataset", dataset.name, dataset, {"seam": loaded.data.decision})
        with progress() as bar:
            job = bar.add_task("training", total=epochs, note="")

            def on_epoch(epoch: int, curves: dict[str, float]) -> None:
                nonlocal done
                done = epoch
                tracker.log(curves, epoch)
                bar.update(job, completed=epoch, note=", ".join(f"{k.replace('_', ' ')} {v:.4g}"
                                                                for k, v in curves.items() if k != "train_loss"))

            try:
                result = train(loaded.data, config, on_epoch, state, resume)
            except KeyboardInterrupt:
                if not done:
                    raise
                bar.stop()
                stop(f"interrupted: epoch {done} is kept in {state}, --resume goes on from there", EXIT_INTERRUPTED)
        save(out, loaded, config, result, others, note)
        tracker.summary(result.figures)
        tracker.artifact("checkpoint", out.name, out, {"sha256": sha256(out / "policy.safetensors")})
    state.unlink(missing_ok=True)
    Console().print(f"{out}: " + ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in result.figures.items()) +
                    f" on {result.validation_decisions:,} held-out decisions", highlight=False, soft_wrap=True)
