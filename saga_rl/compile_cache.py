"""Where compiled code is kept. Numba's own cache does not notice a change in a function that another file calls, so the
folder carries a hash of every source file that compiled code is built from: an edit there means a fresh folder.

`SAGA_RL_CACHE` names another parent folder than the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder for this source tree's compiled code."""
    here = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for folder in ("policies", "sim"):
        for path in sorted((here / folder).rglob("*.py")):
            digest.update(path.read_bytes())  # constants stand in files that hold no compiled function
    base = os.environ.get("SAGA_RL_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "saga-rl" / "numba" / digest.hexdigest()[:16]


def use_cache_dir() -> None:
    """Point numba there, unless the user set `NUMBA_CACHE_DIR`. Must run before the first compiled function is made."""
    if "NUMBA_CACHE_DIR" not in os.environ:
        os.environ["NUMBA_CACHE_DIR"] = str(cache_dir())
