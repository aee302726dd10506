"""Workload generators by name. A trace is determined by (name, seed, parameters).
Imports nothing of the package above `aeg`."""

from __future__ import annotations

from dataclasses import fields, replace
from types import ModuleType
from typing import Any

from saga_rl.aeg.generators import burstgpt, coding, hetero, retry, shift, swe_bench, tree_of_thought, webarena
from saga_rl.aeg.trace import Trace
from saga_rl.aeg.validate import check
from saga_rl.errors import unknown_name

_GENERATORS: dict[str, ModuleType] = {"swe-bench": swe_bench, "webarena": webarena, "burstgpt": burstgpt,
                                      "hetero": hetero, "shift": shift, "coding": coding,
                                      "tree-of-thought": tree_of_thought, "retry": retry}


def generator_names() -> list[str]:
    return sorted(_GENERATORS)


def generate(name: str, seed: int, **params: Any) -> Trace:
    """The valid trace of workload `name`; `params` are fields of its `DEFAULTS` (`agents.Params`; of some
    also their own), None meaning the workload's default.

    Raises `UserError` for a name or parameter that does not exist, or a value out of range.
    """
    if name not in _GENERATORS:
        raise unknown_name("generator", name, _GENERATORS)
    module = _GENERATORS[name]
    valid = [f.name for f in fields(module.DEFAULTS)]
    for key in params:
        if key not in valid:
            raise unknown_name(f"parameter of generator {name!r}", key, valid)
    given = {k: v for k, v in params.items() if v is not None}
    trace = module.generate(seed, replace(module.DEFAULTS, **given))
    check(trace)
    return trace
