"""Compile the simulator's loops once, for every policy.

Numba specialises a lazily compiled function for each dispatcher that is passed to it, so a loop that takes a policy's
`score` would be compiled again for every policy. Here the signature is built from the arguments with `SCORE_TYPE` at
the score positions: one compiled loop then accepts any function that was compiled with the signature `SCORE`, and
the result is kept on disk (`saga_rl.compile_cache`).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from numba import typeof, types
from numba.core.errors import NumbaExperimentalFeatureWarning
from rich.console import Console
from rich.status import Status

from saga_rl.compile_cache import compiled_once
from saga_rl.njit import njit
from saga_rl.policies.base import SCORE_TYPE

_COMPILED: dict[tuple[Callable, tuple], Callable] = {}
_QUIET_S = 1.0


def compiled(pyfunc: Callable, args: Sequence[Any], score_positions: Sequence[int] = (),
             functions: Mapping[int, types.FunctionType] | None = None, nogil: bool = False) -> Callable:
    """`pyfunc` compiled for arguments of the types of `args`, to be called with exactly such arguments.

    pyfunc: a plain, module-level function without defaults, not yet decorated. score_positions: which of `args` are
    policies' `score` functions. functions: the types of other functions among them, by position (`function_type`).
    nogil: other threads of Python run meanwhile. The first call for a set of types compiles, or waits for another
    process that compiles the same, or loads from disk, and says so on standard error when that takes longer than a
    second; later calls look up a dictionary.
    """
    given = {**dict.fromkeys(score_positions, SCORE_TYPE), **(functions or {})}
    signature = tuple(given[i] if i in given else typeof(a) for i, a in enumerate(args))
    key = (pyfunc, signature)
    if key not in _COMPILED:
        with _say_when_slow(pyfunc.__name__.strip("_")), warnings.catch_warnings(), \
                compiled_once(f"{pyfunc.__module__}.{pyfunc.__qualname__} {signature} {nogil}"):
            warnings.simplefilter("ignore", NumbaExperimentalFeatureWarning)  # functions as arguments are called that
            _COMPILED[key] = njit(signature, cache=True, nogil=nogil)(pyfunc)
    return _COMPILED[key]


def function_type(function: Any) -> types.FunctionType:
    """The type under which other compiled code takes what `compiled` returned: it calls through a pointer then, instead
    of holding a copy of all that code, which would have to be compiled again."""
    return types.FunctionType(next(iter(function.overloads.values())).signature)


def entry_point(dispatcher: Any) -> Callable[..., Any]:
    """The code that was compiled last, without the dispatcher, which looks at the types of all arguments at each call:
    for calls in great number whose arguments are always the same objects."""
    return next(iter(dispatcher.overloads.values())).entry_point


@contextmanager
def _say_when_slow(what: str) -> Iterator[None]:
    console = Console(stderr=True)
    shown: list[Status] = []

    def say() -> None:
        text = f"compiling {what} (once for this version; kept on disk)"
        if console.is_terminal:
            shown.append(console.status(text))
            shown[0].start()
        else:
            console.print(text, highlight=False)

    timer = threading.Timer(_QUIET_S, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        for status in shown:
            status.stop()
