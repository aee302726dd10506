"""What the scripts of `training/` share: user errors as one line and exit status 2, parsing of lists, progress bars."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress

from saga_rl.errors import EXIT_INTERRUPTED, UserError, run_user_command
from saga_rl.report.progress import LoggedProgress


def run_script(command: Callable[..., None], arguments: list[str] | None = None, name: str | None = None) -> None:
    """Run `command` as a typer program, on `arguments` (None: the process's own) and called `name`. A `UserError`
    becomes one line on standard error and exit status 2, Ctrl-C one line and 130; like
    `saga_rl.errors.run_user_command`, without loading the commands of the other rooms."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

    @app.command()
    @functools.wraps(command)
    def guarded(**options: Any) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` cleans up as Ctrl-C does
        try:
            command(**options)
        except KeyboardInterrupt:  # caught here because typer would turn it into status 1
            stop("interrupted: nothing was written", EXIT_INTERRUPTED)

    run_user_command(lambda: app(arguments, prog_name=name))


def stop(line: str, status: int) -> None:
    """Print `line` on standard error and exit."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(line, markup=False)
    sys.exit(status)


def progress(console: Console | None = None) -> Progress:
    """The bar that every script shows on standard error; lines where there is no terminal."""
    return LoggedProgress(console or Console(stderr=True))


def words(text: str) -> list[str]:
    """The items of a comma-separated option. A comma inside a policy spec (`wa-lru:alpha=1,beta=2`) stays: an item that
    looks like `key=value` belongs to the spec before it."""
    items: list[str] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        if items and "=" in part and ":" not in part and ":" in items[-1]:
            items[-1] += f",{part}"
        else:
            items.append(part)
    return items


def numbers(option: str, text: str, low: float, high: float = float("inf")) -> list[float]:
    """A comma-separated option as numbers within [low, high], else `UserError` naming the option."""
    out = []
    for item in words(text):
        try:
            value = float(item)
        except ValueError:
            raise UserError(option, f"{item!r} is not a number", "write numbers with commas between") from None
        if not low <= value <= high:
            raise UserError(option, f"{item} is out of range", f"choose from {low:g} to {high:g}")
        out.append(value)
    if not out:
        raise UserError(option, "is empty", "write at least one number")
    return out


def check_range(option: str, value: float, low: float, high: float = float("inf")) -> None:
    """`UserError` naming the option unless low <= value <= high."""
    if not low <= value <= high:
        raise UserError(option, f"{value:g} is out of range", f"choose from {low:g} to {high:g}")


def capacities(path: Path, kv_tokens: str, pressure: str, population: int, profile: str | None,
               ends: bool = False) -> list[int]:
    """KV capacities for the trace in `path`: those of `--kv-tokens`, or those that `--pressure` works out to."""
    from saga_rl.aeg.io import read_trace
    from saga_rl.aeg.validate import check_fits
    from saga_rl.env.episodes import capacities_for, sim_config
    from saga_rl.sim.config import SimConfig

    if bool(kv_tokens) == bool(pressure):
        raise UserError("--kv-tokens and --pressure", "the capacity is said twice or not at all", "give one of the two")
    trace = read_trace(path)
    if kv_tokens:
        given = [int(v) for v in numbers("--kv-tokens", kv_tokens, 16)]
        check_fits(trace, kv_tokens=min(given))
        return given
    config = sim_config(SimConfig.kv_tokens, population=population, profile=profile, ends=ends)
    return capacities_for(trace, config, numbers("--pressure", pressure, 0.1, 1000))


def file_label(path: Path) -> str:
    """A trace file in a card: its name and its folder's, no more of the path (that is a machine's own)."""
    return f"{path.resolve().parent.name}/{path.name}"


def new_folder(path: Path, overwrite: bool) -> Path:
    """`path`, checked to be a folder that can be made: absent or empty, or to be replaced with `overwrite`."""
    if path.exists() and not path.is_dir():
        raise UserError(path, "is a file", "name a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(path, "exists and is not empty", "name another folder or pass --overwrite")
    return path
