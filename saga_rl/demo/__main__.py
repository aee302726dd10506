"""`python -m saga_rl.demo`, which is `make demo`."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import typer
from rich.console import Console

from saga_rl.cli import run_user_command
from saga_rl.demo.outcome import show, write_page
from saga_rl.demo.ring import run
from saga_rl.demo.settings import Settings
from saga_rl.demo.stages import StageFailed


def main(
    trace: Path | None = typer.Option(None, help="Start from this trace instead of a generated workload."),
    importer: str | None = typer.Option(
        None, "--format", help="The trace is a native file of this format (see `saga-rl trace import`)."),
    folder: Path = typer.Option(Settings.folder, help="Where everything is written."),
    seed: int = typer.Option(Settings.seed, min=0, help="Workload, split, training and weights follow from it."),
) -> None:
    """Trace, collect, train, evaluate, serve with two real vLLM engines, record: the whole ring, in minutes."""
    console, begin = Console(), time.monotonic()
    settings = Settings(folder=folder, trace=trace, importer=importer, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        outcome = run(settings, console)
    except StageFailed as e:
        console.print(f"demo stopped: {e}", markup=False, style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("demo stopped by you; its servers are stopped too")
        raise typer.Exit(130) from None
    show(settings, outcome, console)
    write_page(settings, outcome, folder / "report.html")
    console.print(f"report: {folder / 'report.html'}   figures: {folder / 'results.json'}   "
                  f"recorded: {folder / 'recorded.parquet'}   {time.monotonic() - begin:.0f} s in all", soft_wrap=True)


if __name__ == "__main__":
    run_user_command(lambda: typer.run(main))
