"""A deployment's replicas as engines of a `Router`: each has a slot while it lives, and slots are used again.

Of a replica that goes, all sessions lose their home, and what was sent there counts as gone. Where several routers
serve (`routers` > 1), a session's home is not remembered but drawn from the names of the session and of the replicas,
so all of them agree without a word; what the others sent is in the counts that replicas tell Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.njit import njit
from saga_rl.policies.base import Policy
from saga_rl.policies.features import draw
from saga_rl.runtime.config import clock
from saga_rl.runtime.routing.router import FLIGHT_TOKENS, IN_FLIGHT, LOST, QUEUED_TOKENS, Router, stable_hash
from saga_rl.runtime.routing.router_shared import NAMELESS
from saga_rl.runtime.sessions.hints import Hints

FIRST_SLOTS = 4


@njit(cache=True)
def first_drawn(key, names, state):
    """Return the live replica that comes first in the order drawn from `key` and the `names`, -1 = none lives."""
    best, least = -1, 2.0
    for w in range(len(state)):
        if state[w, LOST] == 0:
            drawn = draw(key, 0, names[w])
            if drawn < least:
                best, least = w, drawn
    return best


class ReplicaRouter(Router):
    """`Router` over slots, one of `routers`. `reported`: requests in flight by slot, as replicas say; -1 = unknown."""

    def __init__(self, policy: Policy, slots: int, max_seqs: int, kv_tokens: int, *, routers: int = 1,
                 **kwargs: Any) -> None:
        super().__init__(policy, slots, max_seqs, kv_tokens, **kwargs)
        self.routers = routers
        self.names: NDArray[np.int64] = np.zeros(slots, np.int64)
        self.reported: NDArray[np.float64] = np.full(slots, -1.0)
        self.state[:, LOST] = 1.0
        first_drawn(0, self.names, self.state)  # links compiled code before the first request

    def grow(self, engines: int) -> None:
        more = engines - len(self.engines)
        super().grow(engines)
        self.names = np.concatenate([self.names, np.zeros(more, np.int64)])
        self.reported = np.concatenate([self.reported, np.full(more, -1.0)])

    def home(self, c: int, name: str) -> int:
        if name.startswith(NAMELESS):
            return -1
        if self.routers == 1:
            # Ray says that an answer is over after the client has it: who asks again at once takes another lane
            session, agent, _ = name.rsplit("/", 2)
            first = self.tracker.chain_of(session, int(agent), 0)
            return super().home(c if c in self._home else first, name)
        return int(first_drawn(stable_hash(name.rpartition("/")[0]), self.names, self.state))

    def loads(self) -> np.ndarray:
        seen = self.state.copy()
        seen[:, (IN_FLIGHT, FLIGHT_TOKENS, QUEUED_TOKENS)] *= self.routers
        seen[:, IN_FLIGHT] = np.maximum(seen[:, IN_FLIGHT], self.reported)
        return seen


class Replicas:
    """What one router of Ray's knows, and what it decides. Times are `clock.seconds`."""

    def __init__(self, policy: Policy, *, max_seqs: int, kv_tokens: int, routers: int = 1, **kwargs: Any) -> None:
        self.router = ReplicaRouter(policy, FIRST_SLOTS, max_seqs, kv_tokens, routers=routers, **kwargs)
        self.counts: Counter[str] = Counter()
        self._slot: dict[str, int] = {}
        self._name: dict[int, str] = {}
        self._warm()

    def _warm(self) -> None:
        """Link compiled code before the first request."""
        self.update(["\0warm"])
        self.send("\0", Hints(), 1, lambda _: None)
        self.completed("\0")
        self.update([])
        self.counts.clear()

    def update(self, ids: Iterable[str]) -> None:
        """Take note that these replicas live, and no others."""
        ids = list(ids)
        for gone in self._slot.keys() - set(ids):
            w = self._slot.pop(gone)
            del self._name[w]
            for name in self.router.engine_lost(w):
                self.router.gone(name, clock.seconds())
            self.counts["replicas gone"] += 1
        for new in ids:
            if new not in self._slot:
                if len(self._slot) == len(self.router.engines):
                    self.router.grow(2 * len(self._slot))
                w = next(w for w, e in enumerate(self.router.engines) if e.lost)
                self._slot[new], self._name[w] = w, new
                self.router.names[w], self.router.reported[w] = stable_hash(new), -1.0
                self.router.engine_back(w)
                self.counts["replicas come"] += 1

    def send(self, request: str, hints: Hints, prompt_tokens: int, reported: Callable[[str], int | None]) -> str:
        """Return the replica that the policy chooses; the request counts as sent there from now on.

        reported: requests in flight at a replica, as Ray has heard of it (None: it has not). KeyError: none lives."""
        for name, w in self._slot.items():
            heard = reported(name)
            self.router.reported[w] = -1.0 if heard is None else heard
        now = clock.seconds()
        self.router.gone(request, now)  # it was sent before, to a replica that did not take it
        w = self.router.choose(hints, prompt_tokens, now)
        chosen = self._name[w]
        self.router.book(request, hints, prompt_tokens, w, now)
        self.counts["placements"] += 1
        return chosen

    def routed(self, request: str, replica: str) -> None:
        """Take note of where Ray sent the request, which may be elsewhere than chosen."""
        flight, w = self.router.flights.get(request), self._slot.get(replica)
        if flight is not None and w is not None and flight.engine != w:
            self.counts["sent elsewhere"] += 1
            self.router.moved(request, w, clock.seconds())

    def completed(self, request: str) -> None:
        """Take note that its answer ended, whole or not. How long it was, nobody says here."""
        self.router.output(request, 0, True, clock.seconds())

    def state(self) -> dict[str, Any]:
        """Return what stands in the counters' file."""
        r = self.router
        return {**self.counts, "migrations": r.migrations, "chains": len(r.tracker),
                "homed": {name[-8:]: r.engines[w].homed for name, w in self._slot.items()},
                **{f"fallback/placement/{k}": v for k, v in dict(r.guard.fallbacks).items()}}
