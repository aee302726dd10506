"""Experiment tracking through Weights & Biases: curves, configuration, dataset and checkpoint as artifacts.

Modes: `offline` (default) writes a run folder that `wandb sync` can upload later; `online` sends while training;
`disabled` does nothing and does not even import wandb. Offline and disabled contact nothing. Everything that wandb
writes, its staging area included, lies in a folder `wandb` beside the output, or in the folder for runs where a script
has one.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

from saga_rl.errors import UserError, unknown_name

MODES = ("disabled", "offline", "online")
COPY_LIMIT_BYTES = 20_000_000
"""A larger file of a dataset is logged as a reference (path, size, checksum) instead of a copy."""


class WandbRun:
    """A run of `project`, or nothing at all when disabled. Use as a context: a failed run is marked as failed.

    output: what is made; run_dir: where files of the run go instead of beside it. Raises `UserError`.
    """

    def __init__(self, mode: str, project: str, output: Path, config: dict[str, Any], job: str,
                 run_dir: Path | None = None) -> None:
        if mode not in MODES:
            raise unknown_name("--wandb mode", mode, MODES)
        self.run: Any = None
        if mode == "disabled":
            return
        folder = run_dir or output.parent
        base = folder / "wandb"
        base.mkdir(parents=True, exist_ok=True)
        for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR", "WANDB_CONFIG_DIR"):
            os.environ[name] = str(base / name.split("_")[1].lower())
        if mode == "offline":
            os.environ["WANDB_ERROR_REPORTING"] = "false"  # read at import: the client's own crash reports
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb", "the package wandb is not installed",
                            "install the extra saga-rl[train] or pass --wandb disabled") from None
        self.wandb = wandb
        settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True)
        try:
            self.run = wandb.init(project=project, dir=folder, mode="online" if mode == "online" else "offline",
                                  config=config, job_type=job, settings=settings)
        except Exception as e:  # wandb wraps network, login and quota failures in many types
            raise UserError("--wandb", f"wandb could not start ({e})", "pass --wandb offline or disabled") from None

    def log(self, values: dict[str, float], step: int) -> None:
        """One point of every curve in `values`."""
        if self.run is not None:
            self.run.log(values, step=step)

    def summary(self, values: dict[str, Any]) -> None:
        """Final figures."""
        if self.run is not None:
            self.run.summary.update(values)

    def artifact(self, kind: str, name: str, folder: Path, metadata: dict[str, Any]) -> None:
        """Log `folder` (kind: "dataset", "checkpoint", "evaluation") as an artifact."""
        if self.run is None:
            return
        artifact = self.wandb.Artifact(name, type=kind, metadata=metadata)
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and "wandb" not in p.relative_to(folder).parts):
            if path.stat().st_size > COPY_LIMIT_BYTES:
                artifact.add_reference(path.resolve().as_uri(), name=str(path.relative_to(folder)))
            else:
                artifact.add_file(str(path), name=str(path.relative_to(folder)))
        self.run.log_artifact(artifact)

    def __enter__(self) -> WandbRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.run is not None:
            self.run.finish(exit_code=0 if kind is None else 1)
