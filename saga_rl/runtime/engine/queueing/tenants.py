"""Service of each tenant on one engine (`policies.state.service`), kept as requests wait, start, answer and go away."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from vllm.v1.request import Request

from saga_rl.policies.state import service as sv
from saga_rl.runtime.sessions.tracker import Served, Tracker, W


class Service:
    """Counters by tenant's code. gap: tokens of service between tenants that wait, infinity = no constraint.

    Generated tokens are charged when somebody looks: a step costs nothing here, and whoever reads `counters` sees every
    token that was delivered by then.
    """

    def __init__(self, tracker: Tracker, gap: float = math.inf) -> None:
        self.tracker, self.gap = tracker, gap
        self.spread = 0.0
        """The largest that was seen between tenants that waited."""
        self.flying: dict[str, tuple[Request, Served]] = {}
        """Requests that have had blocks and are not done, by their id."""
        self.stale = False
        """Tokens may have been delivered since somebody looked."""
        self._counters = sv.make_service(1, 8)
        self._waiting: set[int] = set()  # requests by arrival number

    @property
    def counters(self) -> NDArray[np.float64]:
        if self.stale:
            self.stale = False
            self._charge_outputs()
        return self._counters

    @property
    def unsettled(self) -> NDArray[np.float64]:
        """The same without the answers under way since somebody looked, for who reads no counter."""
        return self._counters

    def queued(self, served: Served) -> None:
        """The request begins to wait, perhaps again."""
        if served.number in self._waiting:
            return
        self._waiting.add(served.number)
        self._update_spread()
        tenant = self.tenant(served)
        # one tenant alone is lifted to itself, so nothing has to be counted for that
        sv.queued(self.counters if len(self.tracker.tenants.codes) > 1 else self._counters, W, tenant)
        self._update_spread()

    def left(self, served: Served, scheduled: bool) -> None:
        """It waits no longer: it got blocks, or went away."""
        if served.number in self._waiting:
            self._waiting.discard(served.number)
            self._update_spread()
            tenant = self.tenant(served)
            sv.left(self._counters, W, tenant, scheduled)

    def begins(self, request: Request, served: Served, computed: int) -> None:
        """It got its first blocks; `computed` of its prompt's tokens have to be computed."""
        self.flying[request.request_id] = request, served
        sv.charge(self._room(served.tenant), W, served.tenant, float(computed), 0.0)
        if computed:
            self._update_spread()

    def done(self, request: Request, served: Served) -> None:
        """It is over; what it generated is charged."""
        if self.flying.pop(request.request_id, None) is not None:
            self._charge_output(request, served)
        self.left(served, False)

    def allowed(self, tenant: int) -> bool:
        return bool(sv.allowed(self.counters, W, tenant, self.gap))

    def tenant(self, served: Served) -> int:
        """Its code, with room for it in `counters`."""
        self._room(served.tenant)
        return served.tenant

    def _room(self, tenant: int) -> NDArray[np.float64]:
        n = self._counters.shape[1] - 1
        if tenant >= n:
            bigger = sv.make_service(1, 2 * tenant)
            bigger[:, :n], bigger[:, -1] = self._counters[:, :n], self._counters[:, -1]
            self._counters = bigger
        return self._counters

    def _charge_outputs(self) -> None:
        """`_charge_output` of all that fly, in one pass: this is done in each step in which somebody comes. (Reads
        vLLM's list of answer tokens itself: its property costs as much as all else here.)"""
        news: dict[int, int] = {}
        for request, served in self.flying.values():
            n, had = len(request._output_token_ids), served.charged
            if n != had:
                served.charged = n
                news[served.tenant] = news.get(served.tenant, 0) + (n - had if n > had else n)
        for tenant, new in news.items():
            self._counters[W, tenant, sv.COUNTER] += sv.OUTPUT * new

    def _charge_output(self, request: Request, served: Served) -> None:
        n = request.num_output_tokens
        new = n - served.charged if n >= served.charged else n  # a streaming session begins its answer anew
        if new:
            served.charged = n
            self._counters[W, served.tenant, sv.COUNTER] += sv.OUTPUT * new

    def _update_spread(self) -> None:
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
