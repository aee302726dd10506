"""`saga-rl emulate model`: model folders without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Serve without a GPU: model folders for emulated devices.")


@app.command()
def model(
    shape: Annotated[str, typer.Argument(help="llama3.1-8b, llama3-70b, qwen3-32b, gemma3-27b (windows), "
                                         "qwen3-next-80b (Mamba).")],
    out: Annotated[Path, typer.Option("--out", "--output", "-o", help="Folder to write.")],
    window: Annotated[int | None, typer.Option(help="Longest context, tokens; default: the model's own.")] = None,
) -> None:
    """Write a model's config and a small tokenizer, without weights, for `saga-rl serve FOLDER --emulate PROFILE`."""
    from saga_rl.runtime.emulate.shapes import PROFILE_OF, write_model

    write_model(shape, out, window)
    typer.echo(f"{out}: {shape}, no weights. Serve it with: saga-rl serve {out} --emulate {PROFILE_OF[shape]}")


def register(parent: typer.Typer) -> None:
    """Add `emulate` to the program."""
    parent.add_typer(app, name="emulate")
