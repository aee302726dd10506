"""Strict access to the fields of a record: each refusal names the field, what it is, and what it should be."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from saga_rl.errors import UserError

MOST = 1 << 53
"""No count of tokens, and no number of a step, is larger."""
_WHAT: dict[type, str] = {int: "an integer", float: "a number", str: "a string", list: "a list", dict: "an object"}


def take(row: dict[str, Any], name: str, kind: type, where: object, default: Any = ...) -> Any:
    """`row[name]` if it has type `kind` (an integer passes as a number; a boolean as neither). Missing or null:
    `default` if one is given. Numbers have to be finite. Raises `UserError` that names the field."""
    value = row.get(name)
    if value is None:
        if default is ...:
            raise UserError(f"{where}, field {name!r}", "is missing", f"give {_WHAT[kind]}")
        return default
    good = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not good or (kind is float and not math.isfinite(value)) or (kind is int and abs(value) > MOST):
        raise UserError(f"{where}, field {name!r}", f"is {str(value)[:60]!r}", f"give {_WHAT[kind]}")
    return float(value) if kind is float else value


def at_least(value: Any, least: int, name: str, where: object) -> Any:
    """`value` unless it is below `least`."""
    if value < least:
        raise UserError(f"{where}, field {name!r}", f"is {value}", f"give {least} or more")
    return value


def _number(row: dict[str, Any], name: str, where: object, kind: str) -> Any:
    """`row[name]`, or the number that its text is (of a CSV cell; None for an empty one)."""
    value = row.get(name)
    if not isinstance(value, str):
        return value
    try:
        return float(value) if value.strip() else None
    except ValueError:
        raise UserError(f"{where}, field {name!r}", f"is {value[:60]!r}", f"give {kind}") from None


def count(row: dict[str, Any], name: str, where: object, default: Any = ...) -> int:
    """Number of tokens in `row[name]`, 0 or more; text that is one (of a CSV cell) and whole floats pass."""
    value = _number(row, name, where, "an integer")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None and default is not ...:
        return default
    return at_least(take({name: value}, name, int, where, default), 0, name, where)


def seconds(row: dict[str, Any], name: str, where: object, per_s: float = 1.0, default: Any = ...) -> Any:
    """Seconds in `row[name]`, a number (or text that is one) of units, `per_s` of them a second; 0 or more."""
    found = take({name: _number(row, name, where, "a number")}, name, float, where, default)
    return found if found is default else at_least(found, 0, name, where) / per_s


def moment(row: dict[str, Any], name: str, where: object, per_s: float = 1.0, default: Any = ...) -> Any:
    """Epoch seconds of the time in `row[name]`: a number of units, `per_s` a second, or an ISO 8601 time (UTC unless it
    says)."""
    value = row.get(name)
    if isinstance(value, str) and not value.strip():
        value = None
        row = {name: None}
    if not isinstance(value, str) or value.strip().replace(".", "", 1).isdigit():
        return seconds(row, name, where, per_s, default)
    try:
        at = datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
    except ValueError:
        raise UserError(f"{where}, field {name!r}", f"is {value[:40]!r}", "give an ISO 8601 time") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def id_list(row: dict[str, Any], name: str, where: object) -> list[int]:
    """A list of block ids (integers of 64 bits, also unsigned), empty where the field is missing."""
    ids = take(row, name, list, where, [])
    if all(type(i) is int and -(1 << 63) <= i < 1 << 63 for i in ids):
        return ids
    if not all(type(i) is int and -(1 << 63) <= i < 1 << 64 for i in ids):
        raise UserError(f"{where}, field {name!r}", "holds more than 64-bit integers", "give a list of integers")
    return [i - (1 << 64) if i >= 1 << 63 else i for i in ids]


def objects(row: dict[str, Any], name: str, where: object, need: bool = False) -> list[dict[str, Any]]:
    """The list of objects in `row[name]`, empty where the field is missing, unless it is needed."""
    values = take(row, name, list, where, ... if need else [])
    for k, value in enumerate(values):
        if not isinstance(value, dict):
            raise UserError(f"{where}, field {name!r}, item {k}", "is not a JSON object", "give a list of objects")
    return values


def inner(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """The object at the path `names`; empty where it is missing or something else."""
    value: Any = row
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def calendar(row: dict[str, Any], name: str, where: object, default: Any = ...) -> Any:
    """Epoch seconds of `row[name]`: an ISO 8601 time, or a number whose size tells seconds from ms, µs and ns."""
    found = moment(row, name, where, default=default)
    if isinstance(row.get(name), str) and not str(row[name]).strip().replace(".", "", 1).isdigit():
        return found
    while isinstance(found, float) and found > 1e11:
        found /= 1000.0
    return found
