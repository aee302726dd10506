"""Numbers for the columns of a row, from one list of their names: what a decision's file declares is all there is."""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeVar, cast

Columns = TypeVar("Columns", bound=tuple[Any, ...])


def number(record: type[Columns], **wide: int) -> tuple[Columns, tuple[str, ...]]:
    """Return (where each field of a NamedTuple begins in a row, the names of all columns).

    wide: fields that are several columns, and how many: `mine=4` gives mine_0 ... mine_3. The numbers stand in a module
    with the record's fields, whose attributes numba takes as constants (`row[EV.idle_s]`); a named tuple of forty is
    made anew in compiled code at each use of it.
    """
    places, names = ModuleType(record.__name__, record.__doc__), list[str]()
    for field in record._fields:  # type: ignore[attr-defined]
        setattr(places, field, len(names))
        names += [f"{field}_{k}" for k in range(wide[field])] if field in wide else [field]
    return cast(Columns, places), tuple(names)
