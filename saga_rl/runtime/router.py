"""Which data-parallel engine gets a request: the placement policy over what a router knows without asking engines.

It counts what it sent and what came back, and remembers where chains live. Features are `features.placement_row`'s.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from saga_rl.policies import chains as ch
from saga_rl.policies.base import Policy
from saga_rl.policies.features import P_DRAW, P_RING, PLACEMENT, draw_places, placement_row, uncached_tokens
from saga_rl.policies.guard import Guard
from saga_rl.policies.registry import make
from saga_rl.runtime.hints import Hints
from saga_rl.runtime.tracker import Served, Tracker

PRIOR_TOKENS_PER_S, PRIOR_S = 8000.0, 1.0
"""The rate believed before anything was measured, and the seconds of measurement that it weighs."""
HALF_LIFE_S = 60.0
SWEEP_S = 10.0


def stable_hash(name: str) -> int:
    """63 bits that depend on the name alone, so that every API server draws the same for a session."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


@dataclass
class _Engine:
    in_flight: int = 0
    flight_tokens: float = 0.0
    queued_tokens: float = 0.0
    homed: int = 0
    placed_at: int = -1
    """Number of the last placement that went there."""
    busy_since: float = math.nan


@dataclass
class _Flight:
    served: Served
    engine: int
    uncached: float
    """Prompt tokens that the engine has to compute, as believed when it was sent."""
    output_tokens: int = 0
    answered: bool = False


class Router:
    """Places requests on `engines` workers of `max_seqs` running slots and `kv_tokens` tokens of KV each."""

    def __init__(self, policy: Policy, engines: int, max_seqs: int, kv_tokens: int, *, expiry_s: float = 300.0,
                 budget_s: float = 0.02, tokens_per_s: float | None = None) -> None:
        self.tracker = Tracker(expiry_s)
        self.engines = [_Engine() for _ in range(engines)]
        self.max_seqs, self.kv_tokens, self.fixed_rate = max_seqs, kv_tokens, tokens_per_s
        self.guard = Guard(policy, make("placement", "sticky"), budget_s)
        self.flights: dict[str, _Flight] = {}
        self.migrations = self.placed = 0
        self._home: dict[int, int] = {}
        self._counted: set[int] = set()  # chains that count as homed: not known or presumed to have ended
        self._rows = np.zeros((engines, len(PLACEMENT)))
        self._drained, self._drained_s, self._aged = PRIOR_TOKENS_PER_S * PRIOR_S, PRIOR_S, math.nan
        self._next_sweep = -math.inf

    @property
    def tokens_per_s(self) -> float:
        """Prompt tokens an engine works off in a second while any wait for their first token."""
        return self.fixed_rate or self._drained / self._drained_s

    def rows(self, hints: Hints, prompt_tokens: int, now: float) -> np.ndarray:
        """(engines, len(PLACEMENT)) for a request that arrives now; reused by the next call."""
        c = self.tracker.chain_for(hints, now)
        home = self._home.get(c, -1)
        mean = sum(e.in_flight for e in self.engines) / len(self.engines)
        for w, e in enumerate(self.engines):
            placement_row(self.tracker.chains, c, now, float(prompt_tokens), home == w, float(e.in_flight),
                          float(self.max_seqs), e.flight_tokens, float(self.kv_tokens), e.queued_tokens,
                          self.tokens_per_s, float(e.homed), float(self.placed - e.placed_at), mean, self._rows[w])
        if self.guard.policy.draws:
            key = stable_hash(self.tracker.name(c))
            draw_places(key, 1 + int(self.tracker.chains[c, ch.STEPS]), P_DRAW, self._rows)
            draw_places(key, 0, P_RING, self._rows)
        return self._rows

    def choose(self, hints: Hints, prompt_tokens: int, now: float) -> int:
        """The engine with the highest score; ties: the one where fewer chains live, then the lowest number."""
        scores = self.guard.scores(self.rows(hints, prompt_tokens, now), len(self.engines))
        return max(range(len(self.engines)), key=lambda w: (scores[w], -self.engines[w].homed, -w))

    def book(self, request_id: str, hints: Hints, prompt_tokens: int, engine: int, now: float) -> None:
        """The request goes to `engine`."""
        self._sweep(now)
        served = self.tracker.arrive(hints, now, prompt_tokens)
        c, e = served.chain, self.engines[engine]
        home = self._home.get(c, -1)
        if home != engine:
            self.migrations += home >= 0
            self._settle(c, -1)
        uncached = uncached_tokens(self.tracker.chains, c, float(prompt_tokens), home == engine)
        self._home[c] = engine
        self._settle(c, engine)
        if e.queued_tokens == 0:
            e.busy_since = now
        e.placed_at = self.placed
        self.placed += 1
        e.in_flight += 1
        e.flight_tokens += prompt_tokens
        e.queued_tokens += uncached
        self.flights[request_id] = _Flight(served, engine, uncached)

    def output(self, request_id: str, tokens: int, finished: bool, now: float) -> None:
        """The engine sent `tokens` tokens of the answer; `finished`: the last ones."""
        flight = self.flights.get(request_id)
        if flight is None:
            return
        if tokens and not flight.answered:
            self._answered(flight, now)
            self.tracker.schedule(flight.served, now)
        flight.output_tokens += tokens
        if finished:
            self._leave(request_id, flight, now)
            self.tracker.finish(flight.served, now, flight.output_tokens)
            if flight.served.hints.final:
                self._settle(flight.served.chain, -1)

    def gone(self, request_id: str, now: float) -> None:
        """The engine is done with the request; if it had not finished, it was aborted."""
        flight = self.flights.get(request_id)
        if flight is not None:
            self._leave(request_id, flight, now)
            self.tracker.abort(flight.served, now)

    def _leave(self, request_id: str, flight: _Flight, now: float) -> None:
        if not flight.answered:
            self._answered(flight, now)
        e = self.engines[flight.engine]
        e.in_flight -= 1
        e.flight_tokens -= flight.served.prompt_tokens
        del self.flights[request_id]

    def _answered(self, flight: _Flight, now: float) -> None:
        """Its prompt is computed: the engine's queue is shorter, and we know better how fast it works it off."""
        flight.answered = True
        e, tokens = self.engines[flight.engine], flight.uncached
        e.queued_tokens -= tokens
        if not math.isnan(self._aged):
            keep = 0.5 ** (max(now - self._aged, 0.0) / HALF_LIFE_S)
            self._drained = PRIOR_TOKENS_PER_S * PRIOR_S * (1 - keep) + keep * self._drained
            self._drained_s = PRIOR_S * (1 - keep) + keep * self._drained_s
        self._aged = now
        self._drained += tokens
        self._drained_s += max(now - e.busy_since, 0.0)
        e.busy_since = now

    def _settle(self, c: int, engine: int) -> None:
        """Chain c counts as living on `engine` (-1: nowhere)."""
        if c in self._counted:
            self._counted.discard(c)
            self.engines[self._home[c]].homed -= 1
        if engine >= 0:
            self._counted.add(c)
            self.engines[engine].homed += 1

    def _sweep(self, now: float) -> None:
        """Presume long-silent chains ended, and forget the oldest."""
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP_S
        silent = [c for c in self._counted if self.tracker.silent(c, now)]
        self.tracker.expire(now, silent)
        for c in silent:
            self._settle(c, -1)
        for c in self.tracker.forget(now, ()):
            self._settle(c, -1)
            self._home.pop(c, None)
