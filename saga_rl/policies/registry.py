"""Policies by name. A policy file registers one factory; `make` builds a policy from a spec string.

Spec: `NAME` or `NAME:key=value,key=value`, and for learned policies `learned:CHECKPOINT_FOLDER`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module

from saga_rl.errors import UserError, unknown_name
from saga_rl.policies.base import DECISIONS, Policy, Decision

Factory = Callable[..., Policy]
_FACTORIES: dict[str, dict[str, Factory]] = {decision: {} for decision in DECISIONS}


def register(decision: Decision, name: str) -> Callable[[Factory], Factory]:
    """Decorator: the factory's keyword arguments, with their defaults, are the policy's parameters."""

    def add(factory: Factory) -> Factory:
        if name in _FACTORIES[decision]:
            raise ValueError(f"{decision} policy {name!r} is registered twice")
        _FACTORIES[decision][name] = factory
        return factory

    return add


def _load() -> None:
    for decision in DECISIONS:
        import_module(f"saga_rl.policies.{decision}")
        import_module(f"saga_rl.policies.baselines.{decision}")
    import_module("saga_rl.policies.learned.scorers")


def names(decision: Decision) -> list[str]:
    """Every registered name of a decision."""
    _load()
    return sorted(_FACTORIES[decision])


def make(decision: Decision, spec: str) -> Policy:
    """The policy that `spec` names.

    Raises `UserError` for a name or parameter that does not exist (the valid ones, nearest first) or a value that is
    not a number; factories raise it for values out of range.
    """
    _load()
    name, _, rest = spec.partition(":")
    if name not in _FACTORIES[decision]:
        raise unknown_name(f"{decision} policy", name, _FACTORIES[decision])
    factory = _FACTORIES[decision][name]
    if name == "learned":
        if not rest:
            raise UserError(f"{decision} policy 'learned'", "names no checkpoint", "write learned:CHECKPOINT_FOLDER")
        return factory(rest)
    valid = inspect.signature(factory).parameters
    kwargs: dict[str, float] = {}
    for item in filter(None, rest.split(",")):
        key, eq, value = item.partition("=")
        if not valid:
            raise UserError(f"{decision} policy {spec!r}", f"{name} takes no parameters", f"write just {name}")
        if key not in valid:
            raise unknown_name(f"parameter of {decision} policy {name!r}", key, valid)
        try:
            kwargs[key] = float(value)
        except ValueError:
            raise UserError(f"{decision} policy {spec!r}", f"{key} is not a number: {value!r}",
                            f"write {key}=NUMBER" if eq else f"write {key}=NUMBER, with '='") from None
    return factory(**kwargs)


def split_specs(text: str) -> list[str]:
    """Comma-separated policy specs; a policy's own parameters may hold commas: `lru,wa-lru:alpha=1,beta=2`."""
    specs: list[str] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        if specs and ":" in specs[-1] and "=" in part and ":" not in part:
            specs[-1] += "," + part
        elif part not in specs:
            specs.append(part)
    return specs
