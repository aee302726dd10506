"""`python -m saga_rl.demo`, which is `make demo`."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console

from saga_rl.demo import own
from saga_rl.demo.outcome import show, write_page
from saga_rl.demo.ring import run
from saga_rl.demo.settings import Settings
from saga_rl.errors import EXIT_INTERRUPTED, run_user_command
from saga_rl.processes import ProcessFailed


def main(
    trace: Path | None = typer.Option(None, help="Start from this trace instead of a generated workload."),
    importer: str | None = typer.Option(
        None, "--format", help="The trace is a native file of this format (see `saga-rl trace import`)."),
    folder: Path = typer.Option(Settings.folder, help="Where everything is written."),
    seed: int = typer.Option(Settings.seed, min=0, help="Workload, split, search and draws follow from it."),
) -> None:
    """Learn a policy from agent sessions and serve others under it, stock vLLM and a rival: some minutes, no GPU."""
    console, begin = Console(), time.monotonic()
    settings = Settings(folder=folder, trace=trace, importer=importer, seed=seed)
    place = own.folder() if trace is None else None
    if place is not None and own.asked(place):
        settings = replace(settings, trace=place, importer="claude-code")
    console.print("vLLM is real in what follows, the GPUs are emulated: each step waits as long as one of an H100 "
                  "takes.", highlight=False, soft_wrap=True)
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        outcome = run(settings, console)
    except ProcessFailed as e:
        console.print(f"demo stopped: {e}", markup=False, style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("demo stopped by you; its servers are stopped too")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    show(outcome, console)
    write_page(settings, outcome, folder / "report.html")
    console.print(f"report: {folder / 'report.html'}   figures: {folder / 'results.json'}   "
                  f"{time.monotonic() - begin:.0f} s in all", soft_wrap=True)


if __name__ == "__main__":
    run_user_command(lambda: typer.run(main))
