"""The tracker keeps the rows that the simulator would keep, in bounded memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.policies.state import chains as ch
from saga_rl.policies.state.tables import make_tables
from saga_rl.runtime.sessions.hints import Hints, read_hints
from saga_rl.runtime.sessions.tracker import KEEP_S, MAX_NAMES, MAX_TOOLS, MAX_TYPES, NOBODY, Tracker

TOOLS = ("bash", "edit", None)
SESSIONS, AGENTS = 2, 3
OF_THE_TABLE = [k for k in range(ch.COLUMNS) if k not in (ch.FIRST, ch.NEXT)]
"""Columns that do not say where other rows are."""
STEP = st.tuples(st.integers(0, SESSIONS * AGENTS - 1), st.floats(0.01, 20.0), st.integers(1, 900), st.integers(1, 200),
                 st.sampled_from(TOOLS), st.booleans(), st.sampled_from(("finish", "preempt", "abort")))


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, min_size=1, max_size=30))
def test_rows_equal_those_of_the_simulators_calls(history):
    """One history told to the tracker, and told to `policies.state.chains` in the order in which the simulator calls
    it."""
    tracker = Tracker()
    chains, tables = ch.make_chains(SESSIONS * AGENTS), make_tables(1, 16, 8)
    codes: dict[str, int] = {}
    born: dict[int, tuple[int, float, int]] = {}
    """By session: its number, its first request, the chain that it came from."""
    known: set[int] = set()
    now = 50.0
    for c, gap, prompt, output, tool, final, fate in history:
        now += gap
        session, agent = c % SESSIONS, c // SESSIONS
        hints = Hints(session=f"s{session}", agent=agent, next_tool=tool, final=final)
        served = tracker.arrive(hints, now, prompt)
        number, begin, first = born.setdefault(session, (len(born) + 1, now, c))
        if c not in known:
            known.add(c)
            ch.describe(chains, c, first, number, begin, 0, 0, math.nan)
        ch.arrive(chains, tables, 0, c, now, float(prompt))
        now += 0.5
        tracker.schedule(served, now)
        ch.schedule(chains, c, now)
        if fate == "preempt":
            now += 0.25
            tracker.preempt(served, now)
            ch.preempt(chains, c, now)
            now += 0.25
            tracker.schedule(served, now)
            ch.schedule(chains, c, now)
        now += 1.0
        if fate == "abort":
            tracker.abort(served, now)
            ch.abort(chains, c, now)
        else:
            tracker.finish(served, now, output)
            if tool is not None:
                codes.setdefault(tool, len(codes))
            ch.finish(chains, tables, 0, c, now, float(prompt), float(output), codes.get(tool, -1), final)
        for k in known:
            row = tracker.chain_of(f"s{k % SESSIONS}", k // SESSIONS)
            assert np.array_equal(tracker.chains[row, OF_THE_TABLE], chains[k, OF_THE_TABLE], equal_nan=True)
            assert ch.younger(tracker.chains, 0, row, now) == ch.younger(chains, 0, k, now)
        for mine, theirs in zip(tracker.tables, tables, strict=True):
            assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("how", ["tool", "returns", "nothing"])
def test_an_unnamed_prompt_is_over_when_answered_unless_it_goes_on(how):
    tracker = Tracker(expiry_s=300.0)

    def one(now: float, **hints) -> int:
        served = tracker.arrive(Hints(session="chain-1", **hints), now, 100)
        tracker.schedule(served, now)
        tracker.finish(served, now + 1.0, 10)
        return served.chain

    c = one(0.0, unnamed=True)
    assert tracker.chains[c, ch.ENDED] == 2 and tracker.tables.ends.sum() > 0
    assert tracker.expire(1000.0, [c]) == 0
    if how == "tool":
        assert tracker.apply_note({"session": "chain-1", "agent": 0, "next_tool": "bash"})
    elif how == "returns":
        assert one(2.0) == c
    ended = how == "nothing"
    assert tracker.chains[c, ch.ENDED] == (2 if ended else 0)
    assert (tracker.tables.ends.sum() > 0) == ended
    assert tracker.expire(1000.0, [c]) == (0 if ended else 1)


def test_a_sessions_first_chain_is_remembered_as_long_as_any_of_its_others():
    t = Tracker(expiry_s=10.0)

    def one(agent: int, now: float) -> int:
        served = t.arrive(Hints(session="s", agent=agent), now, 100)
        t.schedule(served, now)
        t.finish(served, now, 10)
        return served.chain

    first, other = one(0, 0.0), one(1, 1.0)
    late = 2 * KEEP_S
    assert t.forget(late, [other]) == []
    assert one(1, late) == other and t.chain_of("s") == first
    assert t.forget(2 * late, []) == [other, first] and len(t) == 0


def test_a_request_that_names_no_session_is_a_chain_that_nobody_can_go_on_with():
    tracker = Tracker()
    served = tracker.arrive(Hints(), 0.0, 100)
    tracker.schedule(served, 0.0)
    tracker.finish(served, 1.0, 10)
    assert tracker.chains[served.chain, ch.ENDED] == 2


def test_a_tool_that_is_named_afterwards_leaves_the_return_where_an_end_would_have_been_counted():
    """Whoever is idle is judged by the row of what is known of it then; so both go there. The graph gets the name."""
    t = Tracker()
    for now, tool in ((1.0, None), (5.0, "web"), (9.0, "bash")):
        served = t.arrive(Hints(session="s", tool=tool), now, 10)
        t.schedule(served, now)
        t.finish(served, now + 1.0, 5)
    t.arrive(Hints(session="s", tool="web"), 13.0, 20)
    assert t.tables.returns[0].tolist() == [3] + [0] * 16 + [3]
    web, bash = t.tools.codes["web"] + 1, t.tools.codes["bash"] + 1
    calls = t.tables.calls[0, 0]
    assert calls[web, bash] == calls[bash, web] == 1
    assert calls[:, :-2].sum() == 2
    told = t.arrive(Hints(session="t"), 1.0, 10)
    t.finish(told, 2.0, 5)
    assert t.apply_note({"session": "t", "next_tool": "web"})
    t.arrive(Hints(session="t", tool="web"), 3.0, 20)
    assert t.tables.returns[0, web] == 1


def test_where_clients_announce_ends_a_silent_session_is_waited_for():
    t = Tracker(expiry_s=10.0)

    def one(session: str, now: float, final: bool) -> int:
        served = t.arrive(Hints(session=session, final=final), now, 10)
        t.schedule(served, now)
        t.finish(served, now, 5)
        return served.chain

    for k in range(7):
        one(f"s{k}", 0.0, True)
    silent = one("silent", 1.0, False)
    assert t.expire(100.0, [silent]) == 0
    assert t.expire(1.0 + 12 * 10.0, [silent]) == 0
    assert t.expire(1.5 + 12 * 10.0, [silent]) == 1


def test_a_presumed_end_is_taken_back_from_where_it_was_counted():
    t = Tracker(expiry_s=10.0)
    served = t.arrive(Hints(session="s"), 0.0, 10)
    t.schedule(served, 0.0)
    t.finish(served, 1.0, 5)
    assert t.expire(12.0, [served.chain]) == 1
    assert t.tables.ends.sum() == 2  # its tool's row and the pooled one
    t.arrive(Hints(session="s", tool="bash"), 20.0, 20)
    assert t.tables.ends.sum() == 0
    assert (t.tables.ends >= 0).all()
    assert t.chains[served.chain, ch.ENDED] == 0


def test_requests_of_one_agent_at_once_take_lanes_and_anonymous_ones_stay_apart():
    t = Tracker()
    a, b = t.arrive(Hints(session="s"), 0.0, 1), t.arrive(Hints(session="s"), 0.0, 1)
    assert a.chain != b.chain
    assert t.chains[a.chain, ch.SESSION] == t.chains[b.chain, ch.SESSION]
    x, y = t.arrive(Hints(), 0.0, 1), t.arrive(Hints(), 0.0, 1)
    assert len({a.chain, b.chain, x.chain, y.chain, NOBODY}) == 5
    t.abort(a, 1.0)
    assert t.arrive(Hints(session="s"), 2.0, 1).chain == a.chain


@pytest.mark.parametrize("holding", [True, False])
def test_memory_is_bounded_but_blocks_keep_their_owner(holding):
    t = Tracker(expiry_s=10.0)
    for i in range(2000):
        served = t.arrive(Hints(session=f"s{i}", next_tool=f"t{i}", agent_type=f"a{i}", tenant=f"u{i}"), float(i), 10)
        t.schedule(served, float(i))
        t.finish(served, i + 0.5, 5)
    assert (len(t.tools.codes), len(t.types.codes), len(t.tenants.codes)) == (MAX_TOOLS, MAX_TYPES, MAX_NAMES)
    assert t.tables.calls.shape == (1, MAX_TYPES, MAX_TOOLS + 1, MAX_TOOLS + 3)
    assert len(t) == 2000
    kept = {t.chain_of("s3")} if holding else set()
    size = len(t.chains)
    assert len(t.forget(2000.0 + KEEP_S, kept)) == 2000 - len(kept)
    assert len(t) == len(kept)
    for i in range(1000):
        t.arrive(Hints(session=f"n{i}"), 9000.0, 10)
    assert len(t.chains) == size
    assert not holding or t.chains[t.chain_of("s3"), ch.STEPS] == 1


def test_hints_that_cannot_be_read_are_left_out_and_counted():
    h = read_hints("s", {"saga_agent": "two", "saga_tool": 7, "saga_final": 1.0, "saga_deadline_s": -3, "other": 1})
    assert (h.session, h.agent, h.tool, h.final, len(h.unread)) == ("s", 0, None, True, 3)
    assert math.isnan(h.deadline_s)
    assert read_hints("", None) == read_hints(None, {}) or read_hints("", None).session is None
    assert len(read_hints("x" * 10_000, {"saga_tool": "y" * 10_000}).tool or "") == 200
