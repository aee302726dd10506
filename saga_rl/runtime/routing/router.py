"""Which data-parallel engine gets a request: the placement policy over what a router knows without asking engines.

It counts what it sent and what came back, and remembers where chains live. Features are `features.placement_row`'s.
Engines that were lost are never chosen while another lives. With several API servers see `router_shared`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.base import Policy
from saga_rl.policies.features import PL, PLACEMENT, draw_places, placement_row, uncached_tokens
from saga_rl.policies.parameters import EXPIRY_S
from saga_rl.policies.registry import make
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.config.safe import SafeGuard
from saga_rl.runtime.sessions.hints import Hints
from saga_rl.runtime.sessions.tracker import NOBODY, Served, Tracker

PRIOR_TOKENS_PER_S, PRIOR_S = 8000.0, 1.0
"""The rate believed before anything was measured, and the seconds of measurement that it weighs."""
HALF_LIFE_S = 60.0
SWEEP_S, SWEEP_MOST = 10.0, 200
IN_FLIGHT, FLIGHT_TOKENS, QUEUED_TOKENS, HOMED, PLACED, LOST, STATE = range(7)
"""Columns of an engine's state; PLACED: number of the last placement that went there, LOST: 1 = taken out."""


def stable_hash(name: str) -> int:
    """63 bits that depend on the name alone, so that every API server draws the same for a session."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


@njit(cache=True)
def _fill(chains, c, now, prompt_tokens, home, state, placed, max_seqs, kv_tokens, tokens_per_s, rows):
    live, sent = 0, 0.0
    for w in range(len(state)):
        if state[w, LOST] == 0:
            live += 1
            sent += state[w, IN_FLIGHT]
    mean = sent / max(live, 1)
    for w in range(len(state)):
        e = state[w]
        placement_row(chains, c, now, prompt_tokens, home == w, e[IN_FLIGHT], max_seqs, e[FLIGHT_TOKENS], kv_tokens,
                      e[QUEUED_TOKENS], tokens_per_s, e[HOMED], placed - e[PLACED], mean, rows[w])


@njit(cache=True)
def _draw(key, steps, state, rows):
    """Both orders of the engines, drawn as if those that were lost had never been."""
    draw_places(key, steps, PL.draw, rows)
    draw_places(key, 0, PL.ring, rows)
    for column in (PL.draw, PL.ring):
        drawn = rows[:, column].copy()
        for w in range(len(state)):
            place = 0.0
            for v in range(len(state)):
                if state[v, LOST] < state[w, LOST] or (state[v, LOST] == state[w, LOST] and drawn[v] < drawn[w]):
                    place += 1
            rows[w, column] = place


@njit(cache=True)
def _best(scores, state):
    """The highest score; ties: where fewer chains live, then the lowest number. One that is lost only if all are."""
    best = 0
    for w in range(1, len(state)):
        if state[w, LOST] != state[best, LOST]:
            better = state[w, LOST] < state[best, LOST]
        elif scores[w] != scores[best]:
            better = scores[w] > scores[best]
        else:
            better = state[w, HOMED] < state[best, HOMED]
        if better:
            best = w
    return best


class _Engine:
    """One row of the router's state, and what no feature reads."""

    def __init__(self, row: np.ndarray) -> None:
        self.row = row
        row[PLACED] = -1
        self.busy_since = math.nan
        self.idle_since = -math.inf

    @property
    def in_flight(self) -> int:
        return int(self.row[IN_FLIGHT])

    @property
    def flight_tokens(self) -> float:
        return float(self.row[FLIGHT_TOKENS])

    @property
    def queued_tokens(self) -> float:
        return float(self.row[QUEUED_TOKENS])

    @property
    def homed(self) -> int:
        return int(self.row[HOMED])

    @property
    def lost(self) -> bool:
        return bool(self.row[LOST])


@dataclass
class Flight:
    """A request that was sent and has not come back."""

    served: Served
    engine: int
    uncached: float
    """Prompt tokens that the engine has to compute, as believed when it was sent."""
    output_tokens: int = 0
    answered: bool = False
    stopped: bool = False
    """Its answer ended by a stop string; its engine does not know yet."""
    been: set[int] = field(default_factory=set)
    """Engines from which it was stolen."""


class Router:
    """Places requests on `engines` workers of `max_seqs` running slots and `kv_tokens` tokens of KV each."""

    def __init__(self, policy: Policy, engines: int, max_seqs: int, kv_tokens: int, *, expiry_s: float = EXPIRY_S,
                 budget_s: float = 0.02, tokens_per_s: float | None = None) -> None:
        self.tracker = Tracker(expiry_s)
        self.state = self._seen = self._new_state(engines)
        self.engines = [_Engine(row) for row in self.state]
        self.max_seqs, self.kv_tokens, self.fixed_rate = max_seqs, kv_tokens, tokens_per_s
        self.guard = SafeGuard(policy, make("placement", "sticky"), budget_s)
        self.flights: dict[str, Flight] = {}
        self.migrations = self.placed = self.steals = 0
        self._home: dict[int, int] = {}
        self._counted: dict[int, None] = {}
        """Chains that count as homed: not known or presumed to have ended. Longest unheard of first."""
        self._rows = np.zeros((engines, len(PLACEMENT)))
        self._drained, self._drained_s, self._aged = PRIOR_TOKENS_PER_S * PRIOR_S, PRIOR_S, math.nan
        self._next_sweep = -math.inf
        self._anonymous = 0
        if policy.draws:
            _draw(0, 0, self.state, self._rows)  # links compiled code before the first request

    @property
    def tokens_per_s(self) -> float:
        """Prompt tokens an engine works off in a second while any wait for their first token."""
        return self.fixed_rate or self._drained / self._drained_s

    # ------------------------------------------------------------------ choosing
    def rows(self, hints: Hints, prompt_tokens: int, now: float) -> np.ndarray:
        """(engines, len(PLACEMENT)) for a request that arrives now; reused by the next call."""
        c, name = self._find_chain(hints)
        home, self._seen = self.home(c, name), self.loads()
        _fill(self.tracker.chains, c, now, float(prompt_tokens), home, self._seen, float(self.placed),
              float(self.max_seqs), float(self.kv_tokens), self.tokens_per_s, self._rows)
        if self.guard.policy.draws:
            _draw(self.ring_key(name), 1 + int(self.tracker.chains[c, ch.STEPS]), self._seen, self._rows)
        return self._rows

    def choose(self, hints: Hints, prompt_tokens: int, now: float) -> int:
        """The engine with the highest score; ties: the one where fewer chains live, then the lowest number."""
        scores = self.guard.scores(self.rows(hints, prompt_tokens, now), len(self.engines))
        return int(_best(scores, self._seen))

    def home(self, c: int, name: str) -> int:
        """The engine that is believed to hold the KV of chain c, -1 = none. name: as `Tracker.name` gives it."""
        return self._home.get(c, -1)

    def loads(self) -> np.ndarray:
        """(engines, STATE): what is known of the engines now. Whoever calls does not change it."""
        return self.state

    def idle_since(self, engine: int) -> float:
        """Since when the engine has had nothing, NaN = it has something."""
        return self.engines[engine].idle_since

    def ring_key(self, name: str) -> int:
        """What a chain's order of the engines is drawn from."""
        return stable_hash(name)

    def _new_state(self, engines: int) -> np.ndarray:
        """(engines, STATE) zeros, where this router counts."""
        return np.zeros((engines, STATE))

    def _lives(self, c: int, believed: int) -> int:
        """Where chain c's last request went, -1 = nowhere. believed: its home."""
        return self._home.get(c, -1)

    def _find_chain(self, hints: Hints) -> tuple[int, str]:
        """Row and name of the chain that the request will belong to; a row without history if that is not known yet."""
        if hints.session is None:
            self._anonymous += 1
            return NOBODY, f"\0{self._anonymous}/{hints.agent}/0"
        x, lane = self.tracker.chains, 0
        while True:
            c = self.tracker.chain_of(hints.session, hints.agent, lane)
            if c < 0 or (x[c, ch.WAITING] == 0 and x[c, ch.RUNNING] == 0):
                return (NOBODY if c < 0 else c), f"{hints.session}/{hints.agent}/{lane}"
            lane += 1

    # ------------------------------------------------------------------ a request's way
    def book(self, request_id: str, hints: Hints, prompt_tokens: int, engine: int, now: float) -> None:
        """The request goes to `engine`. One that was booked already (sent again) leaves where it was first."""
        self.gone(request_id, now)
        self._sweep(now)
        served = self.tracker.arrive(hints, now, prompt_tokens)
        c = served.chain
        believed = self.home(c, self.tracker.name(c))
        self.migrations += 0 <= self._lives(c, believed) != engine
        flight = Flight(served, engine, uncached_tokens(self.tracker.chains, c, float(prompt_tokens),
                                                        believed == engine))
        self.flights[request_id] = flight
        self._enter(flight, now)

    def moved(self, request_id: str, engine: int, now: float) -> None:
        """The queued request was taken back and goes to `engine`; its chain lives there from now on. KeyError: unknown.
        """
        flight = self.flights[request_id]
        if flight.answered:
            raise ValueError(f"request {request_id} has begun to answer at engine {flight.engine}")
        self._exit(flight, now)
        flight.been.add(flight.engine)
        flight.engine, flight.uncached = engine, float(flight.served.prompt_tokens)
        self.steals += 1
        self.migrations += 1
        self._enter(flight, now)

    def output(self, request_id: str, tokens: int, finished: bool, now: float) -> None:
        """The engine sent `tokens` tokens of the answer; `finished`: the last ones."""
        flight = self.flights.get(request_id)
        if flight is None:
            return
        if tokens and not flight.answered:
            self._drain(flight, now)
            self.tracker.schedule(flight.served, now)
        flight.output_tokens += tokens
        if finished:
            self._exit(flight, now)
            del self.flights[request_id]
            ended = self.tracker.finish(flight.served, now, flight.output_tokens)
            self._heard_of(flight.served.chain)
            for c in ended:
                self._count_home(c, -1)

    def gone(self, request_id: str, now: float) -> None:
        """The engine is done with the request; if it had not finished, it was aborted or its engine lost."""
        flight = self.flights.get(request_id)
        if flight is not None and flight.stopped:
            return self.output(request_id, 0, True, now)
        if flight is not None:
            del self.flights[request_id]
            self._exit(flight, now)
            self.tracker.abort(flight.served, now, flight.served.prompt_tokens if flight.answered else 0)

    def stopped(self, request_id: str) -> None:
        """Its answer ended by a stop string: when its engine is done with it, it has finished."""
        flight = self.flights.get(request_id)
        if flight is not None:
            flight.stopped = True

    # ------------------------------------------------------------------ engines that come and go
    def engine_lost(self, engine: int) -> list[str]:
        """Take it out: its KV is lost, so nothing lives there. Returns the requests that are on it; the caller says of
        each that it is `gone`, or books it anew."""
        self.state[engine, LOST] = 1.0
        for c in [c for c, home in self._home.items() if home == engine]:
            self._count_home(c, -1)
            del self._home[c]
        return [name for name, flight in self.flights.items() if flight.engine == engine]

    def grow(self, engines: int) -> None:
        """Make room for so many engines; those that are new count as lost until `engine_back`."""
        more = np.zeros((engines - len(self.engines), STATE))
        more[:, LOST] = 1.0
        self.state = np.concatenate([self.state, more])
        for e, row in zip(self.engines, self.state, strict=False):
            e.row = row
        self.engines += [_Engine(row) for row in self.state[len(self.engines):]]
        self._rows = np.zeros((engines, len(PLACEMENT)))

    def engine_back(self, engine: int) -> None:
        """It may be chosen again; it holds nothing."""
        self.state[engine, LOST] = 0.0

    # ------------------------------------------------------------------ counts
    def _enter(self, flight: Flight, now: float) -> None:
        c, w, e = flight.served.chain, flight.engine, self.engines[flight.engine]
        if self._home.get(c, -1) != w:
            self._count_home(c, -1)
        self._home[c] = w
        self._count_home(c, w)
        if e.row[QUEUED_TOKENS] == 0:
            e.busy_since = now
        e.idle_since = math.nan
        e.row[PLACED] = self.placed
        self.placed += 1
        e.row[IN_FLIGHT] += 1
        e.row[FLIGHT_TOKENS] += flight.served.prompt_tokens
        e.row[QUEUED_TOKENS] += flight.uncached

    def _exit(self, flight: Flight, now: float) -> None:
        e = self.engines[flight.engine]
        if not flight.answered:
            e.row[QUEUED_TOKENS] -= flight.uncached
        e.row[IN_FLIGHT] -= 1
        e.row[FLIGHT_TOKENS] -= flight.served.prompt_tokens
        if e.row[IN_FLIGHT] == 0:
            e.idle_since = now

    def _drain(self, flight: Flight, now: float) -> None:
        """Its prompt is computed: the engine's queue is shorter, and we know better how fast it works it off."""
        flight.answered = True
        e, tokens = self.engines[flight.engine], flight.uncached
        e.row[QUEUED_TOKENS] -= tokens
        if not math.isnan(self._aged):
            keep = 0.5 ** (max(now - self._aged, 0.0) / HALF_LIFE_S)
            self._drained = PRIOR_TOKENS_PER_S * PRIOR_S * (1 - keep) + keep * self._drained
            self._drained_s = PRIOR_S * (1 - keep) + keep * self._drained_s
        self._aged = now
        self._drained += tokens
        self._drained_s += max(now - e.busy_since, 0.0)
        e.busy_since = now

    def _count_home(self, c: int, engine: int) -> None:
        """Chain c counts as living on `engine` (-1: nowhere)."""
        if c in self._counted:
            del self._counted[c]
            self.state[self._home[c], HOMED] -= 1
        if engine >= 0:
            self._counted[c] = None
            self.state[engine, HOMED] += 1

    def _heard_of(self, c: int) -> None:
        if c in self._counted:
            del self._counted[c]
            self._counted[c] = None

    def _sweep(self, now: float) -> None:
        """Presume long-silent chains ended, and forget the oldest."""
        if now < self._next_sweep:
            return
        silent = []
        for c in itertools.islice(self._counted, len(self.flights) + SWEEP_MOST):
            if self.tracker.silent(c, now):
                silent.append(c)
            elif not self.tracker.busy(c):
                break
        self.tracker.expire(now, silent)
        for c in silent:
            self._count_home(c, -1)
        gone = self.tracker.forget(now, (), SWEEP_MOST)
        for c in gone:
            self._count_home(c, -1)
            self._home.pop(c, None)
        more = len(gone) == SWEEP_MOST or len(silent) >= SWEEP_MOST
        self._next_sweep = now + (0.0 if more else SWEEP_S)
