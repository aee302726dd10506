"""Where compiled code is kept. Numba's own cache does not notice a change in a function that another file calls, so the
folder carries a hash of every source file that compiled code is built from, and of numba's version: an edit there means
a fresh folder, and environments with different numbas do not undo each other's.

`SAGA_RL_CACHE` names another parent folder than the user's cache folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path


def cache_dir() -> Path:
    """The folder for this source tree's compiled code."""
    here = Path(__file__).resolve().parent
    digest = hashlib.sha256(version("numba").encode() + (here / "njit.py").read_bytes())
    for folder in ("policies", "sim"):
        for path in sorted((here / folder).rglob("*.py")):
            digest.update(path.read_bytes())  # constants stand in files that hold no compiled function
    base = os.environ.get("SAGA_RL_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "saga-rl" / "numba" / digest.hexdigest()[:16]


def use_cache_dir() -> None:
    """Point numba there, unless the user set `NUMBA_CACHE_DIR`. Must run before the first compiled function is made."""
    if "NUMBA_CACHE_DIR" not in os.environ:
        os.environ["NUMBA_CACHE_DIR"] = str(cache_dir())


@contextmanager
def compiled_once(what: str) -> Iterator[None]:
    """Let one process after the other in until one of them has compiled `what`, a name that says function and argument
    types; those that come later load it from disk. Nobody waits for what was compiled before."""
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    done = folder / (hashlib.sha256(what.encode()).hexdigest()[:16] + ".done")
    if done.exists():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with done.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        done.touch()
