"""A serving benchmark's steady state, iteration by iteration: `concurrency` clients, equal requests, no prefix shared.

What an iteration holds depends on tokens alone, not on time, so the schedule is made once and priced by any profile.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saga_rl.sim.cost.profile import CostProfile

ROUNDS = 3
"""Requests a client finishes after its first, which only spreads the clients' phases and is not counted."""


@dataclass
class Request:
    """One request on its way: `context` tokens of it have KV, `made` tokens of its answer are out."""

    sent: int
    answer: int
    counted: bool
    context: int = 0
    made: int = 0
    first: int = 0


@dataclass(frozen=True)
class Loop:
    """(iterations, 5) arguments of `CostProfile.seconds`, and the counted requests' (sent, first token, done) moments:
    numbers of iterations begun by then."""

    arguments: NDArray[np.float64]
    requests: NDArray[np.int64]

    def cost(self, profile: CostProfile) -> NDArray[np.float64]:
        """Seconds at which every iteration begins, the last one's end included."""
        return np.concatenate([[0.0], np.cumsum([profile.seconds(*a) for a in self.arguments])])

    def times(self, profile: CostProfile) -> tuple[float, float, float]:
        """Means over the counted requests: seconds from sending to the end, to the first token, and a later token."""
        clock = self.cost(profile)
        sent, first, done, tokens = self.requests.T
        ttft = clock[first] - clock[sent]
        return (float((clock[done] - clock[sent]).mean()), float(ttft.mean()),
                float(((clock[done] - clock[first]) / (tokens - 1)).mean()))


def closed_loop(concurrency: int, prompt: int, answer: int, budget: int, at_once: bool = False) -> Loop:
    """The schedule of vLLM's rules: every decode first, then prompts in order of arrival, in chunks of what is left.

    Clients are spread evenly over a request's length, or all in step (`at_once`).
    """
    waiting = deque(Request(0, answer if at_once else max(2, answer * (i + 1) // concurrency), False)
                    for i in range(concurrency))
    running: list[Request] = []
    arguments: list[tuple[float, ...]] = []
    finished: list[tuple[int, ...]] = []
    while len(finished) < concurrency * ROUNDS:
        after = len(arguments) + 1
        left, joined = budget - len(running), []
        prefill = pairs = context = 0.0
        while waiting and left > 0:
            r = waiting[0]
            n = min(left, prompt - r.context)
            prefill, pairs, context = prefill + n, pairs + n * (r.context + n / 2), context + r.context
            left -= n
            r.context += n
            if r.context == prompt:
                joined.append(waiting.popleft())
        arguments.append((prefill, pairs, context, float(sum(r.context + 1 for r in running)), float(len(running))))
        for r in running:
            r.context += 1
            r.made += 1
            if r.made == r.answer:
                if r.counted:
                    finished.append((r.sent, r.first, after, r.answer))
                waiting.append(Request(after, answer, True))
        for r in joined:
            r.first, r.made = after, 1
        running = [r for r in running if r.made < r.answer] + joined
    return Loop(np.array(arguments), np.array(finished))
