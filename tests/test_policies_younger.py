"""Whom a chain may wait for: the living chains of its session that began after its last step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.policies.features import EV, EVICTION, G_BLOCK, G_COLUMNS, G_INFORMED, G_POOL, eviction_row
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state.tables import make_tables

SESSIONS, AGENTS, WORKERS = 2, 4, 2
CHAINS = SESSIONS * AGENTS
EVENTS = ("step", "ask", "run", "answer", "end", "abort", "expire", "told", "call")
NONE = (0, 0, 0.0, 0.0)


class Agents:
    """Chains c of session c % SESSIONS; the session's chains 0 and 1 are the first of theirs."""

    def __init__(self) -> None:
        self.chains, self.tables, self.now = ch.make_chains(CHAINS), make_tables(WORKERS, 2, 1), 0.0
        for c in range(CHAINS):
            ch.describe(self.chains, c, c % SESSIONS, c % SESSIONS, 0.0, 0, 0, np.nan)

    def do(self, c: int, what: str, w: int = 0, seconds: float = 1.0) -> None:
        """What makes no sense for the chain as it is does not happen, as in a scheduler."""
        x, t, row = self.chains, self.tables, self.chains[c]
        idle = row[ch.WAITING] == row[ch.RUNNING] == 0
        self.now += seconds
        if what in ("ask", "step") and idle:
            ch.arrive(x, t, w, c, self.now, 100.0)
        if what in ("run", "step") and row[ch.WAITING] == 1:
            ch.schedule(x, c, self.now)
        if what in ("answer", "end", "step") and row[ch.RUNNING] == 1:
            ch.finish(x, t, w, c, self.now, 100.0, 10.0, 1, what == "end")
        if what == "abort" and not idle:
            ch.abort(x, c, self.now)
        if what == "expire":
            ch.expire(x, t, w, c)
        if what in ("told", "call") and idle and row[ch.STEPS] > 0:
            (ch.announced_end if what == "told" else ch.announced_call)(x, t, w, c)

    def younger(self, c: int, w: int = 0) -> tuple[int, int, float, float]:
        return ch.younger(self.chains, w, c, self.now)

    def row(self, c: int) -> np.ndarray:
        g, out = np.zeros((WORKERS, G_COLUMNS)), np.zeros(len(EVICTION))
        g[0, G_BLOCK], g[0, G_POOL], g[0, G_INFORMED] = 16, 64, 2
        eviction_row(self.chains, self.tables, g, 0, c, self.now, self.chains[c, ch.LAST], 3.0, 0.0, np.nan, out)
        return out


def looked_up(x: np.ndarray, w: int, c: int, now: float) -> tuple[int, int, float, float]:
    """`chains.younger` from all rows, without the ring."""
    found = []
    for o in range(CHAINS):
        busy = x[o, ch.WAITING] + x[o, ch.RUNNING] > 0
        if (o != c and x[o, ch.SESSION] == x[c, ch.SESSION] and x[o, ch.ENDED] == 0 and x[o, ch.WORKER] == w
                and (busy or x[o, ch.STEPS] > 0) and x[o, ch.BEGAN] >= x[c, ch.LAST] and x[c, ch.NEXT] >= 0):
            found.append((busy, x[o, ch.STEPS], 0.0 if busy else now - x[o, ch.LAST]))
    if not found:
        return NONE
    return len(found), sum(b for b, _, _ in found), min(s for _, s, _ in found), min(i for _, _, i in found)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, CHAINS - 1), st.sampled_from(EVENTS), st.integers(0, WORKERS - 1),
                          st.floats(0.0, 30.0)), max_size=60))
def test_the_ring_finds_whom_a_look_at_all_rows_finds(history):
    a = Agents()
    for c, what, w, seconds in history:
        a.do(c, what, w, seconds)
        for o in range(CHAINS):
            for worker in range(WORKERS):
                assert a.younger(o, worker) == looked_up(a.chains, worker, o, a.now)


def test_an_agent_waits_for_those_that_it_started_until_they_end():
    a = Agents()
    a.do(0, "step")
    assert a.younger(0) == NONE
    a.do(2, "ask")
    a.do(4, "step")
    a.do(1, "ask")  # of another session
    a.now += 5.0
    assert a.younger(0) == (2, 1, 0.0, 0.0)
    a.do(2, "run")
    a.do(2, "answer")
    a.do(4, "step")
    a.now += 3.0
    assert a.younger(0) == (2, 0, 1.0, 3.0)
    assert a.younger(2) == NONE  # the other one, and the agent itself, began before its last step
    assert a.younger(0, 1) == NONE  # an engine knows of no other's chains
    row = a.row(0)
    assert row[[EV.young_log, EV.young_busy, EV.young_steps_log]] == pytest.approx([np.log1p(2), 0.0, np.log1p(1)])
    assert row[EV.young_idle_log] == pytest.approx(np.log1p(3.0))
    a.do(2, "told")
    a.do(4, "ask")
    assert a.younger(0) == (1, 1, 2.0, 0.0)
    a.do(4, "run")
    a.do(4, "end")
    assert a.younger(0) == NONE


def test_an_end_that_was_only_presumed_does_not_lose_a_chain():
    a = Agents()
    for c, what in ((0, "step"), (2, "step"), (2, "expire")):
        a.do(c, what)
    assert a.younger(0) == NONE
    a.do(2, "call")
    assert a.younger(0)[0] == 1
    a.do(2, "expire")
    a.do(2, "ask")
    assert a.younger(0)[:2] == (1, 1)


def test_more_chains_than_are_looked_at_cost_no_more_time():
    n = ch.MOST_KIN + 10
    x, t = ch.make_chains(n), make_tables(1, 1, 1)
    for c in range(n):
        ch.describe(x, c, 0, 0, 0.0, 0, 0, np.nan)
        ch.arrive(x, t, 0, c, float(c), 100.0)
        ch.schedule(x, c, float(c))
        ch.finish(x, t, 0, c, float(c), 100.0, 10.0, -1, False)
    assert ch.younger(x, 0, 0, float(n))[0] == ch.MOST_KIN


def test_pauses_between_steps():
    a = Agents()
    a.do(0, "step")
    assert a.row(0)[EV.pause_log] == a.row(0)[EV.longest_log] == 0
    for seconds in (10.0, 2.0):
        a.do(0, "step", seconds=seconds)
    row, first = a.row(0), np.log1p(10.0)
    assert row[EV.longest_log] == pytest.approx(first)
    assert row[EV.pause_log] == pytest.approx(first + ch.PAUSE_EMA * (np.log1p(2.0) - first))
