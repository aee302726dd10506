"""A closed-loop run that stops at every placement, for the environment and for collecting data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.policies.base import PolicySet
from saga_rl.sim.cluster import PLACE, Cluster
from saga_rl.sim.config import SimConfig
from saga_rl.sim.engine import state as st
from saga_rl.sim.results.metrics import metrics


class PlacementStepper:
    """`reset()`, then `advance(worker)` for each request until it returns False.

    rows: float64 (workers, len(PLACEMENT)) for the request at hand. now: seconds. done_tct: (session, TCT in seconds)
    of the sessions that ended since the decision before.
    """

    def __init__(self, trace: Trace, config: SimConfig, policies: PolicySet) -> None:
        if config.workers < 2:
            raise ValueError("placement needs at least two workers")
        self.trace, self.config, self.policies = trace, replace(config), policies
        self.rows: NDArray[np.float64]
        self.now = 0.0
        self.done_tct: list[tuple[int, float]] = []

    def reset(self) -> bool:
        """Start anew; True if a placement is wanted."""
        self._cluster = Cluster(self.trace, self.config, self.policies, pause=True)
        self._seen = np.zeros(self.trace.n_sessions, bool)
        return self._go(-1)

    def advance(self, worker: int) -> bool:
        """Send the waiting request to `worker`; True while another placement is wanted."""
        if not 0 <= worker < self.config.workers:
            raise ValueError(f"worker {worker} is not in 0..{self.config.workers - 1}")
        return self._go(worker)

    def _go(self, worker: int) -> bool:
        more = self._cluster.advance(worker) == PLACE
        world = self._cluster.world
        run = world.run
        self.rows, self.now = world.work.place, float(run.total[st.NOW])
        ended = np.flatnonzero(np.isfinite(run.done_s) & ~self._seen)
        self._seen[ended] = True
        self.done_tct = [(int(s), float(run.done_s[s] - run.begin_s[s])) for s in ended]
        return more

    def metrics(self) -> dict[str, Any]:
        """The run's figures so far, as `simulate` gives them; no SLO, no wall time."""
        return metrics(self._cluster.world, None, 0.0)
