"""What an import leaves out: lines that are damaged or of another shape, counted by file, line and cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from saga_rl.errors import UserError

TOLERATED = 0.1
"""Share of the records that may be left out unasked."""
FEW = 3
"""So many may always be left out: a tenth of a short file is less than its last line."""
MOST_ROWS = 1000
"""Rows of the table by file and cause; what comes after is counted in one row."""


class Place(NamedTuple):
    """Where a record begins; as text, what messages begin with."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


class LeftOut:
    """Counts what is left out. strict: the first of it is a `UserError`. lenient: any share of it is accepted."""

    def __init__(self, strict: bool = False, lenient: bool = False) -> None:
        self.strict, self.lenient = strict, lenient
        self.read = 0
        """Records that were read, among them those left out."""
        self.count = 0
        self.rows: dict[tuple[str, str], list[int]] = {}
        """(file, cause) -> [how many, line of the first]."""
        self.mend = ""
        """What to do about the first."""

    def add(self, place: Place, cause: str, mend: str = "check that the file is whole") -> None:
        """Count one record; raises `UserError` if strict."""
        if self.strict:
            raise UserError(str(place), cause, f"{mend}, or import without --strict to leave it out")
        if not self.count:
            self.mend = mend
        self.count += 1
        key = (place.file, cause)
        if key not in self.rows and len(self.rows) >= MOST_ROWS:
            key = ("further files", "further causes")
        self.rows.setdefault(key, [0, place.line])[0] += 1

    @contextmanager
    def guard(self, place: Place) -> Iterator[None]:
        """Leave out the record at `place` if what is done with it raises `UserError`."""
        try:
            yield
        except UserError as e:
            if self.strict:
                raise
            where = e.where.removeprefix(str(place)).removeprefix(", ")
            self.add(place, f"{where} {e.cause}".strip(), e.mend)

    def check(self, path: str) -> None:
        """Raise `UserError` if more than a tenth was left out and nobody asked for leniency."""
        if self.lenient or self.count <= max(FEW, TOLERATED * self.read):
            return
        (file, cause), (n, line) = self._most()
        raise UserError(path, f"has {self.count:,} of {self.read:,} records that cannot be read, {n:,} of them like "
                        f"{file}, line {line}: {cause}", "check the format, or add --lenient to leave them all out")

    def worst(self) -> str:
        """The file of which most was left out for one cause; empty if nothing was."""
        return self._most()[0][0] if self.rows else ""

    def _most(self) -> tuple[tuple[str, str], list[int]]:
        return max(self.rows.items(), key=lambda row: row[1][0])

    def first(self) -> str:
        """The first of it in words, with its mend; empty if there is none."""
        for (file, cause), (_, line) in self.rows.items():
            return f"{file}, line {line}: {cause}; {self.mend}"
        return ""

    def by_cause(self) -> dict[str, int]:
        """Cause -> how many, over all files."""
        out: dict[str, int] = {}
        for (_, cause), (n, _line) in self.rows.items():
            out[cause] = out.get(cause, 0) + n
        return out
