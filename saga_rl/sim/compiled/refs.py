"""A world as one pointer. Numba passes a NamedTuple of arrays by value, field by field, through every call, which makes
a loop with eighty arrays slow to compile and to run. Compiled code therefore works on structrefs with the same field
names; Python keeps the NamedTuples, and both see the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite.ir import Constant
from numba import types
from numba.core import cgutils
from numba.experimental import structref
from numba.extending import intrinsic
from numpy.typing import NDArray

from saga_rl.njit import njit
from saga_rl.policies.base import DECISIONS, Policy, PolicySet
from saga_rl.policies.state.tables import Tables
from saga_rl.sim.cache.pool import Pool, Tree
from saga_rl.sim.compiled.jit import compiled
from saga_rl.sim.compiled.unowned import bare_pointer, uncounted
from saga_rl.sim.engine.heap import Heap
from saga_rl.sim.engine.state import Plan, Run, Work, World


@uncounted
class TreeType(types.StructRef):
    pass


@uncounted
class PoolType(types.StructRef):
    pass


@uncounted
class TablesType(types.StructRef):
    pass


@uncounted
class PlanType(types.StructRef):
    pass


@uncounted
class RunType(types.StructRef):
    pass


@uncounted
class HeapType(types.StructRef):
    pass


@uncounted
class WorkType(types.StructRef):
    pass


@uncounted
class WorldType(types.StructRef):
    pass


@uncounted
class PolicyType(types.StructRef):
    pass


class TreeRef(structref.StructRefProxy):
    pass


class PoolRef(structref.StructRefProxy):
    pass


class TablesRef(structref.StructRefProxy):
    pass


class PlanRef(structref.StructRefProxy):
    pass


class RunRef(structref.StructRefProxy):
    pass


class HeapRef(structref.StructRefProxy):
    pass


class WorkRef(structref.StructRefProxy):
    pass


class WorldRef(structref.StructRefProxy):
    pass


class PolicyRef(structref.StructRefProxy):
    pass


PARTS: dict[type, tuple[Any, Any]] = {
    Tree: (TreeRef, TreeType), Pool: (PoolRef, PoolType), Tables: (TablesRef, TablesType), Plan: (PlanRef, PlanType),
    Run: (RunRef, RunType), Heap: (HeapRef, HeapType), Work: (WorkRef, WorkType)}
POLICIES = tuple(f"{decision}_{what}" for decision in ("place", "order", "admit", "evict")
                 for what in ("score", "params", "scratch"))
"""Fields by which compiled code finds the policies in a world: `world.order_score(row, world.order_params,
world.order_scratch)`."""
WHOLE, LITERAL = "whole", "literal"
for _record, (_ref, _type) in PARTS.items():
    structref.define_proxy(_ref, _type, list(_record._fields))  # type: ignore[attr-defined]
structref.define_proxy(PolicyRef, PolicyType, ["score", "params", "scratch"])
structref.define_proxy(WorldRef, WorldType, [*World._fields, *POLICIES, WHOLE, LITERAL, "kept"])


def by_name(ref: Any, fields: Sequence[str], record: str, before: Sequence[str] = ()) -> Callable[..., Any]:
    """Write a compiled function `(*before, record) -> ref`, which fills each field from the record's of that name:
    numba's own constructors take fields by position only, and some have forty."""
    given = ", ".join([*before, *(f"{record}.{name}" for name in fields)])
    scope: dict[str, Any] = {"Ref": ref}
    exec(f"def made({', '.join([*before, record])}):\n    return Ref({given})\n", scope)
    return njit(scope["made"])


def _strip(context, builder, kind, value):
    if isinstance(kind, types.Array):
        view = context.make_array(kind)(context, builder, value)
        view.meminfo = Constant(view.meminfo.type, None)
        view.parent = Constant(view.parent.type, None)
        return view._getvalue()
    if isinstance(kind, types.BaseTuple):
        parts = cgutils.unpack_tuple(builder, value)
        stripped = [_strip(context, builder, k, v) for k, v in zip(kind, parts, strict=True)]
        return context.make_tuple(builder, kind, stripped)
    return value


@intrinsic
def unowned(_context, tuples):
    """The same arrays, however deep in tuples, without their owners: compiled code then counts no references to them,
    which costs an atomic instruction each time a field is read. The caller keeps the owners alive."""
    def codegen(context, builder, signature, args):
        return _strip(context, builder, signature.args[0], args[0])

    return tuples(tuples), codegen


tree_ref, pool_ref, tables_ref, _plan_ref, _run_ref, _heap_ref, _work_ref = (
    by_name(_ref, _record._fields, "t") for _record, (_ref, _) in PARTS.items())  # type: ignore[attr-defined]


def _lent() -> Any:
    """Write the function that puts a world's parts and policies under one pointer."""
    parts = ("tree", "pool", "tables", "plan", "run", "heap", "work")
    given = [f"bare_pointer({name})" if name in parts else f"w.{name}" for name in World._fields]
    given += [name.replace("_", ".") for name in POLICIES]
    scope: dict[str, Any] = {"Ref": WorldRef, "bare_pointer": bare_pointer}
    taken = ", ".join(["w", *parts, "place", "order", "admit", "evict", WHOLE, LITERAL])
    exec(f"def made({taken}):\n    return Ref({', '.join([*given, WHOLE, LITERAL])}, ({', '.join(parts)}))\n", scope)
    return njit(scope["made"])


_under_one = _lent()


@njit(cache=True)
def _world_ref(owned, place, order, admit, evict, whole, literal):
    w = unowned(owned)
    return _under_one(w, tree_ref(w.tree), pool_ref(w.pool), tables_ref(w.tables), _plan_ref(w.plan), _run_ref(w.run),
                      _heap_ref(w.heap), _work_ref(w.work), place, order, admit, evict, whole, literal)


def _policy_ref(score, params, scratch):
    return PolicyRef(score, unowned(params), unowned(scratch))


class PolicyRefs(NamedTuple):
    """The policies of a run as its worlds hold them; whoever keeps a world's ref keeps its policy_refs."""

    refs: tuple[Any, ...]
    """Of placement, ordering, admission and eviction."""
    whole: bool
    """Eviction takes all of a victim at once."""
    literal: bool
    """It frees a chain when its TTL runs out."""
    policies: PolicySet
    scratch: dict[str, NDArray[np.float64]]
    """By decision: the work space of its score."""


def refs_of(policies: PolicySet) -> PolicyRefs:
    """Make scratch and refs for `policies`."""
    scratch: dict[str, NDArray[np.float64]] = {
        decision: np.zeros(max(getattr(policies, decision).scratch, 1)) for decision in DECISIONS}

    def ref(policy: Policy) -> Any:
        args = (policy.score, policy.params, scratch[policy.decision])
        return compiled(_policy_ref, args, (0,))(*args)

    order = (policies.placement, policies.ordering, policies.admission, policies.eviction)
    return PolicyRefs(tuple(map(ref, order)), bool(policies.eviction.whole_chain), bool(policies.eviction.drop_expired),
                policies, scratch)


def world_ref(world: World, policy_refs: PolicyRefs) -> Any:
    """Put `world` and its policies under one pointer, as compiled code works on them. The caller keeps both."""
    return _world_ref(world, *policy_refs.refs, policy_refs.whole, policy_refs.literal)
