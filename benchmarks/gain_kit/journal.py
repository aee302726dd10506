"""The resumable record of a measurement: one JSON object a line, the first says what is measured."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError

Key = tuple[str, float, int]
"""Arm, pressure, repeat."""


class Journal:
    """Opens `path`, made new or continued. A last line that was cut off by a crash is dropped.

    setup: what is measured; a journal of another one is refused, but arms may differ: runs stand each for itself, and
    an arm may come later. Raises `UserError`.
    """

    def __init__(self, path: Path, setup: dict[str, Any]) -> None:
        self.path = path
        self.setup = json.loads(json.dumps(setup))
        self.runs: dict[Key, dict[str, Any]] = {}
        self.sessions: list[dict[str, Any]] = []
        """What each start of the measurement said of itself: commit, machine, time."""
        lines = self._read()
        if lines:
            self._check(lines[0])
            for row in lines[1:]:
                if row["kind"] == "run":
                    self.runs[row["arm"], row["pressure"], row["repeat"]] = row
                else:
                    self.sessions.append(row)
        else:
            self._append({"kind": "setup", "setup": self.setup})

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data[:data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        try:
            return [json.loads(text) for text in whole.splitlines()]
        except ValueError as e:
            raise UserError(self.path, f"is no journal of this benchmark ({e})", "name another --out") from None

    def _check(self, head: dict[str, Any]) -> None:
        if head.get("kind") != "setup":
            raise UserError(self.path, "does not begin with what is measured", "name another --out")
        other = sorted(k for k in {*head["setup"], *self.setup} - {"arms"} if head["setup"].get(k) != self.setup.get(k))
        if other:
            raise UserError(self.path, f"is of another measurement (other: {', '.join(other)})",
                            "give the flags it was begun with, or name another --out")

    def done(self, arm: str, pressure: float, repeat: int) -> bool:
        return (arm, pressure, repeat) in self.runs

    def add(self, row: dict[str, Any]) -> None:
        """Write one row whole, on the disk before this returns."""
        self._append(row)
        if row["kind"] == "run":
            self.runs[row["arm"], row["pressure"], row["repeat"]] = row
        else:
            self.sessions.append(row)

    def _append(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
