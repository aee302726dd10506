"""A closed-loop run that stops wherever somebody may enter from a worker's queue, for environments and collecting.

One decision: which waiting request enters in the iteration that a worker is about to compose, or nobody. Two things
differ from a run under policies alone: one request at most enters in an iteration, and who was held back is asked about
again when a request comes or ends, not in every iteration. Who was chosen but found no room or no tokens stays chosen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.policies.base import PolicySet
from saga_rl.policies.features import ADMISSION, ORDERING
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cluster import CHOOSE, HOLD, QUEUE, Cluster
from saga_rl.sim.compiled.jit import compiled
from saga_rl.sim.config import SimConfig
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.admit import fill_admission
from saga_rl.sim.engine.waiting import key_of, may_be_served
from saga_rl.sim.results.metrics import metrics
from saga_rl.sim.stepping.replay_stepper import entry_point

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


def look_at(world, order_score, order_params, order_scratch, out):
    """Fill `out`, a `Queue`, for the worker that is asked about."""
    list_waiting(world, order_score, order_params, order_scratch, out)
    for k in range(out.n[OFFERED]):
        weigh(world, out, k)


@njit(cache=True)
def list_waiting(world, order_score, order_params, order_scratch, out):
    """Fill `out` but for its admission rows: of the requests whose tenant may be served, those that the ordering policy
    takes first."""
    run = world.run
    w, now, n, most = run.count[st.ASKED], run.total[st.NOW], 0, len(out.place)
    for place in range(run.w[w, st.N_WAITING]):
        step = run.queue[w, place]
        if not may_be_served(world, w, step):
            continue
        key = key_of(world, w, step, now, order_score, order_params, order_scratch)
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
def weigh(world, out, k):
    """Fill the admission row of the k-th request on offer."""
    run, block, w = world.run, world.limits[st.BLOCK], world.run.count[st.ASKED]
    step = run.queue[w, out.place[k]]
    known = world.plan.prompt[step] + run.i[step, st.GENERATED]
    cached = min(kv.resident_prefix(world.tree, world.pool, w, step), (known - 1) // block)
    fill_admission(world, w, step, cached, known, run.total[st.NOW])
    out.admit[k] = world.work.admit


class QueueStepper:
    """`reset()`, then `advance(row)` or `advance(HOLD)` until it returns False.

    policies: its ordering says which requests are offered, and in which order; its admission is not asked while
    somebody waits, see `lets_in`. max_rows: requests offered at most. shown: rows of the decision at hand. done_tct:
    (session, TCT in seconds) of the sessions that ended since the decision before.
    """

    pause: ClassVar[int] = QUEUE

    def __init__(self, trace: Trace, config: SimConfig, policies: PolicySet, max_rows: int = 32) -> None:
        self.trace, self.config = trace, config
        self.policies = replace(policies, admission=replace(policies.admission, informed=True))
        self.shown = Queue(np.zeros(3, np.int64), np.zeros(max_rows, np.int64), np.zeros(max_rows),
                           np.zeros((max_rows, len(ORDERING))), np.zeros((max_rows, len(ADMISSION))))
        self.now = 0.0
        self.done_tct: list[tuple[int, float]] = []
        self._scratch = np.zeros(max(policies.admission.scratch, 1))

    def reset(self) -> bool:
        """Start anew; True if somebody has to choose."""
        self._open()
        return self._go(-1)

    def _open(self) -> None:
        self._cluster = Cluster(self.trace, self.config, self.policies, pause=self.pause)
        self._cluster._run = entry_point(self._cluster._run)
        order = self.policies.ordering
        self._args: tuple[Any, ...] = (self._cluster.ref, order.score, order.params, np.zeros(max(order.scratch, 1)),
                                       self.shown)
        self._look = entry_point(compiled(look_at, self._args, (1,)))
        self._seen = np.zeros(self.trace.n_sessions, bool)

    def advance(self, row: int) -> bool:
        """The request of this row enters, if there is room for it; `HOLD`: nobody. True while a decision is wanted."""
        if row == HOLD and not self.idle:
            return self._go(HOLD)
        if not 0 <= row < self.n_rows:
            raise ValueError(f"row {row} is none of the {self.n_rows} on offer" + ", and nothing runs" * self.idle)
        return self._go(int(self.shown.place[row]))

    def _go(self, chosen: int) -> bool:
        more = self._cluster.advance(chosen) == CHOOSE
        self._look_around(more)
        return more

    def _look_around(self, at_queue: bool) -> None:
        run = self._cluster.world.run
        self.shown.n[:] = 0
        if at_queue:
            self._look(*self._args)
        self.now = float(run.total[st.NOW])
        ended = np.flatnonzero(np.isfinite(run.done_s) & ~self._seen)
        self._seen[ended] = True
        self.done_tct = [(int(s), float(run.done_s[s] - run.begin_s[s])) for s in ended]

    @property
    def n_rows(self) -> int:
        """Requests on offer; 0 = the run is over."""
        return int(self.shown.n[OFFERED])

    @property
    def waiting(self) -> int:
        """Requests in the queue, on offer or not."""
        return int(self.shown.n[WAITING])

    @property
    def idle(self) -> bool:
        """Nothing runs on the worker: `HOLD` is not open."""
        return bool(self.shown.n[IDLE])

    @property
    def worker(self) -> int:
        """Whose queue it is."""
        return int(self._cluster.world.run.count[st.ASKED])

    @property
    def recomputed_tokens(self) -> int:
        """Tokens computed again so far; what another worker is about counts when its run of iterations
        (`sim.engine.fast_forward`) ends or is cut."""
        return int(self._cluster.world.run.count[st.RECOMPUTED])

    @property
    def service_gap_tokens(self) -> float:
        """Largest service gap between waiting tenants so far (`sim.results.fairness`); 0 with one tenant."""
        return float(self._cluster.world.run.total[st.SPREAD])

    def lets_in(self, row: int) -> bool:
        """Whether the admission policy would let this row's request in; an idle worker always does."""
        policy = self.policies.admission
        return self.idle or policy.score(self.shown.admit[row], policy.params, self._scratch) > 0.0

    def metrics(self) -> dict[str, Any]:
        """The run's figures so far, as `simulate` gives them; no SLO, no wall time."""
        return metrics(self._cluster.world, None, 0.0)
