"""The simulator's cache played in vLLM's own order of events: what must agree whatever the clock does.

Every allocation, preemption and end that the engines logged is repeated on the simulator's pools. Hits must then be
equal request by request. The same pass counts tokens computed again, with the simulator's definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fidelity_kit.log import END, PREEMPT, START, EngineLog
from saga_rl.aeg.forest import build_forest
from saga_rl.aeg.trace import Trace
from saga_rl.sim.cache import evict as ev
from saga_rl.sim.cache import pool as kv


@dataclass
class Replayed:
    """What the simulator's cache says of vLLM's order of events."""

    starts: int = 0
    """Requests that were scheduled, again after a preemption too."""
    differing: int = 0
    """Starts that found another number of cached tokens than vLLM did."""
    unfit: int = 0
    """Allocations that vLLM made and that would not fit the simulator's pool."""
    recomputed_tokens: int = 0


def replay(trace: Trace, logs: list[EngineLog], pool_blocks: int, block: int) -> Replayed:
    """Play the logs of all engines, merged by the start of their iterations (an END: by its iteration's end)."""
    forest = build_forest(trace, block)
    tree = kv.make_tree(forest)
    pool = kv.make_pool(len(logs), pool_blocks, len(forest.seg_parent), len(forest.chain_session))
    out = Replayed()
    held: dict[int, int] = {}
    copies: dict[int, int] = {}
    target: dict[int, int] = {}
    known_before: dict[int, int] = {}
    for w, kind, step, have, tokens, known in _merged(logs):
        if kind in (PREEMPT, END):
            if step in held:
                kv.release(tree, pool, w, step, held.pop(step), have, copies.pop(step), float(out.starts), block)
            continue
        if kind == START:
            found = min(int(kv.resident_prefix(tree, pool, w, step)), (known - 1) // block) * block
            out.starts += 1
            out.differing += found != have
            target[step] = known
            known_before[step] = min(int(kv.known_prefix(tree, pool, step)), (known - 1) // block) * block
            have_here = min(found, have)
            need = -(-(have + tokens) // block) - have_here // block
            room = kv.evictable(pool, w) - kv.idle_hit_blocks(tree, pool, w, step, have_here // block)
        else:
            have_here = have
            need = -(-(have + tokens) // block) - -(-have // block)
            room = kv.evictable(pool, w)
        if kind != START and step not in held:
            continue
        if pool.n[w, kv.FREE] + room < need:  # the step is left out from here on
            out.unfit += 1
            if step in held:
                kv.release(tree, pool, w, step, held.pop(step), have, copies.pop(step), float(out.starts), block)
            continue
        if kind == START:
            held[step], copies[step] = int(kv.pin(tree, pool, w, step, 0, have_here // block)), 0
        ev.make_room_oldest_first(tree, pool, w, need)
        held[step], more = kv.grow(tree, pool, w, step, held[step], have_here, have + tokens, block)
        copies[step] += more
        if kind == START or have < target[step]:
            out.recomputed_tokens += max(min(have + tokens, known_before[step]) - have, 0)
    return out


def _merged(logs: list[EngineLog]) -> list[tuple[int, int, int, int, int, int]]:
    """(worker, kind, step, have, tokens, known) of all engines in the order of time."""
    rows = []
    for w, log in enumerate(logs):
        ends = (log.events[:, 1] == END).astype(np.int64)
        times = log.spans[log.events[:, 0], ends]
        for at, (time, event) in enumerate(zip(times.tolist(), log.events.tolist(), strict=True)):
            rows.append((time, w, at, event[1:]))
    rows.sort(key=lambda r: r[:3])
    return [(w, *event) for _, w, _, event in rows]
