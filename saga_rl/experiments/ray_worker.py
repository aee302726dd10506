"""What runs in the workers of a Ray cluster: they look whether their node is as the machine that asks (`Here.check`),
load compiled code once, and do their tasks."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.experiments.pool import guarded, warm

LIBRARIES = ("numpy", "numba", "llvmlite", "cma", "torch")
"""Those whose version may change a figure."""


@cache
def stamp() -> str:
    """What must be equal on all nodes for equal results: our sources, Python and libraries, as text."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.json")]):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    found = []
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join([f"saga-rl {digest.hexdigest()[:12]}", f"Python {platform.python_version()}", *found])


@dataclass(frozen=True)
class Here:
    """What the machine that started the work is like. token: of this one use of the cluster."""

    token: str
    stamp: str
    cwd: str
    marker: str

    def check(self) -> None:
        """In a worker: raise `UserError` if its node is not as that machine. Relative paths mean the same from then on.
        """
        node = f"node {socket.gethostname()} of the cluster"
        if stamp() != self.stamp:
            mine = set(stamp().split(", "))
            other = [part for part in self.stamp.split(", ") if part not in mine]
            raise UserError(node, f"has not {' and '.join(other) or 'fewer libraries'}, it has {stamp()}",
                            "install the same saga-rl, Python and libraries on every node")
        try:
            os.chdir(self.cwd)
        except OSError:
            raise UserError(node, f"has no folder {self.cwd}", SHARE) from None
        if not Path(self.marker).exists():
            raise UserError(node, f"does not see what is written to {Path(self.marker).parent}", SHARE)


SHARE = "run in a folder that every node mounts under the same path, with --out and all inputs there"
_BEGUN: set[str] = set()
"""Tokens of what this process was made ready for."""


def look(here: Here) -> tuple[Any, tuple[str, str, str] | None]:
    return guarded(here.check)


def run(here: Here, token: str, begin: Callable[..., None] | None, kept: list[Any], what: Callable[..., Any],
         arguments: tuple[Any, ...]) -> Any:
    """One task. what: gives what `guarded` gives."""
    if token not in _BEGUN:
        error = guarded(_begin, here, begin, kept)[1]
        if error:
            return None, error
        _BEGUN.add(token)
    return what(*arguments)


def _begin(here: Here, begin: Callable[..., None] | None, kept: list[Any]) -> None:
    import ray

    from saga_rl.compile_cache import compiled_once, use_cache_dir

    here.check()
    use_cache_dir()
    with compiled_once("workers of a cluster"):  # by one process of a node, however many it has
        warm()
    if begin is not None:
        begin(*ray.get(kept))
