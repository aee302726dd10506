"""What one slot of a closed-loop vector shows, as Python sees it: rows before they are clipped, and the run itself. For
collectors, tests and whoever renders."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.sim.cache.pool import FREE, POOL
from saga_rl.sim.cluster import CHOOSE, ENDED, EVICT, PLACE
from saga_rl.sim.engine import state as st
from saga_rl.sim.results.metrics import metrics
from saga_rl.sim.stepping import book as bk
from saga_rl.sim.stepping.closed_vector import ClosedRunner
from saga_rl.sim.stepping.victims import OFFERED as VICTIMS
from saga_rl.sim.stepping.waiting_rows import IDLE, OFFERED, WAITING


class ClosedView:
    """Slot b of `runner`. Rows of requests are work space of the whole runner, so they are right in a runner of one."""

    def __init__(self, runner: ClosedRunner, b: int = 0) -> None:
        self.runner, self.b = runner, b

    @property
    def world(self) -> st.World:
        return self.runner.world(self.b)

    @property
    def decision(self) -> int:
        """Say what is wanted: `PLACE`, `CHOOSE` or `EVICT`; `ENDED`: nothing."""
        return int(self.runner.slots.book[self.b, bk.DECISION])

    @property
    def now_s(self) -> float:
        return float(self.world.run.total[st.NOW])

    @property
    def worker(self) -> int:
        """Name the worker whose queue or blocks it is about."""
        return int(self.world.run.count[st.ASKED])

    @property
    def n_rows(self) -> int:
        """Count workers, requests or candidates on offer; 0 = the run is over."""
        if self.decision == PLACE:
            return int(self.world.limits[st.WORKERS])
        z = self.runner.slots
        return int({CHOOSE: z.shown[self.b, OFFERED], EVICT: z.victims_at[self.b, VICTIMS], ENDED: 0}[self.decision])

    @property
    def waiting(self) -> int:
        """Count requests in the queue, on offer or not."""
        return int(self.runner.slots.shown[self.b, WAITING])

    @property
    def idle(self) -> bool:
        """Say whether nothing runs on the worker, so that somebody has to enter."""
        return bool(self.runner.slots.shown[self.b, IDLE])

    @property
    def places(self) -> NDArray[np.float64]:
        """(workers, len(PLACEMENT)) at a placement."""
        return self.world.work.place

    @property
    def requests(self) -> NDArray[np.int64]:
        """(n_rows,) steps of the trace that are on offer, in the order of the ordering policy."""
        at = self.runner.slots.place[self.b, :self.n_rows]
        return self.world.run.queue[self.worker, at].astype(np.int64)

    @property
    def orders(self) -> NDArray[np.float64]:
        """(n_rows, len(ORDERING)) of them."""
        return self.runner.slots.order_rows[:self.n_rows]

    @property
    def admits(self) -> NDArray[np.float64]:
        """(n_rows, len(ADMISSION)) of them; where only order is decided they are not made."""
        return self.runner.slots.admit_rows[:self.n_rows]

    @property
    def victims(self) -> NDArray[np.float64]:
        """(n_rows, len(EVICTION)) at an eviction, in the order in which LRU would take them."""
        return self.runner.slots.victim_rows[self.b, self.candidates]

    @property
    def candidates(self) -> NDArray[np.int32]:
        """(n_rows,) segments on offer at an eviction."""
        return self.runner.slots.offer[self.b, :self.n_rows]

    def lets_in(self, row: int) -> bool:
        """Say whether the admission policy would let this row's request in; an idle worker always does."""
        policy, scratch = self.runner.policy_refs.policies.admission, self.runner.policy_refs.scratch["admission"]
        return self.idle or policy.score(self.admits[row], policy.params, scratch) > 0.0

    @property
    def recomputed_tokens(self) -> int:
        """Count tokens computed again so far; what another worker is about counts when its run of iterations
        (`sim.engine.fast_forward`) ends or is cut."""
        return int(self.world.run.count[st.RECOMPUTED])

    @property
    def service_gap_tokens(self) -> float:
        """Largest service gap between waiting tenants so far (`sim.results.fairness`); 0 with one tenant."""
        return float(self.world.run.total[st.SPREAD])

    def metrics(self) -> dict[str, Any]:
        """Give the run's figures so far, as `simulate` does; no SLO, no wall time."""
        return metrics(self.world, None, 0.0)

    def text(self) -> str:
        """Draw where the run stands: a line for the decision, then one a worker."""
        world, what = self.world, {PLACE: "where a request goes", CHOOSE: "who enters", EVICT: "whose blocks go",
                                   ENDED: "nothing: the run is over"}
        run, pool = world.run, world.pool
        begun = int(np.isfinite(run.begin_s).sum())
        lines = [f"{self.now_s:12.3f} s  to decide: {what[self.decision]}"
                 + (f" (worker {self.worker})" if self.decision in (CHOOSE, EVICT) else "")
                 + f"; sessions {int(run.count[st.SESSIONS_DONE])} done, {begun} begun of {len(run.left)}"]
        for w in range(int(world.limits[st.WORKERS])):
            free, size = (int(pool.n[w, k]) for k in (FREE, POOL))
            used = round(20 * (size - free) / max(size, 1))
            lines.append(f"  worker {w}: {int(run.w[w, st.N_RUNNING])} running, {int(run.w[w, st.N_WAITING])} waiting, "
                         f"KV [{'#' * used}{'.' * (20 - used)}] {size - free} of {size} blocks")
        return "\n".join(lines)
