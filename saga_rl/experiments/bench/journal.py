"""The resumable record of a measurement: one JSON object a line, the first says what is measured."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError

Key = tuple[str, int]
"""Arm, repeat."""


class Journal:
    """Opens `path`; the file is made with the first line. A last line that was cut off by a crash is dropped.

    what: what is measured; a journal of something else is refused. weights: SHA-256 of checkpoints by arm, which must
    be those of the runs that are there. Raises `UserError`.
    """

    def __init__(self, path: Path, what: dict[str, Any], weights: dict[str, str] | None = None) -> None:
        self.path = path
        self.what = json.loads(json.dumps(what))
        self.weights = weights or {}
        self.runs: dict[Key, dict[str, Any]] = {}
        self.starts: list[dict[str, Any]] = []
        """What each start of the measurement said of itself: commit, machine, time."""
        self.fresh = True
        lines = self._read()
        if lines:
            self.fresh = False
            self._check(lines[0])
            for row in lines[1:]:
                self._take(row)

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
            raise UserError(self.path, f"is no journal of saga-rl bench ({e})", "name another --out") from None

    def _check(self, head: dict[str, Any]) -> None:
        if not isinstance(head, dict) or head.get("kind") != "bench":
            raise UserError(self.path, "does not begin with what is measured", "name another --out")
        then = head["what"]
        other = sorted(k for k in {*then, *self.what} if then.get(k) != self.what.get(k))
        if other:
            says = ", ".join(f"{k} was {then.get(k)!r}, is {self.what.get(k)!r}" for k in other)
            raise UserError(self.path, f"is of another measurement ({says[:400]})",
                            "give the options that it was begun with, or name another --out")

    def _take(self, row: dict[str, Any]) -> None:
        if row["kind"] != "run":
            self.starts.append(row)
            return
        mine, there = self.weights.get(row["arm"]), row.get("weights")
        if mine is not None and there is not None and mine != there:
            raise UserError(row["arm"], f"is another checkpoint than the one that was measured ({there[:12]} then, "
                            f"{mine[:12]} now)", "name another --out")
        self.runs[row["arm"], row["repeat"]] = row

    def done(self, arm: str, repeat: int) -> bool:
        """Whether that run is there."""
        return (arm, repeat) in self.runs

    def add(self, row: dict[str, Any]) -> None:
        """Write one row whole, on the disk before this returns."""
        if self.fresh:
            self._append({"kind": "bench", "what": self.what})
            self.fresh = False
        if row["kind"] == "run" and row["arm"] in self.weights:
            row = row | {"weights": self.weights[row["arm"]]}
        self._append(row)
        self._take(row)

    def _append(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
