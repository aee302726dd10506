"""What of the command line can be told to be wrong at once, or in plain words: before vLLM is imported (twenty seconds)
where that is possible."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import io
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError

OWN = ("--policy", "--record", "--expiry-s", "--metrics", "--statistics", "--events", "--service-gap", "--kv-floor",
       "--afs-preempt", "--allow-untested", "--lazy-offload", "--emulate", "--time-scale", "--kv-tokens", "--ray")
"""Flags of `saga-rl serve` itself; all others are vLLM's."""
DRAIN_S = 10
"""Seconds for requests that run when the server is told to stop (vLLM's own default is 0)."""
PORT = 8000
"""vLLM's default."""


def given(flags: Sequence[str], name: str) -> str | None:
    """The value of a flag, written `--name value` or `--name=value`; "" if it stands last; None if it is not there."""
    found = None
    for at, flag in enumerate(flags):
        if flag == name:
            found = flags[at + 1] if at + 1 < len(flags) else ""
        elif flag.startswith(f"{name}="):
            found = flag.partition("=")[2]
    return found


def defaults(args: Any, flags: Sequence[str]) -> None:
    """Set what our server has otherwise than vLLM's, where the user says nothing: requests that run when it is told to
    stop have `DRAIN_S`, and answers say how many prompt tokens were cached."""
    if hasattr(args, "shutdown_timeout") and given(flags, "--shutdown-timeout") is None:
        args.shutdown_timeout = DRAIN_S
    if hasattr(args, "enable_prompt_tokens_details") and given(flags, "--no-enable-prompt-tokens-details") is None:
        args.enable_prompt_tokens_details = True


def parsed(parse: Callable[[], Any]) -> Any:
    """`parse()`, an argument parser's; its usage text, which is another command's, becomes one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse()
    except SystemExit as e:
        if not e.code:
            raise
        last = (said.getvalue().strip().splitlines() or ["cannot be read"])[-1]
        cause = last.partition("error: ")[2] or last
        said.truncate(0)
        raise UserError("saga-rl serve", cause, _mend(cause)) from None
    finally:
        sys.stderr.write(said.getvalue())


def _mend(cause: str) -> str:
    if "unrecognized arguments" not in cause:
        return "see `saga-rl serve --help` and vLLM's own flags"
    for word in cause.partition(": ")[2].split():
        near = difflib.get_close_matches(word.partition("=")[0], OWN, n=1, cutoff=0.6)
        if near:
            return f"did you mean {near[0]}?"
    return "it is neither a flag of saga-rl serve nor one of this vLLM"


def check_port(host: str | None, port: int) -> None:
    """`UserError` if nothing can listen there."""
    host = host or ""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
            s.listen(1)
        except OSError as e:
            cause = "is in use" if e.errno == errno.EADDRINUSE else f"cannot be opened ({e.strerror})"
            raise UserError(f"port {port}", cause, "choose another with --port, or stop what listens there") from None


def check_port_in(flags: Sequence[str]) -> None:
    """The same from the command line as it is, as far as it can be read; vLLM's parser has the last word."""
    port = given(flags, "--port") or str(PORT)
    elsewhere = "--headless" in flags or any(given(flags, name) is not None for name in ("--uds", "--config"))
    if port.isdigit() and not elsewhere:
        check_port(given(flags, "--host"), int(port))


@contextlib.contextmanager
def held(record: str) -> Iterator[None]:
    """Within: no other server of this machine writes the recording `record`. `UserError` names the one that does."""
    path = Path(record).resolve()
    path = path.with_name(f"{path.name}.lock")
    try:
        f = path.open("a+")
    except OSError as e:
        raise UserError(path, f"cannot be written ({e.strerror})", "name another place with --record") from None
    with f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            f.seek(0)
            who = f.read().strip() or "unknown"
            raise UserError(record, f"is in use by process {who}, which records there", "name another file") from None
        f.truncate(0)
        f.write(str(os.getpid()))
        f.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
