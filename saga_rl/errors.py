"""The one exception a user's mistake raises, and the exit statuses of commands."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
"""Of a command that Ctrl-C ended."""


class UserError(Exception):
    """Bad input: `where` (file, line or field), `cause`, and `mend` (what to do about it).

    The command line prints the three on one line and exits with status 2; library callers get an ordinary
    exception whose text is the same line.
    """

    def __init__(self, where: str | Path, cause: str, mend: str) -> None:
        self.where, self.cause, self.mend = str(where), cause, mend
        super().__init__(f"{self.where}: {cause}; {mend}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        """Pickled by its parts, so that it crosses from a worker process."""
        return type(self), (self.where, self.cause, self.mend)


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """A `UserError` for a name that does not exist: the valid ones, nearest first."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    ordered = near + [n for n in names if n not in near]
    return UserError(kind, f"there is no {kind} named {name!r}", "choose one of: " + ", ".join(ordered))


def run_user_command(command: Callable[[], object]) -> None:
    """Call `command()`; a `UserError` becomes one line on standard error and exit status 2. Scripts share it."""
    try:
        command()
    except UserError as e:
        from rich.console import Console

        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {e}", markup=False)
        sys.exit(EXIT_BAD_INPUT)
