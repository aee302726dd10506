"""vLLM's waiting queue in the order that an ordering policy gives it: lowest score first, then earliest arrival.

A request is scored when it is queued; `refresh` scores all of them anew (Agent Fair Share changes as time goes on).
Tried with vLLM 0.28 - 0.32 (`RequestQueue`).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from saga_rl.policies import chains as ch
from saga_rl.policies.base import Policy
from saga_rl.policies.fairness import afs
from saga_rl.policies.features import ORDERING, ordering_row
from saga_rl.policies.guard import Guard
from saga_rl.policies.registry import make
from saga_rl.runtime.tracker import Served, Tracker, W

EPOCH_S = 0.1
"""Seconds between two recomputations of fairness, SAGA section 7 and the simulator."""

Entry = tuple[float, float, int, Request]


class PolicyRequestQueue(RequestQueue):
    """Sorted by (score, arrival, number). served: what the tracker knows of a request; clock: seconds."""

    def __init__(self, tracker: Tracker, policy: Policy, budget_s: float, served: Callable[[Request], Served],
                 clock: Callable[[], float]) -> None:
        self.tracker, self.served, self.clock = tracker, served, clock
        self.guard = Guard(policy, make("ordering", "fcfs"), budget_s)
        self._sorted: list[Entry] = []
        self._afs = np.zeros(1)

    def refresh(self, now: float) -> None:
        """Recompute every tenant's share and sort anew."""
        if not self._sorted:
            return
        t = self.tracker
        live = t.live()
        self._afs = np.zeros(max(len(t.tenants.codes), 1))
        afs(t.chains, t.tables, W, live, len(live), now, EPOCH_S, self._afs)
        self._sorted = self._entries([e[3] for e in self._sorted], now)
        self._sorted.sort(key=lambda e: e[:3])

    def _entries(self, requests: list[Request], now: float) -> list[Entry]:
        t = self.tracker
        rows = np.zeros((len(requests), len(ORDERING)))
        served = [self.served(r) for r in requests]
        for i, s in enumerate(served):
            tenant = int(t.chains[s.chain, ch.TENANT])
            share = self._afs[tenant] if tenant < len(self._afs) else 0.0
            ordering_row(t.chains, s.chain, now, s.queued_s, float(s.prompt_tokens), float(s.preemptions > 0), share,
                         rows[i])
        scores = self.guard.scores(rows, len(rows)).tolist()
        return [(score, s.queued_s, s.number, r) for score, s, r in zip(scores, served, requests, strict=True)]

    def add_request(self, request: Request) -> None:
        bisect.insort(self._sorted, self._entries([request], self.clock())[0], key=lambda e: e[:3])

    def pop_request(self) -> Request:
        if not self._sorted:
            raise IndexError("pop from an empty queue")
        return self._sorted.pop(0)[3]

    def peek_request(self) -> Request:
        if not self._sorted:
            raise IndexError("peek from an empty queue")
        return self._sorted[0][3]

    def prepend_request(self, request: Request) -> None:
        """The policy decides where it stands: it sees that the request was preempted."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.add_request(request)

    def remove_request(self, request: Request) -> None:
        kept = [e for e in self._sorted if e[3] is not request]
        if len(kept) == len(self._sorted):
            raise ValueError(f"request {request.request_id} is not queued")
        self._sorted = kept

    def remove_requests(self, requests: Iterable[Request]) -> None:
        gone = {r.request_id for r in requests}
        self._sorted = [e for e in self._sorted if e[3].request_id not in gone]

    def __bool__(self) -> bool:
        return bool(self._sorted)

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self) -> Iterator[Request]:
        return (e[3] for e in self._sorted)
