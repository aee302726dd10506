"""A world's ref: compiled code sees and writes the arrays that Python holds, and nothing is left when it goes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numba import njit
from numba.core.runtime import _nrt_python as nrt
from numba.core.runtime import rtsys

from saga_rl.aeg.generators import generate
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import make_fresh
from saga_rl.sim.compiled.refs import refs_of, world_ref
from saga_rl.sim.config import SimConfig
from saga_rl.sim.engine import state as st


@njit
def _touch(world):
    """Write through nested structrefs and read them again."""
    run = world.run
    total = 0
    for k in range(len(run.i)):
        run.i[k, st.KNOWN] = k + world.heap.n[0]
        total += world.plan.prompt[k] + world.tree.chain[k]
    run.left[:] = world.tables.types.shape[0]
    return total


CREW = refs_of(preset("saga+"))


@pytest.fixture(scope="module")
def world() -> st.World:
    return make_fresh(generate("webarena", 1, sessions=3), SimConfig(population=2), preset("saga+"), 0, 0, 0)


def test_both_see_the_same_arrays(world: st.World) -> None:
    assert _touch(world_ref(world, CREW)) == world.plan.prompt.sum() + world.tree.chain.sum()
    np.testing.assert_array_equal(world.run.i[:, st.KNOWN], np.arange(len(world.run.i)) + world.heap.n[0])
    assert (world.run.left == world.tables.types.shape[0]).all()


def test_nothing_is_counted_where_fields_are_read(world: st.World) -> None:
    """What makes the loops fast: no calls that count references."""
    _touch(world_ref(world, CREW))
    assert "call void @NRT_incref" not in _touch.inspect_llvm(_touch.signatures[0])


def test_a_ref_that_goes_leaves_nothing(world: st.World) -> None:
    counted = nrt.memsys_stats_enabled()
    if not counted:
        nrt.memsys_enable_stats()
    try:
        _touch(world_ref(world, CREW))
        before = rtsys.get_allocation_stats()
        for _ in range(20):
            _touch(world_ref(world, CREW))
        after = rtsys.get_allocation_stats()
    finally:
        if not counted:
            nrt.memsys_disable_stats()
    assert after.alloc - before.alloc >= 20
    assert after.alloc - before.alloc == after.free - before.free
    assert after.mi_alloc - before.mi_alloc == after.mi_free - before.mi_free


def test_no_column_has_the_name_of_another():
    """A second meaning would take the first one's place, in silence."""
    text = Path(st.__file__).read_text(encoding="utf-8")
    names: list[str] = []
    for tuples in re.finditer(r"^\(?((?:[A-Z_0-9]+,[\s\\]*)+[A-Z_0-9]+)\)? ?= ?range", text, re.MULTILINE):
        names += re.findall(r"[A-Z_0-9]+", tuples[1])
    assert len(names) > 100
    assert len(names) == len(set(names))
