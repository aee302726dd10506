"""Placement when several API servers share the engines: a rule that needs no shared state.

Each server sees its own requests only. So where a chain lives is not remembered but drawn: rendezvous hashing of its
session and agent over the engines that live, which gives the same engine in every server and moves only the chains of
an engine that is lost. Loads are the engines' own counts, which vLLM's coordinator sends to every server ten times a
second (`lb_engines`: waiting, running, share of KV in use), or what this server sent itself if that is more. The
policy is asked as ever. What this loses against one server stands in docs/how-to/several-engines.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import Policy
from saga_rl.policies.features import draw
from saga_rl.runtime.routing.router import FLIGHT_TOKENS, IN_FLIGHT, LOST, QUEUED_TOKENS, Router, stable_hash

NAMELESS = "\0"
"""First character of the name of a chain without a session (`Tracker.chain_for`): it has no home."""


@njit(cache=True)
def first_drawn(key, state):
    """The live engine that comes first in the order drawn from `key`, -1 = none lives."""
    best, least = -1, 2.0
    for w in range(len(state)):
        if state[w, LOST] == 0:
            drawn = draw(key, 0, w)
            if drawn < least:
                best, least = w, drawn
    return best


class SharedRouter(Router):
    """A router that is one of `servers`. counts: gives (waiting, running, share of KV in use) of each engine; their
    sum is over all servers. Queued prompt tokens of the others are not known and believed to be as many as its own."""

    def __init__(self, policy: Policy, engines: int, max_seqs: int, kv_tokens: int, *, servers: int,
                 counts: Callable[[], Sequence[Sequence[float]]], **kwargs: Any) -> None:
        super().__init__(policy, engines, max_seqs, kv_tokens, **kwargs)
        self.servers, self.counts = servers, counts
        self._sum = np.zeros_like(self.state)
        first_drawn(0, self.state)  # links compiled code before the first request

    def home(self, c: int, name: str) -> int:
        """The first live engine of the chain's order, whether or not a request of it ever went there."""
        if name.startswith(NAMELESS):
            return -1
        return int(first_drawn(self.ring_key(name), self.state))

    def ring_key(self, name: str) -> int:
        return stable_hash(name.rpartition("/")[0])  # which lane a request takes, servers do not agree on

    def loads(self) -> np.ndarray:
        seen = self._sum
        seen[:] = self.state
        seen[:, (IN_FLIGHT, FLIGHT_TOKENS, QUEUED_TOKENS)] *= self.servers
        counts = np.array([c[:3] for c in self.counts()], np.float64).reshape(-1, 3)[: len(seen)]
        seen[: len(counts), IN_FLIGHT] = np.maximum(seen[: len(counts), IN_FLIGHT], counts[:, 0] + counts[:, 1])
        seen[: len(counts), FLIGHT_TOKENS] = np.maximum(seen[: len(counts), FLIGHT_TOKENS],
                                                        counts[:, 2] * self.kv_tokens)
        return seen
