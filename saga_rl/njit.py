"""Numba's `njit`, with one compiled version of a function where numba makes several.

Numba compiles a function again for each set of argument types, and int32, int64 and every constant (a literal 0 or
False) are types of their own. In the simulator that is the same code two to ten times over, nearly half of all that is
compiled. Here every call from compiled code passes whole numbers as int64 and flags as bool, so one version serves them
all. Results are the same: numba computes with int64 wherever two whole numbers meet.

Under a numba that this was not tried with, `njit` is its own: compiling takes longer, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numba
from numba.core import types, typing
from numba.core.registry import CPUDispatcher

TRIED = ("0.65.",)
"""How the versions of numba begin with which this was tried."""


class WideDispatcher(CPUDispatcher):
    """A dispatcher that widens the argument types of calls from compiled code."""

    def get_call_template(self, args: Sequence[Any], kws: Mapping[str, Any]) -> tuple[Any, Any, tuple[Any, ...], dict]:
        """Give what numba's own gives, for the widened types, with defaults filled in."""
        signature, folded = self._compiler.fold_argument_types(args, dict(kws))
        wide = tuple(widened(a) for a in folded)
        if self._can_compile:
            self.compile(wide)
        name = self.py_func.__name__
        template = typing.make_concrete_template(name, key=name, signatures=self.nopython_signatures)
        return template, signature, wide, {}


def widened(kind: Any) -> Any:
    """The type that stands for `kind`: int64 for signed whole numbers, bool for flags, literal, passed or default; any
    other as it is."""
    value = getattr(kind, "value", None) if isinstance(kind, types.Omitted) else getattr(kind, "literal_value", None)
    if isinstance(value, bool) or isinstance(kind, types.Boolean):
        return types.boolean
    if isinstance(value, int) or (isinstance(kind, types.Integer) and kind.signed):
        return types.int64
    return kind


def njit(*function: Any, **options: Any) -> Any:
    """Compile a function, as `numba.njit` does with these options. Given signatures are taken as they are."""
    if not numba.__version__.startswith(TRIED):
        return numba.njit(*function, **options)
    if len(function) == 1 and callable(function[0]) and not isinstance(function[0], types.Type):
        return njit()(function[0])
    cache, locals_ = options.pop("cache", False), options.pop("locals", {})
    targetoptions = {"nopython": True, "boundscheck": None, **options}

    def decorate(wrapped: Any) -> Any:
        made = WideDispatcher(py_func=wrapped, locals=locals_, targetoptions=targetoptions)
        if cache:
            made.enable_caching()
        for signature in function:
            made.compile(signature)
        if function:
            made.disable_compile()
        return made

    return decorate
