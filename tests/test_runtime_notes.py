"""What is told to a scheduler that is serving, and asked of it: notes after answers, other policies, its state."""

from __future__ import annotations

import random

import pytest
from runtime_kit import BLOCK, Clock, drain, make_request, make_scheduler, step, vllm

from saga_rl.errors import UserError
from saga_rl.policies.base import PolicySet
from saga_rl.policies.presets import from_specs, preset
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.sessions.completion import BUCKETS_S, Completion
from saga_rl.runtime.sessions.hints import Hints
from saga_rl.runtime.sessions.tracker import Tracker

assert vllm is not None
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402

from saga_rl.runtime.engine.queueing.request_queue import PolicyRequestQueue  # noqa: E402
from saga_rl.runtime.engine.scheduler import SagaSyncScheduler  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


def make(folder, policy="saga+", **kwargs):
    clock = Clock()
    saga = {"policy": policy, **kwargs.pop("saga", {})}
    return make_scheduler(SagaSyncScheduler, folder, clock=clock, saga=saga, **kwargs), clock


def ask(s, name, tokens, **kwargs):
    s.add_request(make_request(name, tokens, **kwargs))


def served(t: Tracker, now: float, **hints):
    request = t.arrive(Hints(**hints), now, 10)
    t.schedule(request, now)
    t.finish(request, now + 1.0, 5)
    return request


# ---------------------------------------------------------------------- told
def test_a_note_sets_the_tool_and_the_next_step_is_its_return():
    t = Tracker()
    c = served(t, 0.0, session="s").chain
    assert t.apply_note({"session": "s", "agent": 0, "next_tool": "bash", "final": False})
    assert t.chains[c, ch.TOOL] == t.tools.codes["bash"]
    t.arrive(Hints(session="s"), 5.0, 20)
    assert t.tables.returns[0, t.tools.codes["bash"] + 1] == 1


def test_a_note_that_comes_after_the_next_request_is_ignored():
    t = Tracker()
    c = served(t, 0.0, session="s").chain
    again = t.arrive(Hints(session="s"), 2.0, 20)
    assert not t.apply_note({"session": "s", "agent": 0, "next_tool": "bash", "final": True})
    assert t.chains[c, ch.TOOL] == -1 and t.chains[c, ch.ENDED] == 0
    t.schedule(again, 3.0)
    assert not t.apply_note({"session": "s", "agent": 0, "final": True})


def test_a_final_note_ends_the_chain_once_as_the_hint_would():
    told, hinted = Tracker(), Tracker()
    c = served(told, 0.0, session="s").chain
    assert told.apply_note({"session": "s", "agent": 0, "next_tool": None, "final": True})
    assert not told.apply_note({"session": "s", "agent": 0, "next_tool": None, "final": True})
    served(hinted, 0.0, session="s", final=True)
    assert (told.chains == hinted.chains)[c, :ch.DEADLINE].all() and told.chains[c, ch.ENDED] == 1
    for mine, theirs in zip(told.tables, hinted.tables, strict=True):
        assert (mine == theirs).all()
    assert told.completion.as_dict() == hinted.completion.as_dict()
    assert told.completion.as_dict()["sessions/finished"] == 1


def test_a_final_note_for_the_whole_session_ends_every_idle_agent():
    t = Tracker()
    chains = [served(t, float(i), session="s", agent=i).chain for i in range(3)]
    busy = t.arrive(Hints(session="s", agent=2), 9.0, 10).chain
    other = served(t, 3.0, session="other").chain
    assert t.apply_note({"session": "s", "agent": -1, "final": True})
    assert [t.chains[c, ch.ENDED] for c in chains] == [1, 1, 0]
    assert busy == chains[2] and t.chains[other, ch.ENDED] == 0


@pytest.mark.parametrize("note", [
    {}, {"session": "unknown", "agent": 0, "next_tool": "x"}, {"session": 7}, {"session": "s", "agent": "0"},
    {"session": "s", "agent": 0, "next_tool": 5}, {"session": "s", "agent": 4, "final": True},
    {"session": "s", "agent": 0, "next_tool": None, "final": "yes"}])
def test_notes_that_make_no_sense_change_nothing(note):
    t = Tracker()
    c = served(t, 0.0, session="s").chain
    before = t.chains[c].copy()
    assert not t.apply_note(note)
    assert (t.chains[c] == before)[:ch.DEADLINE].all() and t.chains[c, ch.ENDED] == 0


def test_through_the_scheduler_notes_are_counted_and_what_ended_goes_first(folder):
    s, clock = make(folder, {"eviction": "youngest"}, blocks=41)
    for i in (0, 1):
        ask(s, f"a{i}", [100 + i] * 12 * BLOCK, session=f"s{i}")
        drain(s, clock)
    notes = [{"session": "s0", "agent": 0, "final": True}, {"session": "nobody", "agent": 0, "final": True}, "junk",
             None, {"session": "s1", "agent": 10**400}]
    assert s.apply_notes(notes) == 1
    assert s.metrics.counts["notes unread"] == 2 and s.metrics.counts["notes"] == 1
    ask(s, "new", [102] * 22 * BLOCK, session="s2")
    drain(s, clock)
    assert s.block_queue.evicted["ended"] > 0 and s.block_queue.evicted["idle"] == 0


# ---------------------------------------------------------------------- snapshot
def test_the_snapshot_counts_blocks_tenants_and_sessions(folder):
    s, clock = make(folder, blocks=101)
    ask(s, "x", [9] * 10 * BLOCK, session="x", tenant="a", final=1, output=16)  # the 11th block is not full: not cached
    drain(s, clock)
    ask(s, "y", [8] * 4 * BLOCK, session="y", tenant="b", output=1)
    drain(s, clock)
    ask(s, "z", [7] * 5 * BLOCK, session="z", tenant="b", output=40)
    step(s)
    out = s.snapshot()
    assert out["kv/blocks"] == 100
    assert out["kv/running"] == 5 and out["kv/ended"] == 10 and out["kv/live"] == 4
    assert out["kv/empty"] == 81 and out["kv/waiting"] == 0
    assert out["tenant/a/kv"] == 10 and out["tenant/b/kv"] == 9
    assert out["tenant/a/service"] == 10 * BLOCK + 2 * 16
    assert out["tenant/a/afs"] == 0.0 < out["tenant/b/afs"]
    assert out["sessions/finished"] == 1 and out["tct/count"] == 1
    assert out["tct/sum_s"] == pytest.approx(0.05 * 15)
    assert out["tct/le/1"] == out["tct/le/inf"] == 1
    assert out["requests/running"] == 1 and out["policy"] == "saga+" and out["policies/eviction"] == "youngest"


def test_tokens_computed_again_are_counted_after_eviction_and_preemption(folder):
    s, clock = make(folder, "lru", blocks=21)
    ask(s, "a", [1] * 12 * BLOCK, session="a", output=1)
    drain(s, clock)
    assert s.metrics.counts["recomputed tokens"] == 0
    ask(s, "a2", [1] * 12 * BLOCK + [2] * 8, session="a", output=1)
    drain(s, clock)
    assert s.metrics.counts["recomputed tokens"] == 0  # all of it was cached
    ask(s, "b", [3] * 16 * BLOCK, session="b", output=1)  # 8 blocks are empty: it takes 8 of a's tail
    drain(s, clock)
    left = 20 - 16
    ask(s, "a3", [1] * 12 * BLOCK + [2] * 24, session="a", output=1)
    drain(s, clock)
    assert s.metrics.counts["recomputed tokens"] == (12 - left) * BLOCK


def test_completion_fills_the_bucket_that_holds_the_time():
    c = Completion()
    for seconds in (0.5, 1.0, 1.5, 20_000.0):
        c.ended(seconds, False)
    c.ended(60.0, True)
    out = c.as_dict()
    assert (out["tct/le/1"], out["tct/le/2"], out["tct/le/60"]) == (2, 3, 4)
    assert out[f"tct/le/{BUCKETS_S[-1]}"] == 4 and out["tct/le/inf"] == out["tct/count"] == 5
    assert out["sessions/finished"] == 4 and out["sessions/presumed ended"] == 1


# ---------------------------------------------------------------------- swap
def test_a_swap_loses_nothing_and_the_next_victim_is_the_new_policys(folder):
    s, clock = make(folder, "lru", blocks=41)
    for i in (0, 1):
        ask(s, f"a{i}", [100 + i] * 12 * BLOCK, session=f"s{i}")
        drain(s, clock)
    s.block_queue.victims.guard.fallbacks["over budget"] = 3
    s.swap(preset("saga+"), "saga+")
    assert s.snapshot()["fallback/eviction/over budget"] == 3 and s.shown == "saga+"
    ask(s, "new", [102] * 22 * BLOCK, session="s2")
    drain(s, clock)
    probe = make_request("probe", [100] * 12 * BLOCK)
    pool = s.kv_cache_manager.block_pool
    assert all(pool.get_cached_block(h, [0]) for h in probe.block_hashes)  # lru would have taken the oldest's


def test_waiting_requests_keep_waiting_through_swaps_and_take_the_new_order(folder):
    s, clock = make(folder, "lru", seqs=1)
    ask(s, "old", [5] * 20, session="old", output=1)
    drain(s, clock)
    ask(s, "running", [6] * 20, session="r", output=30)
    step(s)
    clock.now += 1
    for name, session in (("young", "y"), ("again", "old")):
        ask(s, name, [7] * 20, session=session)
        clock.now += 1
    assert [r.request_id for r in s.waiting] == ["young", "again"]
    s.swap(preset("saga+"), "saga+")
    assert isinstance(s.waiting, PolicyRequestQueue)
    assert [r.request_id for r in s.waiting] == ["again", "young"]
    s.swap(preset("lru"), "stock")
    assert not isinstance(s.waiting, PolicyRequestQueue)
    assert [r.request_id for r in s.waiting] == ["young", "again"]
    assert drain(s, clock) == ["running", "young", "again"]


def test_swapping_at_random_under_load_everyone_is_served_and_blocks_are_conserved(folder):
    s, clock = make(folder, "lru", blocks=48)
    rng = random.Random(5)
    sets: list[PolicySet] = [preset("lru"), preset("saga"), preset("saga+"), from_specs(
        {"eviction": "wa-lru", "placement": "sticky", "ordering": "vtc",
         "admission": "reserve-older"})]
    done: list[str] = []
    for n in range(200):
        if n % 4 == 0:
            ask(s, f"r{n}", [rng.randrange(6)] * rng.randrange(1, 12 * BLOCK), session=f"s{n % 7}",
                output=rng.randrange(1, 12), tenant=f"t{n % 3}")
        if n % 9 == 0:
            s.swap(rng.choice(sets), "x")
        done += step(s)
        clock.now += 0.05
    done += drain(s, clock)
    assert len(done) == 50
    pool = s.kv_cache_manager.block_pool
    ids = [b.block_id for b in pool.free_block_queue.get_all_free_blocks()]
    assert sorted(ids) == list(range(1, 48)) and pool.get_num_free_blocks() == 47


def test_policies_that_cannot_serve_are_refused_and_nothing_changes(folder):
    s, _ = make(folder, "saga+")
    before = s.policies, s.block_queue.victims, s.waiting, s.admission
    with pytest.raises(UserError, match="needs to know the future"):
        s.swap(from_specs({"eviction": "belady", "placement": "sticky", "ordering": "fcfs", "admission": "none"}), "x")
    assert before == (s.policies, s.block_queue.victims, s.waiting, s.admission)


def test_after_a_swap_to_lru_every_step_is_the_stock_schedulers(folder):
    """The kill switch: the same requests, blocks and preemptions as a stock scheduler that served the same alone."""
    ours, _ = make(folder, "saga+", blocks=40)
    stock = make_scheduler(Scheduler, folder, blocks=40)
    ours.swap(preset("lru"), "stock")
    rng = random.Random(11)
    for n in range(150):
        if rng.random() < 0.3:
            tokens, output = [rng.randrange(4)] * rng.randrange(1, 16 * BLOCK), rng.randrange(1, 20)
            for s in (ours, stock):
                ask(s, f"r{n}", tokens, output=output)
        a, b = step(ours), step(stock)
        assert a == b
        assert {r: ours.kv_cache_manager.get_block_ids(r) for r in ours.requests} == {
            r: stock.kv_cache_manager.get_block_ids(r) for r in stock.requests}
