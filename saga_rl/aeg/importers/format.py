"""What a format is: a name, a line, shapes that tell it by content, and a reader of sessions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.reading.left_out import LeftOut, Place
from saga_rl.aeg.importers.reading.records import Progress, records
from saga_rl.aeg.quality import Quality

_ABSENT = object()
Made = TypeVar("Made")


@dataclass(frozen=True)
class Check:
    """What a field has to be; `says` completes 'the field is ..., not'."""

    says: str
    good: Callable[[Any], bool]


def one_of(*values: Any) -> Check:
    """The field is one of `values`."""
    return Check(" or ".join(map(repr, values)), lambda v: v in values and not isinstance(v, dict | list))


TEXT = Check("text", lambda v: isinstance(v, str))
NUMBER = Check("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool))
INTEGER = Check("an integer", lambda v: isinstance(v, int) and not isinstance(v, bool))
LIST = Check("a list", lambda v: isinstance(v, list))
OBJECT = Check("an object", lambda v: isinstance(v, dict))
ANY = Check("there", lambda v: v is not _ABSENT)
ABSENT = Check("absent", lambda v: v is _ABSENT)

Shape = Mapping[str, Check]
"""Path of a field (`a.b`; `a[].b`: of the first object in the list) -> what it has to be."""


class Fit(NamedTuple):
    """How well a record fits a shape: fields that fit, of how many, and the first that does not, in words."""

    good: int
    total: int
    problem: str

    @property
    def whole(self) -> bool:
        return self.good == self.total


def fit(record: dict[str, Any], shape: Shape) -> Fit:
    """Judge one record by one shape."""
    good, problem = 0, ""
    for path, check in shape.items():
        value = _dig(record, path)
        if check.good(value):
            good += 1
        elif not problem:
            known = "is missing" if value is _ABSENT else f"is {str(value)[:40]!r}, not {check.says}"
            problem = f"field {path!r} {known}"
    return Fit(good, len(shape), problem)


def _dig(value: Any, path: str) -> Any:
    for name in path.split("."):
        key = name.removesuffix("[]")
        value = value.get(key, _ABSENT) if isinstance(value, dict) else _ABSENT
        if name.endswith("[]"):
            value = next((v for v in value if isinstance(v, dict)), _ABSENT) if isinstance(value, list) else _ABSENT
    return value


@dataclass
class Reading:
    """One import under way: its files, what was asked for, and what is counted on the way."""

    files: list[Path]
    left: LeftOut
    progress: Progress | None = None
    limit: int | None = None
    tenant: str = "default"
    hash_block_tokens: int | None = None
    tokenizer: str | None = None
    dropped: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """What the format says but a trace does not hold, by reason."""
    assumed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    notes: dict[str, Any] = field(default_factory=dict)
    quality: Quality = field(default_factory=Quality)
    block: int = 0
    """Tokens that one of the sessions' block ids stands for; 0 = they have none."""
    _size: int = 0
    _done: int = 0
    timed: bool = True
    """Whether all sessions have a recorded time, so that arrivals can be theirs."""

    def records(self) -> Iterator[tuple[Place, dict[str, Any]]]:
        """(place, record) of all files, in their order."""
        for file in self.files:
            yield from self.of_file(file)

    def of_file(self, file: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
        """(place, record) of one of the files."""
        if self.progress is None:
            return records(file, self.left)
        tell, before = self.progress, self._done
        self._size = self._size or sum(f.stat().st_size for f in self.files)
        self._done += file.stat().st_size
        return records(file, self.left, lambda n: tell(before + n, self._size))

    def each(self, make: Callable[[dict[str, Any], Place, int], Iterable[Made]]) -> Iterator[Made]:
        """What `make(record, where, number)` gives for each record. One of which it raises `UserError` is left out."""
        for n, (where, record) in enumerate(self.records()):
            made: list[Made] = []
            with self.left.guard(where):
                made = list(make(record, where, n))
            yield from made

    def drop(self, reason: str, n: int = 1) -> None:
        """Count `n` of what is left out for a reason of the format."""
        self.dropped[reason] += n

    def assume(self, what: str, n: int = 1) -> None:
        """Count `n` of what had to be assumed."""
        self.assumed[what] += n


@dataclass(frozen=True)
class Format:
    """One format. `read` yields sessions; arrivals are seconds on one clock if `Reading.timed` stays true."""

    name: str
    holds: str
    """One line: what such a file is."""
    shapes: tuple[Shape, ...]
    read: Callable[[Reading], Iterable[SessionSpec]]
    options: tuple[str, ...] = ()
    """Of `Reading`, those beyond the ones that all formats have."""
    beside: Callable[[Path], list[Path]] | None = None
    """Files that belong to a single file that is named."""

    def best(self, sample: list[dict[str, Any]]) -> Fit:
        """The best fit of any record in `sample`."""
        fits = [fit(record, shape) for record in sample for shape in self.shapes]
        return max(fits, key=lambda f: (f.whole, f.good if f.whole else f.good / f.total),
                   default=Fit(0, 1, "no record"))
