"""Write a checkpoint's network as an ONNX file, for runtimes other than this project's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option


def main(
    checkpoint: Annotated[Path, Argument(help="Checkpoint folder.")],
    out: Annotated[Path, Option(help="File to write, e.g. policy.onnx.")],
) -> None:
    """Write a checkpoint's network as an ONNX file."""
    from saga_rl.learn.offline.onnx_export import export
    from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES, load_checkpoint

    loaded = load_checkpoint(checkpoint)
    export(loaded, out)
    n = len(LEARNED_FEATURES[loaded.decision])
    Console().print(f"{out}: rows of {n} {loaded.decision} features in, one score a row out", highlight=False)
