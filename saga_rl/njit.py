"""Numba's `njit`, made for many small functions that call each other: what only compiled code calls does not become
machine code by itself.

Numba optimises every function with all that it calls, makes machine code and an entry for Python of it, and does so
again for each set of argument types, where int32, int64 and every constant (a literal 0 or False) are types of their
own. For the simulator that is the same code many times over. Here a function that compiled code calls is kept as LLVM's
intermediate code, one version for whole numbers of any width; what Python calls links it and is optimised once, as a
whole. Results are the same: numba computes with int64 wherever two whole numbers meet.

This leans on how numba works inside (`numba.core.codegen`, `dispatcher`, `compiler`). Under a release that it was not
tried with, `njit` is numba's own: compiling takes longer, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numba
from numba.core import sigutils, types, typing
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher

TRIED = ("0.65.",)
"""How the versions of numba begin with which this was tried."""


class PartLibrary(JITCodeLibrary):
    """The code of one function as it was lowered, and a list of what it calls."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalize_dynamic_globals()
        self._finalized = True


class WholeLibrary(JITCodeLibrary):
    """The code of a function and of all that it calls, however deep."""

    def add_linking_library(self, library: Any) -> None:
        for each in parts(library, set()):
            super().add_linking_library(each)


def parts(library: Any, seen: set[Any]) -> Iterator[Any]:
    """Yield `library` and, where it is not linked yet, what it calls; each once."""
    if library in seen:
        return
    seen.add(library)
    yield library
    if isinstance(library, PartLibrary):
        for called in library._linking_libraries:
            yield from parts(called, seen)


class PartCompiler(Compiler):
    """Compiles as far as intermediate code."""

    def compile_extra(self, func: Any) -> Any:
        flags = self.state.flags
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        self.state.library = PartLibrary(self.state.targetctx.codegen(), func.__qualname__)
        return super().compile_extra(func)


class WholeCompiler(Compiler):
    """Compiles to machine code."""

    def compile_extra(self, func: Any) -> Any:
        self.state.library = WholeLibrary(self.state.targetctx.codegen(), func.__qualname__)
        self.state.library.enable_object_caching()
        return super().compile_extra(func)


class Part(CPUDispatcher):
    """A function's versions for compiled callers."""

    def compile(self, sig: Any) -> Any:
        """Compile for the types `sig`, once; give the key by which callers find the code."""
        args, return_type = sigutils.normalize_signature(sig)
        with global_compiler_lock, self._compiling_counter:
            if args not in self.overloads:
                made, key = self._compiler.compile(args, return_type), _Key()
                self.targetctx.insert_user_function(key, made.fndesc, [made.library])
                self.overloads[args] = made._replace(entry_point=key)
        return self.overloads[args].entry_point


class _Key:
    """Stands for a function that has no address."""


class Whole(CPUDispatcher):
    """A function as Python sees it, with a `Part` for its compiled callers."""

    def __init__(self, py_func: Any, locals: Any, targetoptions: Any) -> None:
        super().__init__(py_func, locals, targetoptions, pipeline_class=WholeCompiler)
        self.part = Part(py_func, locals, targetoptions, pipeline_class=PartCompiler)

    def compile(self, sig: Any) -> Any:
        """Compile for the types `sig`, or load from disk; give what Python calls."""
        args, _ = sigutils.normalize_signature(sig)
        known = args in self.overloads
        entry = super().compile(sig)
        made = self.overloads[tuple(args)]
        if not known and made.metadata is not None:  # what comes from disk has done this
            for environment in made._find_referenced_environments():
                made.codegen.set_env(environment.env_name, environment)
        return entry

    def get_call_template(self, args: Sequence[Any], kws: Mapping[str, Any]) -> tuple[Any, Any, tuple[Any, ...], dict]:
        """Give what numba's own gives, for the widened types, with defaults filled in."""
        signature, folded = self._compiler.fold_argument_types(args, dict(kws))
        wide = tuple(widened(a) for a in folded)
        if self._can_compile:
            self.part.compile(wide)
        versions = self.part.nopython_signatures if self._can_compile else self.nopython_signatures
        name = self.py_func.__name__
        return typing.make_concrete_template(name, key=name, signatures=versions), signature, wide, {}

    def get_overload(self, sig: Any) -> Any:
        """Give the key of the version for compiled callers."""
        return self.part.get_overload(sig) if self._can_compile else super().get_overload(sig)


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
    # C code calls only what has a signature (scores of policies, loops); others would get that entry in vain.
    targetoptions = {"nopython": True, "boundscheck": None, "no_cfunc_wrapper": not function, **options}

    def decorate(wrapped: Any) -> Any:
        made = Whole(wrapped, locals_, targetoptions)
        if cache:
            made.enable_caching()
        for signature in function:
            made.compile(signature)
        if function:
            made.disable_compile()
        return made

    return decorate
