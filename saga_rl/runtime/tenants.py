"""Service of each tenant on one engine (`policies.service`), kept as requests wait, start, answer and go away."""

from __future__ import annotations

import math

import numpy as np

from saga_rl.policies import service as sv
from saga_rl.runtime.tracker import Served, Tracker, W


class Service:
    """Counters by tenant's code. gap: tokens of service between tenants that wait, infinity = no constraint."""

    def __init__(self, tracker: Tracker, gap: float = math.inf) -> None:
        self.tracker, self.gap = tracker, gap
        self.counters = sv.make_service(1, 8)
        self.spread = 0.0
        """The largest that was seen between tenants that waited."""
        self._waiting: set[int] = set()  # requests by arrival number

    def queued(self, served: Served) -> None:
        """The request begins to wait, perhaps again."""
        if served.number in self._waiting:
            return
        self._waiting.add(served.number)
        self._look()
        sv.queued(self.counters, W, self.tenant(served))
        self._look()

    def left(self, served: Served, scheduled: bool) -> None:
        """It waits no longer: it got blocks, or went away."""
        if served.number in self._waiting:
            self._waiting.discard(served.number)
            self._look()
            sv.left(self.counters, W, self.tenant(served), scheduled)

    def charge(self, served: Served, computed: int, generated: int) -> None:
        """Prompt tokens that had to be computed, tokens generated."""
        sv.charge(self.counters, W, self.tenant(served), float(computed), float(generated))
        if computed:
            self._look()

    def allowed(self, tenant: int) -> bool:
        return bool(sv.allowed(self.counters, W, tenant, self.gap))

    def tenant(self, served: Served) -> int:
        """Its code, with room for it in `counters`."""
        tenant, n = served.tenant, self.counters.shape[1] - 1
        if tenant >= n:
            bigger = sv.make_service(1, 2 * tenant)
            bigger[:, :n], bigger[:, -1] = self.counters[:, :n], self.counters[:, -1]
            self.counters = bigger
        return tenant

    def _look(self) -> None:
        if len(self.tracker.tenants.codes) > 1:
            self.spread = max(self.spread, float(sv.spread(self.counters, W)))

    def warm_up(self) -> None:
        """Call every compiled function once, on counters that are thrown away."""
        s = sv.make_service(1, 1)
        sv.queued(s, W, 0)
        sv.allowed(s, W, 0, self.gap)
        sv.spread(s, W)
        sv.left(s, W, 0, True)
        sv.charge(s, W, 0, 1.0, 1.0)
        assert np.isfinite(s).all()
