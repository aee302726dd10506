"""A digest of the code that cells depend on: what a cell computed under other code is another figure."""

from __future__ import annotations

from pathlib import Path

from saga_rl.source_hash import code_hash

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("aeg", "policies", "sim")
FILES = ("env/episodes.py",
         *(f"experiments/compare/{name}.py" for name in ("arrange", "cells", "scout", "sources", "settings")))
"""What only plans, counts or draws is not among them: it may change, and the cells stay good."""


def code_digest() -> str:
    """Hex SHA-256 over the syntax trees (not comments or layout) of every source file that makes a cell's figures, and
    over the shipped cost profiles."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    files += [ROOT / file for file in FILES]
    profiles = sorted((ROOT / "sim" / "cost" / "profiles").glob("*.json"))
    return code_hash(*(path.read_text(encoding="utf-8") for path in files),
                     repr([path.read_text(encoding="utf-8") for path in profiles]))
