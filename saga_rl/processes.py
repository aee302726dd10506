"""Processes that a command starts and has to end: a server with all its engines, a script, a router."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

SERVE = (sys.executable, "-c", "from saga_rl.cli.main import main; main()", "serve")
"""`saga-rl serve`. With -c there is no main module that every engine process would import again."""
TAIL_LINES = 12


class ProcessFailed(Exception):
    """A process did not do what it was started for; the message says which, and where to read why."""


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Child:
    """A process in a session of its own, so that it and everything it started can be stopped together."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.name, self.log = name, log
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                            start_new_session=True, env=os.environ | (env or {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop(grace_s=0.0 if self.process.poll() is not None else 10.0)

    def failure(self, cause: str) -> ProcessFailed:
        """The exception for `cause`, with the last lines of the log."""
        tail = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return ProcessFailed(f"{self.name} {cause}; its log is {self.log}, which ends with:\n" + "\n".join(tail))

    def stop(self, grace_s: float = 40.0) -> None:
        """Ask it to end, and after `grace_s` seconds end whatever is left of its session."""
        if self.process.poll() is None and grace_s:
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
