"""A world as one pointer. Numba passes a NamedTuple of arrays by value, field by field, through every call, which makes
a loop with eighty arrays slow to compile and to run. Compiled code therefore works on structrefs with the same field
names; Python keeps the NamedTuples, and both see the same memory.
"""

from __future__ import annotations

from llvmlite.ir import Constant
from numba import njit, types
from numba.core import cgutils
from numba.experimental import structref
from numba.extending import intrinsic

from saga_rl.policies.state.tables import Tables
from saga_rl.sim.cache.pool import Pool, Tree
from saga_rl.sim.compiled.unowned import lend, lending
from saga_rl.sim.engine.heap import Heap
from saga_rl.sim.engine.state import Plan, Run, Work, World


@lending
class TreeType(types.StructRef):
    pass


@lending
class PoolType(types.StructRef):
    pass


@lending
class TablesType(types.StructRef):
    pass


@lending
class PlanType(types.StructRef):
    pass


@lending
class RunType(types.StructRef):
    pass


@lending
class HeapType(types.StructRef):
    pass


@lending
class WorkType(types.StructRef):
    pass


@lending
class WorldType(types.StructRef):
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


for _nt, _ref, _type in ((Tree, TreeRef, TreeType), (Pool, PoolRef, PoolType), (Tables, TablesRef, TablesType),
                         (Plan, PlanRef, PlanType), (Run, RunRef, RunType), (Heap, HeapRef, HeapType),
                         (Work, WorkRef, WorkType), (World, WorldRef, WorldType)):
    structref.define_proxy(_ref, _type, [*_nt._fields, *(["kept"] if _nt is World else [])])


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


@njit(cache=True)
def tree_ref(t):
    return TreeRef(t.parent, t.start, t.blocks, t.path_off, t.path, t.hit, t.chain)


@njit(cache=True)
def pool_ref(p):
    return PoolRef(p.n, p.meta, p.slots, p.keys, p.res, p.ref, p.kids, p.last, p.seq, p.owner, p.user, p.slot, p.owned,
                   p.idle, p.ever)


@njit(cache=True)
def tables_ref(t):
    return TablesRef(t.hist, t.above, t.seconds_above, t.ring, t.returns, t.ends, t.obs, t.p95, t.types, t.calls)


@njit(cache=True)
def world_ref(owned):
    """`World` (NamedTuple) -> the same world as compiled code works on it."""
    world = unowned(owned)
    p, r, h, k = world.plan, world.run, world.heap, world.work
    plan = PlanRef(p.session, p.prompt, p.output, p.tool, p.shared, p.gap, p.final, p.child_off, p.child, p.root_off,
                   p.root, p.tenant, p.agent_type, p.arrival, p.slack, p.first)
    run = RunRef(r.i, r.f, r.w, r.wf, r.running, r.queue, r.inbox, r.loaded, r.tier_base,
                 r.tier_after, r.tier_before, r.told_s, r.told_late_s, r.home, r.left, r.done_s, r.begin_s, r.count,
                 r.total, r.afs,
                 r.live, r.live_at, r.counted, r.quiet, r.service, r.floors, r.held, r.moved, r.source, r.last_step,
                 r.landing, r.landing_at, r.touched, r.log_i,
                 r.log_t, r.occupancy, r.occupancy_t, r.it_i, r.it_f, r.it_part)
    tree, pool, tables, heap = tree_ref(world.tree), pool_ref(world.pool), tables_ref(world.tables), HeapRef(
        h.time, h.what, h.n)
    work = WorkRef(k.evict, k.order, k.admit, k.place, k.scores, k.ranked, k.aged, k.next_use, k.stamp, k.residue,
                   k.older)
    return WorldRef(lend(tree), lend(pool), world.chains, lend(tables), world.g, lend(plan), lend(run), lend(heap),
                    lend(work), world.limits, world.real, world.cost, (tree, pool, tables, plan, run, heap, work))
