"""Where a figure comes from: commit, version, seed, trace and command line, in every result file."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from saga_rl import __version__


def commit() -> str:
    """Commit of the source tree, with `-dirty` if it has local changes; "unknown" outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        out = subprocess.run(["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
                             capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return out.stdout.strip() or "unknown"


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def provenance(*, seed: int | None, trace: str | Path | None, argv: list[str] | None = None,
               **more: Any) -> dict[str, Any]:
    """The `provenance` object of a result file."""
    return {
        "commit": commit(), "version": __version__, "seed": seed,
        "trace_sha256": sha256(trace) if trace else None, "argv": sys.argv if argv is None else argv, **more,
    }
