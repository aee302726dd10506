"""Placement when several API servers share the engines and a table (`shared_table`): as behind one server.

Where a chain lives and how long it was is in the table, whichever server its requests come through. Loads are the sums
of what all servers sent. What a chain did besides (its tools, its pauses) each server knows of its own requests; no
placement policy that ships reads that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saga_rl.policies.base import Policy
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.routing.homes import AGE_S, MOST_CONTEXT, WAYS, find, store
from saga_rl.runtime.routing.router import LOST, PLACED, Flight, Router, stable_hash
from saga_rl.runtime.routing.router_shared import NAMELESS
from saga_rl.runtime.routing.shared_table import SharedTable
from saga_rl.runtime.sessions.tracker import NOBODY


class TableRouter(Router):
    """The router of server number `server`."""

    def __init__(self, policy: Policy, engines: int, max_seqs: int, kv_tokens: int, *, table: SharedTable, server: int,
                 **kwargs: Any) -> None:
        if engines > table.engines or not 0 <= server < table.servers:
            raise ValueError(f"server {server}, {engines} engines: the table has {table.servers} and {table.engines}")
        self.table, self.server = table, server
        super().__init__(policy, engines, max_seqs, kv_tokens, **kwargs)
        self._sum = np.zeros_like(self.state)
        store(np.zeros((WAYS, 2), np.int64), 0, 0, 0, 0)  # links compiled code before the first request
        find(table.homes, 0)

    def _new_state(self, engines: int) -> np.ndarray:
        mine = self.table.loads[self.server, :engines]
        mine[:] = 0.0
        self.table.idle_s[self.server] = -np.inf
        return mine

    def home(self, c: int, name: str) -> int:
        """As the table says. What it knows of the chain's context is noted in the chain's row."""
        row = self.tracker.chains[c]
        if c == NOBODY:
            row[ch.STEPS] = row[ch.CONTEXT] = 0.0
        if name.startswith(NAMELESS):
            return -1
        engine, context = find(self.table.homes, stable_hash(name))
        if engine >= 0 and context:
            row[ch.CONTEXT] = context
            row[ch.STEPS] = max(row[ch.STEPS], 1.0) if c == NOBODY else row[ch.STEPS]
        if engine >= len(self.engines) or (engine >= 0 and self.lost(engine)):
            return -1
        return engine

    def lost(self, engine: int) -> bool:
        """Whether a server took the engine out, or its process ended."""
        return bool(self.table.dead[engine] or self.table.loads[:, engine, LOST].any())

    def loads(self) -> np.ndarray:
        n, every = len(self.engines), self.table.loads
        seen = self._sum
        every[:, :n].sum(axis=0, out=seen)
        seen[:, PLACED] = every[:, :n, PLACED].max(axis=0)
        seen[:, LOST] = np.minimum(seen[:, LOST] + self.table.dead[:n], 1.0)
        return seen

    def idle_since(self, engine: int) -> float:
        return float(self.table.idle_s[:, engine].max())  # NaN as soon as one server has something there

    def rows(self, hints: Any, prompt_tokens: int, now: float) -> np.ndarray:
        self.placed = int(self.table.placed.sum())
        return super().rows(hints, prompt_tokens, now)

    def _lives(self, c: int, believed: int) -> int:
        return believed

    def _enter(self, flight: Flight, now: float) -> None:
        self.placed = int(self.table.placed.sum())
        super()._enter(flight, now)
        self.table.placed[self.server] += 1
        self.table.idle_s[self.server, flight.engine] = np.nan
        self._tell(flight, now)

    def _exit(self, flight: Flight, now: float) -> None:
        super()._exit(flight, now)
        self.table.idle_s[self.server, flight.engine] = self.engines[flight.engine].idle_since

    def output(self, request_id: str, tokens: int, finished: bool, now: float) -> None:
        flight = self.flights.get(request_id)
        super().output(request_id, tokens, finished, now)
        if finished and flight is not None:
            self._tell(flight, now)

    def gone(self, request_id: str, now: float) -> None:
        flight = self.flights.get(request_id)
        super().gone(request_id, now)
        if flight is not None:
            self._tell(flight, now)  # what was computed of it stays of use

    def _tell(self, flight: Flight, now: float) -> None:
        """Where the chain lives and how long it is, unless its engine is lost or it went elsewhere since."""
        c = flight.served.chain
        name = self.tracker.name(c)
        if not name.startswith(NAMELESS) and self._home.get(c) == flight.engine:
            context = min(int(self.tracker.chains[c, ch.CONTEXT]), MOST_CONTEXT)
            store(self.table.homes, stable_hash(name), flight.engine, context, int(now / AGE_S))
