"""Several API servers that share a table place as one server does: the same loads, homes and contexts, wherever a
session's requests come in. Stealing sees what all sent, and an engine that ends is out for all of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.policies import features as ft
from saga_rl.policies.registry import make
from saga_rl.runtime.routing import parent, stealing
from saga_rl.runtime.routing.homes import AGE_S, WAYS, find, store
from saga_rl.runtime.routing.router import IN_FLIGHT, LOST, STATE, Router, stable_hash
from saga_rl.runtime.routing.router_table import TableRouter
from saga_rl.runtime.routing.shared_table import STATE as COLUMNS
from saga_rl.runtime.routing.shared_table import STATUS, SharedTable
from saga_rl.runtime.sessions.hints import Hints

ENGINES, SERVERS = 3, 4
ABOUT = (ENGINES, 8, 10_000)
OPTIONS = {"expiry_s": 30.0, "tokens_per_s": 1000.0, "budget_s": 60.0}
SAME = [ft.PL.home, ft.PL.load, ft.PL.in_flight, ft.PL.slots, ft.PL.pinned, ft.PL.queued_s, ft.PL.hit, ft.PL.turn,
        ft.PL.uncached_s, ft.PL.mean_in_flight]
"""Columns that cannot differ from one server's. How many chains count as living on an engine may: each server counts
those that it saw."""


def fronts(spec: str, servers: int = SERVERS, **kw) -> list[TableRouter]:
    table, _ = SharedTable.make(servers, ENGINES)
    return [TableRouter(make("placement", spec), *ABOUT, table=table, server=k, **(OPTIONS | kw))
            for k in range(servers)]


ACT = st.tuples(st.integers(0, 5), st.integers(0, SERVERS - 1), st.integers(1, 3000), st.floats(0.0, 3.0),
                st.lists(st.tuples(st.sampled_from(("first", "finish", "abort", "move")), st.integers(0, 99)),
                         max_size=3))


@settings(max_examples=60, deadline=None)
@given(st.lists(ACT, max_size=30))
def test_every_server_sees_what_one_server_would(acts):
    """A session asks again only when its answer is there, through whichever server."""
    one, several = Router(make("placement", "saga:theta=1"), *ABOUT, **OPTIONS), fronts("saga:theta=1")
    now, open_ = 0.0, {}
    for n, (session, k, tokens, gap, then) in enumerate(acts):
        now += gap
        busy = {s for s, _, _ in open_.values()}
        if session not in busy or session == 0:
            hints = Hints(session=f"s{session}" if session else None)
            expected, found = one.rows(hints, tokens, now), several[k].rows(hints, tokens, now)
            np.testing.assert_allclose(found[:, SAME], expected[:, SAME], rtol=0, atol=1e-9)
            w = several[k].choose(hints, tokens, now)
            one.book(f"r{n}", hints, tokens, w, now)
            several[k].book(f"r{n}", hints, tokens, w, now)
            open_[f"r{n}"] = (session, k, w)
        for what, at in then:
            if not open_:
                break
            name = sorted(open_)[at % len(open_)]
            session, k, w = open_[name]
            if what == "first":
                for r in (one, several[k]):
                    r.output(name, 1, False, now)
            elif what == "move" and not one.flights[name].answered:
                for r in (one, several[k]):
                    r.moved(name, at % ENGINES, now)
            elif what in ("finish", "abort"):
                for r in (one, several[k]):
                    if what == "finish":
                        r.output(name, at % 5, True, now)
                    else:
                        r.gone(name, now)
                del open_[name]
        for r in several:
            np.testing.assert_allclose(r.loads()[:, :3], one.state[:, :3], rtol=0, atol=1e-9)
            for w in range(ENGINES):
                np.testing.assert_equal(r.idle_since(w), one.idle_since(w))
    assert one.migrations == sum(r.migrations for r in several)


def test_columns_are_the_routers():
    assert COLUMNS == STATE


def test_a_request_without_a_session_has_no_home():
    a, b = fronts("sticky", 2)
    for r in (a, b):
        r.book("r", Hints(), 100, 1, 0.0)
        r.output("r", 1, True, 1.0)
        assert r.rows(Hints(), 100, 2.0)[:, ft.PL.home].sum() == 0
    assert not a.table.homes.any()


def test_a_full_table_forgets_who_was_unheard_of_for_longest():
    homes = np.zeros((4 * WAYS, 2), np.int64)
    keys = [stable_hash(f"chain {n}") for n in range(12 * WAYS)]
    for n, key in enumerate(keys):
        store(homes, key, n % 7, n, n)
        assert find(homes, key) == (n % 7, n)
    known = [n for n, key in enumerate(keys) if find(homes, key)[0] >= 0]
    for place in range(4):
        mine = [n for n, key in enumerate(keys) if key % 4 == place]
        assert [n for n in known if n in mine] == mine[-WAYS:]
    assert all(find(homes, keys[n]) == (n % 7, n) for n in known)
    store(homes, keys[known[0]], 6, 1 << 20, 99_999)  # it moves: no second place is taken
    assert find(homes, keys[known[0]]) == (6, 1 << 20) and (homes[:, 0] != 0).sum() == len(homes)


def test_ages_go_round_without_harm():
    homes = np.zeros((WAYS, 2), np.int64)
    for n in range(WAYS + 1):  # the counter passes 4,095 on the way
        store(homes, stable_hash(f"chain {n}"), 1, 0, int((4095 - 3 + n) * AGE_S / AGE_S))
    assert [find(homes, stable_hash(f"chain {n}"))[0] for n in range(WAYS + 1)] == [-1] + [1] * WAYS


def _other_process(file: str, said) -> None:
    table = SharedTable.open(file)
    r = TableRouter(make("placement", "sticky"), *ABOUT, table=table, server=1, **OPTIONS)
    home = r.choose(Hints(session="s"), 500, 1.0)
    r.book("r", Hints(session="s"), 500, home, 1.0)
    said.put((home, table.homes.any(), r.loads()[:, IN_FLIGHT].tolist()))
    said.close()
    said.join_thread()


def test_another_process_sees_it_and_is_seen():
    table, file = SharedTable.make(2, ENGINES)
    mine = TableRouter(make("placement", "sticky"), *ABOUT, table=table, server=0, **OPTIONS)
    mine.book("first", Hints(session="s"), 400, 2, 0.0)
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    child = context.Process(target=_other_process, args=(file, said))
    child.start()
    assert said.get(timeout=300) == (2, True, [0, 0, 2])
    child.join(300)
    assert child.exitcode == 0 and mine.loads()[:, IN_FLIGHT].tolist() == [0, 0, 2]
    with pytest.raises(OSError):
        SharedTable.open("/proc/self/fd/999999")
    handle = os.memfd_create("not ours")
    os.ftruncate(handle, 4096)
    with pytest.raises(ValueError, match="no table of ours"):
        SharedTable.open(f"/proc/self/fd/{handle}")
    os.close(handle)


def test_stealing_counts_what_all_servers_sent():
    a, b = fronts("saga:theta=100,steal=1", 2)
    for n in range(40):
        a.book(f"a{n}", Hints(session=f"a{n}"), 200, 0, 0.0)
    b.book("b", Hints(session="b"), 200, 2, 0.0)
    thief, victim, names = stealing.plan(a, 5.0)
    assert (thief, victim) == (1, 0) and set(names) <= set(a.flights)
    assert stealing.plan(b, 5.0) is None  # nothing of its own waits there
    b.book("c", Hints(session="c"), 200, 1, 5.0)
    assert stealing.plan(a, 9.0) is None  # no engine is idle: b has something at the only one that was
    b.output("c", 1, True, 9.0)
    assert stealing.plan(a, 9.05) is None and stealing.plan(a, 9.2)[0] == 1
    a.moved(names[0], 1, 9.2)
    assert b.rows(Hints(session=names[0]), 200, 9.3)[:, ft.PL.home].tolist() == [0, 1, 0]


def test_an_engine_that_ended_is_out_for_every_server():
    a, b = fronts("sticky", 2)
    for n in range(9):
        w = a.choose(Hints(session=f"s{n}"), 50, 0.0)
        a.book(f"r{n}", Hints(session=f"s{n}"), 50, w, 0.0)
    there = [n for n in range(9) if b.rows(Hints(session=f"s{n}"), 50, 1.0)[1, ft.PL.home]]
    assert there
    a.table.dead[1] = STATUS - signal.SIGKILL
    assert b.loads()[:, LOST].tolist() == [0, 1, 0]
    assert all(r.choose(Hints(session=f"s{n}"), 50, 1.0) != 1 for r in (a, b) for n in range(20))
    assert all(b.rows(Hints(session=f"s{n}"), 50, 1.0)[:, ft.PL.home].sum() == (n not in there) for n in range(9))


def test_a_trace_is_served_as_behind_one_server():
    """vLLM's schedulers in virtual time; every request through another server."""
    from saga_rl.aeg.generators import generate
    from saga_rl.policies.presets import PRESETS, from_specs
    from saga_rl.runtime.emulate.virtual import VirtualConfig, play
    from saga_rl.sim.config import SimConfig

    trace = generate("webarena", 4, sessions=10, max_context=32_768)
    sim = SimConfig(workers=2, kv_tokens=120_000, population=6, end_hint=False)
    policies = from_specs(PRESETS["likely"] | {"placement": "saga:theta=100"})
    one, several = (play(trace, VirtualConfig(sim, servers=n), policies) for n in (1, 3))
    assert np.isfinite(several.steps["done_s"]).all() and set(several.steps["worker"]) == {0, 1}
    for name in ("tct_mean_s", "ttft_mean_s"):
        assert several.figures()[name] <= 1.02 * one.figures()[name]


# ---------------------------------------------------------------- the process that starts the servers
def _watched(processes, table, stopped=lambda: False) -> threading.Thread:
    thread = threading.Thread(target=parent.watch, args=(processes, stopped, table, 0.05))
    thread.start()
    return thread


def _until(true) -> None:
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def processes():
    started = [multiprocessing.get_context("spawn").Process(target=time.sleep, args=(3600,)) for _ in range(ENGINES)]
    for p in started:
        p.start()
    yield started
    for p in started:
        p.kill()
        p.join()


def test_the_parent_notes_who_ends_and_leaves_the_last_to_vllm(processes):
    table, _ = SharedTable.make(2, ENGINES)
    table.watched[0] = 1
    thread = _watched(processes, table)
    os.kill(processes[1].pid, signal.SIGKILL)
    _until(lambda: table.dead.any())
    assert table.dead.tolist() == [0, STATUS - signal.SIGKILL, 0] and thread.is_alive()
    processes[0].terminate()
    _until(lambda: table.dead[0])
    assert thread.is_alive()
    processes[2].kill()
    thread.join(300)
    assert not thread.is_alive() and table.dead[2] == 0


@pytest.mark.parametrize("how", ["stopped", "given up"])
def test_the_parent_watches_no_longer_when_all_is_stopped_or_a_server_gives_up(processes, how):
    table, _ = SharedTable.make(2, ENGINES)
    table.watched[0] = 1
    stop = threading.Event()
    thread = _watched(processes, table, stop.is_set)
    if how == "stopped":
        stop.set()
    else:
        table.watched[0] = 0
    thread.join(300)
    assert not thread.is_alive() and not table.dead.any()
