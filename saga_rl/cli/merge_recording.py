"""`saga-rl merge-recording`: one trace of the journals that a crashed or killed server left behind."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(name="merge-recording")(merge_recording)


def merge_recording(
    journals: Path = typer.Argument(help="The folder FILE.journal that `serve --record FILE` left behind."),
    out: Path = typer.Option(..., "--out", "--output", "-o", help="Trace file to write."),
    keep: bool = typer.Option(False, help="Keep the journals."),
) -> None:
    """Make one trace of the journals that a crashed or killed server left behind."""
    from saga_rl.runtime.recording.merge import merge

    trace = merge(journals, out, keep)
    typer.echo(f"{out}: {trace.n_sessions} sessions, {trace.n_steps} steps")
