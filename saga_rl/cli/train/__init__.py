"""`saga-rl train NAME`: learning, from decisions to a judged checkpoint. A module a command, imported when called;
the scripts of `training/` are the same. May import every room."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import typer

from saga_rl.cli.main import AS_IS

COMMANDS = {
    "collect": ("collect", "Collect decisions under behaviour policies into Minari datasets."),
    "offline": ("train_offline", "Train a policy offline on datasets that `collect` wrote."),
    "dagger": ("dagger", "Rounds of ranking on the policy's own states (DAgger)."),
    "sweep": ("sweep", "Search the options of an offline learner."),
    "search": ("search", "Search for policies that decide together, by whole simulated runs."),
    "finetune": ("finetune", "Fine-tune a policy by reinforcement learning, on any environment."),
    "evaluate": ("evaluate", "Evaluate a checkpoint on held-out sessions, against Bélády and presets."),
    "protocol": ("protocol", "Evaluate policies by the whole protocol: targets beside figures."),
    "workload": ("workload", "Write the sessions of a named workload's part to a trace file."),
    "export-onnx": ("export_onnx", "Write a checkpoint's network as an ONNX file."),
}
"""By name: the module, and what it does."""


def _pass_on(name: str) -> Callable[[typer.Context], None]:
    def command(ctx: typer.Context) -> None:
        from saga_rl.learn.script import run_script

        module = import_module(f"saga_rl.cli.train.{COMMANDS[name][0]}")
        run_script(module.main, list(ctx.args), f"saga-rl train {name}")

    return command


def register(program: typer.Typer) -> None:
    """Add the group to the program."""
    app = typer.Typer(no_args_is_help=True, help="Learn policies: collect decisions, train, search, judge checkpoints.")
    for name, (_, says) in COMMANDS.items():
        app.command(name, help=says, context_settings=AS_IS)(_pass_on(name))
    program.add_typer(app, name="train")
