"""Files are written whole or not at all, and read with errors that a user can act on."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError

LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a write fails with that its place is to blame for."""


def check_target(path: str | Path | None) -> None:
    """`UserError` if no file can be written at `path`: ask before the work that would be lost. None is fine."""
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise UserError(path, "is a folder", "name a file")
    if not path.parent.is_dir():
        raise UserError(path, f"its folder {path.parent} does not exist", "create it or name another place")
    if not os.access(path.parent, os.W_OK):
        raise UserError(path, f"its folder {path.parent} cannot be written to", "check its permissions")


@contextmanager
def locked(folder: Path, by: str) -> Iterator[None]:
    """`folder` for this process alone, by the file `.lock` in it. `UserError` if another `by` has it."""
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(folder, f"is in use by another {by}", "wait for it, or name another folder") from None
        yield


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that is renamed to it on success and removed on failure."""
    path = Path(path)
    check_target(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as e:
        raise UserError(path, f"cannot write there ({e.strerror})", "check permissions and free space") from None
    os.close(handle)
    tmp = Path(name)
    try:
        yield tmp
        tmp.chmod(0o644)
        tmp.replace(path)
    except OSError as e:
        if e.errno not in FULL:
            raise
        raise UserError(path, f"could not be written ({os.strerror(e.errno)}); nothing was left behind",
                        "free some space, or name another place") from None
    finally:
        tmp.unlink(missing_ok=True)


def must_exist(path: str | Path) -> Path:
    """`path` as a readable file, else `UserError`."""
    path = Path(path)
    if not path.exists():
        raise UserError(path, "no such file", "check the path")
    if path.is_dir():
        raise UserError(path, "is a folder, not a file", "name the file itself")
    if not os.access(path, os.R_OK):
        raise UserError(path, "cannot be read", "check its permissions")
    return path


def write_json(path: str | Path, value: Any) -> None:
    """Indented JSON with a final newline, atomically; NaN and infinities are refused (write null instead)."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic(path) as tmp:
        tmp.write_text(text)
