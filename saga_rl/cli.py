"""The command `saga-rl`. Each room brings its own commands; this file joins them and turns `UserError` into exit 2."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from saga_rl import __version__
from saga_rl.aeg.cli import app as trace_app
from saga_rl.aeg.infer_cli import register as register_aeg
from saga_rl.bench.cli import register as register_bench
from saga_rl.compare.cli import register as register_compare
from saga_rl.errors import EXIT_BAD_INPUT, UserError
from saga_rl.runtime.calibrate import register as register_fit
from saga_rl.runtime.cli import register as register_runtime
from saga_rl.runtime.emulate.cli import register as register_emulate
from saga_rl.sim.cli import register as register_sim
from saga_rl.sim.profile_cli import app as profile_app

app = typer.Typer(name="saga-rl", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Train and serve scheduling policies for AI-agent inference.")
app.add_typer(trace_app, name="trace")
register_aeg(app)
register_sim(app)
register_compare(app)
register_bench(app)
register_fit(profile_app)
register_runtime(app)
register_emulate(app)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"saga-rl {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True,
                                       help="Print the version and exit.")) -> None:
    pass


def run_user_command(command) -> None:
    """Call `command()`; a `UserError` becomes one line on standard error and exit status 2. Scripts share it."""
    try:
        command()
    except UserError as e:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {e}", markup=False)
        sys.exit(EXIT_BAD_INPUT)


def main() -> None:
    run_user_command(app)
