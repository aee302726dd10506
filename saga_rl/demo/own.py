"""The user's own Claude Code transcripts: found, and used only if the user says yes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer


def folder(home: Path | None = None) -> Path | None:
    """Where Claude Code keeps transcripts, if there are any."""
    place = Path(os.environ.get("CLAUDE_CONFIG_DIR") or (home or Path.home()) / ".claude") / "projects"
    try:
        return place if any(place.rglob("*.jsonl")) else None
    except OSError:
        return None


def asked(place: Path) -> bool:
    """Whether the user wants them used; nobody is asked without a terminal, and then they are not touched."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return typer.confirm(f"Claude Code transcripts found in {place}. Learn from them? Only lengths, times and tool "
                         "names are read, and nothing leaves this machine", default=False)
