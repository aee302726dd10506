"""vLLM's waiting queue in the order that an ordering policy gives it: lowest score first, then earliest arrival.

A request is scored when it is queued; `refresh` scores all of them anew (Agent Fair Share changes as time goes on), and
so does each choice if the policy is `fresh`. Which request comes next is the first in that order that the service gap
allows (`policies.constraints`). A request that has waited for longer than `starve_s` goes ahead of the policy's choice,
the longest wait first: whatever the scores and however many older sessions keep coming, everyone is served in the end.
If it does not fit yet, the others wait behind it (vLLM stops its scan there), so running requests drain until it does.

What vLLM takes out only to pass it over (an adapter beyond `max_loras`, a grammar that is not ready) comes back within
the step and stands where it stood: nothing of it is computed anew.
Tried with vLLM 0.28 - 0.33 (`RequestQueue`).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from vllm.v1.core.sched.request_queue import FCFSRequestQueue, RequestQueue
from vllm.v1.request import Request, RequestStatus

from saga_rl.njit import njit
from saga_rl.policies.base import Policy
from saga_rl.policies.features import ORDERING, ordering_row
from saga_rl.policies.registry import make
from saga_rl.policies.state import service as sv
from saga_rl.policies.state.agent_fair_share import afs
from saga_rl.runtime.config.safe import SafeGuard
from saga_rl.runtime.engine.queueing.tenants import Service
from saga_rl.runtime.sessions.tracker import Served, Tracker, W

EPOCH_S = 0.1
"""Seconds between two recomputations of fairness, SAGA section 7 and the simulator."""

WAITS = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
Entry = tuple[float, float, int, Request]
# columns of a waiting request
CHAIN, QUEUED_S, PROMPT, PREEMPTED, TENANT = range(5)


@njit(cache=True)
def fill_ordering(chains, tables, w, now, waiting, shares, owned, block, service, out):
    """Rows of the requests waiting[n, 5]. shares: Agent Fair Share by tenant; owned: evictable blocks by chain (of
    tenants and chains beyond, none); service: `policies.state.service`'s counters."""
    least = sv.least(service, w)
    for i in range(len(waiting)):
        c, tenant = int(waiting[i, CHAIN]), int(waiting[i, TENANT])
        share = shares[tenant] if tenant < len(shares) else 0.0
        cached = owned[c] * block if c < len(owned) else 0.0
        ordering_row(chains, tables, w, c, now, waiting[i, QUEUED_S], waiting[i, PROMPT], waiting[i, PREEMPTED], share,
                     cached, service[w, tenant, sv.COUNTER], least, out[i])


class WatchedQueue(FCFSRequestQueue):
    """vLLM's own queue; `before` is called whenever its head is looked at."""

    def __init__(self, before: Callable[[], object]) -> None:
        super().__init__()
        self.before = before

    def peek_request(self) -> Request:
        self.before()
        return super().peek_request()


class PolicyRequestQueue(RequestQueue):
    """Sorted by (score, arrival, number). served: what the tracker knows of a request (None: nothing, it goes first);
    clock: seconds; owned: evictable blocks of `block_tokens` by chain; rules_need_shares: recompute Agent Fair Share
    whatever the policy; before: called whenever the next request is looked at."""

    def __init__(self, tracker: Tracker, policy: Policy, budget_s: float, served: Callable[[Request], Served | None],
                 clock: Callable[[], float], service: Service, owned: Callable[[], NDArray[np.float64]],
                 block_tokens: int, rules_need_shares: bool = False, before: Callable[[], object] = lambda: None,
                 starve_s: float = np.inf) -> None:
        self.tracker, self.policy, self.served, self.clock, self.service = tracker, policy, served, clock, service
        self.guard = SafeGuard(policy, make("ordering", "fcfs"), budget_s)
        self.shares = np.zeros(1)
        """Agent Fair Share by tenant's code, as of the last epoch."""
        self.urgent: Request | None = None
        """Another request was made to yield for this one: it is next, if the service gap allows."""
        self.changes = 0
        """Changes whenever the order does."""
        self._owned, self._block, self._need_shares = owned, block_tokens, rules_need_shares
        self._before, self._starve_s = before, starve_s
        self._starving: list[tuple[float, int, Request]] = []
        """By (since when, number)."""
        self._sorted: list[Entry] = []
        self._aside: dict[str, tuple[Entry, tuple[float, int, Request] | None]] = {}
        """What was popped since the last epoch, as it stood: started by now, or passed over and about to come back."""
        self._late_aside: list[Request] = []
        """Of those, the ones that have waited for too long."""
        self._ranked: tuple[int, float] | None = None
        """When all were scored last."""
        self._next: Request | None = None

    def refresh(self, now: float) -> None:
        """Recompute who has waited for too long, every tenant's share, and sort anew."""
        self._aside.clear()
        self._late_aside.clear()
        self._find_starving(now)
        if not self._sorted or (self.policy.steady and not self._need_shares):
            return
        t = self.tracker
        live = t.live(now)
        self.shares = np.zeros(max(len(t.tenants.codes), 1))
        afs(t.chains, t.tables, W, live, len(live), now, EPOCH_S, self.shares)
        if not self.policy.steady:
            self._sort(now)

    def _find_starving(self, now: float) -> None:
        late = [(s.since_s, s.number, e[3]) for e in self._sorted
                if (s := self.served(e[3])) is not None and now - s.since_s > self._starve_s]
        self._starving = sorted(late, key=lambda x: x[:2])

    def rows(self, requests: list[Request], now: float) -> NDArray[np.float64]:
        """(n, len(ORDERING)) of requests that are known."""
        t = self.tracker
        waiting = np.array([(s.chain, s.queued_s, s.prompt_tokens, s.preemptions > s.yields, self.service.tenant(s))
                            for r in requests if (s := self.served(r)) is not None], np.float64).reshape(-1, 5)
        out = np.zeros((len(requests), len(ORDERING)))
        fill_ordering(t.chains, t.tables, W, now, waiting, self.shares, self._owned(), float(self._block),
                      self.service.counters if self.policy.informed else self.service.unsettled, out)
        return out

    def share(self, request: Request) -> float:
        """Agent Fair Share of the request's tenant."""
        served = self.served(request)
        tenant = 0 if served is None else served.tenant
        return float(self.shares[tenant]) if tenant < len(self.shares) else 0.0

    def may_be_served(self, request: Request) -> bool:
        """Whether the service gap lets the waiting request be scheduled."""
        served = self.served(request)
        return served is None or self.service.gap == np.inf or self.service.allowed(self.service.tenant(served))

    def holds_back(self, request: Request) -> bool:
        """Whether `request` wants an adapter, and one that has waited for too long was passed over in this step for
        want of another. An adapter goes only when nobody who begins takes it up again."""
        mine = getattr(request, "lora_request", None)
        return mine is not None and any(
            (r.lora_request or mine).lora_int_id != mine.lora_int_id and r.status in WAITS for r in self._late_aside)

    def _sort(self, now: float) -> None:
        self._ranked = self.tracker.version, now
        self._sorted = self._entries([e[3] for e in self._sorted], now)
        self._sorted.sort(key=lambda e: e[:3])

    def _entries(self, requests: list[Request], now: float) -> list[Entry]:
        self.changes += 1
        known = [(r, s) for r in requests if (s := self.served(r)) is not None]
        scores = self.guard.scores(self.rows([r for r, _ in known], now), len(known)).tolist()
        strangers = [(-np.inf, now, 0, r) for r in requests if self.served(r) is None]
        return strangers + [(score, s.queued_s, s.number, r) for score, (r, s) in zip(scores, known, strict=True)]

    def _first(self) -> Request:
        """The request that is next. If those of every allowed tenant have been passed over by vLLM (they wait for
        something else than a place), the one whose tenant has had least."""
        if self.service.gap == np.inf and self.urgent is None and not self._starving:
            return self._sorted[0][3]
        if self.urgent is None and (
                late := next((r for *_, r in self._starving if self.may_be_served(r)), None)) is not None:
            return late
        first = None
        for *_, request in self._sorted:
            if not self.may_be_served(request):
                continue
            if self.urgent is None or request is self.urgent:
                return request
            if first is None:
                first = request
        if first is not None:
            return first
        counters = self.service.counters[W, :, sv.COUNTER]
        return min(self._sorted, key=lambda e: counters[s.tenant] if (s := self.served(e[3])) is not None else 0.0)[3]

    # ------------------------------------------------------------------ vLLM's interface
    def add_request(self, request: Request) -> None:
        bisect.insort(self._sorted, self._entries([request], self.clock())[0], key=lambda e: e[:3])

    def peek_request(self) -> Request:
        if not self._sorted:
            raise IndexError("peek from an empty queue")
        self._before()
        if self.policy.fresh and len(self._sorted) > 1 and (self.tracker.version, self.clock()) != self._ranked:
            self._sort(self.clock())
        self._next = self._first()
        return self._next

    def pop_request(self) -> Request:
        """What `peek_request` gave last: by now its tenant may have been charged for it."""
        if not self._sorted:
            raise IndexError("pop from an empty queue")
        request = self._next or self._first()
        place = self._place(request)
        late = next((k for k, x in enumerate(self._starving) if x[2] is request), -1) if self._starving else -1
        self._aside[request.request_id] = self._sorted.pop(place), self._starving.pop(late) if late >= 0 else None
        if late >= 0:
            self._late_aside.append(request)
        self._next = None
        return request

    def prepend_request(self, request: Request) -> None:
        """The policy decides where it stands: it sees that the request was preempted."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        back = []
        self._late_aside.clear()
        for request in requests:
            if (aside := self._aside.pop(request.request_id, None)) is None:
                self.add_request(request)
                continue
            back.append(aside[0])
            if aside[1] is not None:
                bisect.insort(self._starving, aside[1], key=lambda x: x[:2])
        back.sort(key=lambda e: e[:3])
        in_front = back and (not self._sorted or back[-1][:3] <= self._sorted[0][:3])
        self._sorted[:0] = back
        if not in_front:
            self._sorted.sort(key=lambda e: e[:3])

    def remove_request(self, request: Request) -> None:
        del self._sorted[self._place(request)]
        self._gone({request.request_id})

    def _place(self, request: Request) -> int:
        if self._sorted and self._sorted[0][3] is request:
            return 0
        at = next((i for i, e in enumerate(self._sorted) if e[3] is request), -1)
        if at < 0:
            raise ValueError(f"request {request.request_id} is not queued")
        return at

    def remove_requests(self, requests: Iterable[Request]) -> None:
        gone = {r.request_id for r in requests}
        self._sorted = [e for e in self._sorted if e[3].request_id not in gone]
        self._gone(gone)

    def _gone(self, names: set[str]) -> None:
        self._next = None
        self.changes += 1
        if self._starving:
            self._starving = [x for x in self._starving if x[2].request_id not in names]

    def __bool__(self) -> bool:
        return bool(self._sorted)

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self) -> Iterator[Request]:
        return (e[3] for e in self._sorted)
