"""Options of a learner: fields of a frozen dataclass, each with its range, so that they can be checked and searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from saga_rl.errors import UserError, unknown_name


@dataclass(frozen=True)
class Range:
    """Where a number may lie. `search` = (low, high) that a sweep tries; None: a sweep leaves it alone."""

    low: float
    high: float
    help: str
    search: tuple[float, float] | None = None
    log: bool = False


def option(default: Any, low: float, high: float, text: str, search: tuple[float, float] | None = None,
           log: bool = False) -> Any:
    """A number within [low, high]; its type is that of `default`."""
    return field(default=default, metadata={"range": Range(low, high, text, search, log)})


def choice(default: str, choices: Sequence[str], text: str) -> Any:
    """One word of `choices`."""
    return field(default=default, metadata={"choices": tuple(choices), "help": text})


def describe(kind: type) -> dict[str, str]:
    """Name -> what it is, its range and its default."""
    out = {}
    for f in fields(kind):
        r = f.metadata.get("range")
        span = f"{r.low:g} to {r.high:g}" if r else " or ".join(f.metadata["choices"])
        out[f.name] = f"{r.help if r else f.metadata['help']} ({span}; default {f.default})"
    return out


def parse(kind: type, algo: str, items: Sequence[str]) -> Any:
    """The options that `key=value` items say, the rest as they are by default. Raises `UserError` for a key that the
    learner does not have, a value of the wrong type or out of range, or a key said twice."""
    known = {f.name: f for f in fields(kind)}
    given: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError("--set", f"{item!r} sets nothing", "write key=value")
        if key not in known:
            if not known:
                raise UserError("--set", f"{algo} has no options of its own", "leave it out")
            raise unknown_name(f"option of {algo}", key, known)
        if key in given:
            raise UserError("--set", f"{key} is set twice", "set it once")
        given[key] = _value(known[key], text)
    return kind(**given)


def _value(f: Field[Any], text: str) -> Any:
    where = f"--set {f.name}"
    if "choices" in f.metadata:
        if text not in f.metadata["choices"]:
            raise unknown_name(where, text, f.metadata["choices"])
        return text
    kind, r = type(f.default), f.metadata["range"]
    try:
        value = int(text) if kind is int else float(text)
    except ValueError:
        noun = "a whole number" if kind is int else "a number"
        raise UserError(where, f"{text!r} is not {noun}", f"choose from {r.low:g} to {r.high:g}") from None
    if not r.low <= value <= r.high:
        raise UserError(where, f"{text} is out of range", f"choose from {r.low:g} to {r.high:g}")
    return value
