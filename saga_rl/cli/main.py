"""The command `saga-rl`. A command is a module beside this one, imported when it is called, so that help answers at
once; this file names them and turns `UserError` into exit 2."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import typer

from saga_rl import __version__
from saga_rl.errors import run_user_command

COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "aeg": ("Measure what is inferred of agents' behaviour online: next tools, times, ends; cold, warm, and after a "
            "change.", ("saga_rl.cli.aeg",)),
    "simulate": ("Run a trace through the simulated cluster, tools' waits included, and report completion times.",
                 ("saga_rl.cli.simulate",)),
    "bound": ("Tokens computed again by each eviction policy, over Bélády's on the same reference string (see "
              "docs/explanation/bound.md).", ("saga_rl.cli.bound",)),
    "compare": ("Compare all policies on the same sessions, paired: tables, pictures, one page "
                "(docs/how-to/compare.md).",
                ("saga_rl.cli.compare",)),
    "bench": ("Compare ways of serving the same sessions on real vLLM servers, with or without GPUs "
              "(docs/how-to/bench.md).", ("saga_rl.cli.bench",)),
    "serve": ("Serve MODEL with vLLM's OpenAI server under a scheduling policy.", ("saga_rl.cli.serve",)),
    "merge-recording": ("Make one trace of the journals that a crashed or killed server left behind.",
                        ("saga_rl.cli.merge_recording",)),
    "replay": ("Drive an OpenAI-compatible server with a trace, closed loop, tool waits included.",
               ("saga_rl.cli.replay",)),
    "trace": ("Make, import, check, look at and split traces of AI agents' LLM calls.", ("saga_rl.cli.trace",)),
    "profile": ("Cost profiles of the simulator: list, show and fit them, size KV pools.",
                ("saga_rl.cli.profile", "saga_rl.cli.profile_fit")),
    "learn": ("Learn a policy from a trace of your traffic, in one command (docs/how-to/learn.md).",
              ("saga_rl.cli.learn",)),
    "reproduce": ("Put the simulator's figures beside those of every table of the SAGA paper "
                  "(docs/explanation/paper.md).", ("saga_rl.cli.reproduce",)),
    "train": ("Learn policies: collect decisions, train, search, judge checkpoints.", ("saga_rl.cli.train",)),
    "emulate": ("Serve without a GPU: model folders for emulated devices.", ("saga_rl.cli.emulate",)),
}
"""By name: what it is for, as its own help says, and the modules that `register` it."""
AS_IS = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False,
         "help_option_names": []}
"""A command that is not imported yet reads none of its words."""

app = typer.Typer(name="saga-rl", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Train and serve scheduling policies for AI-agent inference.")


def load(name: str) -> typer.Typer:
    """Import the command `name`; returns a program that has it."""
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.callback()(lambda: None)
    for module in COMMANDS[name][1]:
        import_module(module).register(program)
    return program


def _pass_on(name: str) -> Callable[[typer.Context], None]:
    def command(ctx: typer.Context) -> None:
        status: Any = load(name)([name, *ctx.args], prog_name="saga-rl", standalone_mode=False)
        if isinstance(status, int) and status:
            raise typer.Exit(status)

    return command


for _name, (_help, _) in COMMANDS.items():
    app.command(_name, help=_help, context_settings=AS_IS)(_pass_on(_name))


def _version(show: bool) -> None:
    if show:
        typer.echo(f"saga-rl {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True,
                                       help="Print the version and exit.")) -> None:
    pass


def main() -> None:
    run_user_command(app)
