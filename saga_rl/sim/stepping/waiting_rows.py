"""Who waits where somebody may enter from a worker's queue (`loop.CHOOSE`): requests on offer and their rows.

One decision: which waiting request enters in the iteration that a worker is about to compose, or nobody. Two things
differ from a run under policies alone: one request at most enters in an iteration, and who was held back is asked about
again when a request comes or ends, not in every iteration. Who was chosen but found no room or no tokens stays chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saga_rl.njit import njit
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.admit import fill_admission
from saga_rl.sim.engine.waiting import key_of, may_be_served

# Queue.n
OFFERED, WAITING, IDLE = range(3)


class Queue(NamedTuple):
    """What a decision shows; R rows at most."""

    n: NDArray[np.int64]
    """OFFERED: rows; WAITING: requests in the queue; IDLE: 1 = nothing runs there, so that somebody must enter."""
    place: NDArray[np.int64]
    """(R,) places in the queue, in the order that the ordering policy gives now."""
    key: NDArray[np.float64]
    """(R,) that policy's score of it."""
    order: NDArray[np.float64]
    """(R, len(ORDERING))"""
    admit: NDArray[np.float64]
    """(R, len(ADMISSION))"""


@njit(cache=True)
def list_waiting(world, out):
    """Fill `out` but for its admission rows: of the requests whose tenant may be served, those that the ordering policy
    takes first."""
    run = world.run
    w, now, n, most = run.count[st.ASKED], run.total[st.NOW], 0, len(out.place)
    for place in range(run.w[w, st.N_WAITING]):
        step = run.queue[w, place]
        if not may_be_served(world, w, step):
            continue
        key = key_of(world, w, step, now)
        at = n
        while at > 0:
            other = run.queue[w, out.place[at - 1]]
            if out.key[at - 1] < key or (out.key[at - 1] == key and (run.f[other, st.READY], other) < (
                    run.f[step, st.READY], step)):
                break
            at -= 1
        if at == most:
            continue
        n = min(n + 1, most)
        for k in range(n - 1, at, -1):
            out.place[k], out.key[k] = out.place[k - 1], out.key[k - 1]
            out.order[k] = out.order[k - 1]
        out.place[at], out.key[at] = place, key
        out.order[at] = world.work.order
    out.n[OFFERED], out.n[WAITING] = n, run.w[w, st.N_WAITING]
    out.n[IDLE] = run.w[w, st.N_RUNNING] + run.w[w, st.N_LOADING] == 0


@njit(cache=True)
def fill_admission_row(world, out, k):
    """Fill the admission row of the k-th request on offer."""
    run, block, w = world.run, world.limits[st.BLOCK], world.run.count[st.ASKED]
    step = run.queue[w, out.place[k]]
    known = world.plan.prompt[step] + run.i[step, st.GENERATED]
    cached = min(kv.resident_prefix(world.tree, world.pool, w, step), (known - 1) // block)
    fill_admission(world, w, step, cached, known, run.total[st.NOW])
    out.admit[k] = world.work.admit
