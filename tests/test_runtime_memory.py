"""What a server meets in a long life: sessions that never return or return late, clocks that jump, floods of names and
of requests, tight memory. Every scheduler here is checked by `runtime.engine.invariants` as it runs."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from runtime_kit import BLOCK, Clock, drain, make_request, make_scheduler, step, vllm

from saga_rl.policies.presets import preset
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.sessions.hints import Hints
from saga_rl.runtime.sessions.tracker import KEEP_S, MAX_NAMES, MAX_TOOLS, Tracker

assert vllm is not None
from saga_rl.runtime.engine.invariants import broken  # noqa: E402
from saga_rl.runtime.engine.scheduler import SagaScheduler, SagaSyncScheduler  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


def make(folder, policy="saga+", cls=SagaSyncScheduler, **kwargs):
    clock = Clock()
    saga = {"policy": policy, "budget_s": 60.0, **kwargs.pop("saga", {})}  # a busy machine must not change decisions
    return make_scheduler(cls, folder, clock=clock, saga=saga, **kwargs), clock


def ask(s, name, tokens, **kwargs):
    s.add_request(make_request(name, tokens, **kwargs))


def cached(s, tokens) -> int:
    pool = s.kv_cache_manager.block_pool
    return sum(pool.get_cached_block(h, [0]) is not None for h in make_request("probe", tokens).block_hashes)


def test_ten_thousand_sessions_that_never_return_leave_bounded_memory_and_all_blocks(folder, monkeypatch):
    monkeypatch.setenv("SAGA_RL_CHECK", "off")  # once a wave is enough
    s, clock = make(folder, cls=SagaScheduler, blocks=65, seqs=64, batched=4096, saga={"expiry_s": 60.0})
    rows = []
    for wave in range(20):
        for i in range(500):
            ask(s, f"r{wave}.{i}", [wave * 500 + i] * BLOCK, session=f"s{wave}.{i}", tenant=f"t{i % 7}", output=1)
        drain(s)
        clock.now += KEEP_S / 2
        step(s)
        for _ in range(3):  # rows are reused a thousand at a time
            clock.now += 0.2
            s.schedule()
        rows.append(len(s.tracker.chains))
        assert broken(s) == []
    assert max(rows) <= 4096 and rows[-1] == rows[5]  # two and a half waves are remembered, whatever came before
    assert len(s.tracker) <= 2000 and len(s.tracker._sessions) <= 2000
    assert s.snapshot()["sessions/presumed ended"] >= 8000
    assert len(s.block_queue.runs.table) <= 256 and not s.served and not s.service.flying
    assert s.kv_cache_manager.block_pool.get_num_free_blocks() == 64


def test_a_tool_that_returns_after_an_hour_finds_its_session_and_takes_the_end_back(folder):
    s, clock = make(folder, blocks=65)
    ask(s, "a", [5] * 4 * BLOCK, session="slow", next_tool="build")
    drain(s, clock)
    c = s.tracker.chain_of("slow")
    clock.now += 3599.0
    s.schedule()
    assert s.tracker.chains[c, ch.ENDED] == 2
    ask(s, "b", [5] * 6 * BLOCK, session="slow")
    drain(s, clock)
    assert s.tracker.chain_of("slow") == c and s.tracker.chains[c, ch.STEPS] == 2
    assert s.tracker.chains[c, ch.ENDED] == 0 and s.tracker.tables.ends.sum() == 0
    assert s.tracker.tables.returns[0, s.tracker.tools.codes["build"] + 1] == 1


@pytest.mark.parametrize("policy", ["saga", "saga+"])
def test_clocks_that_jump_stop_nothing(folder, policy):
    s, clock = make(folder, policy, cls=SagaScheduler, blocks=48, seqs=4,
                    saga={"service_gap_tokens": 500.0, "afs_preempt_s": 0.3})
    rng, done, seen = random.Random(2), [], []
    for n in range(150):
        if n % 3 == 0:
            ask(s, f"r{n}", [n % 5] * rng.randrange(1, 8 * BLOCK), session=f"s{n % 5}", output=6, tenant=f"t{n % 2}")
        done += step(s)
        seen.append(s.now)
        clock.now += rng.choice((0.05, 0.05, -3600.0, 3600.0, 0.0, 1e6, -1e6))
    done += drain(s, clock)
    assert len(done) == 50 and broken(s) == []
    assert seen == sorted(seen)  # time never runs backwards for a policy
    assert np.isfinite(s.service.counters).all()


def test_a_flood_of_names_and_of_hints_is_bounded(folder):
    s, clock = make(folder, blocks=65, seqs=64, batched=4096)
    for i in range(700):
        ask(s, f"r{i}", [i] * 8, session="x" * 10_000 + str(i), tenant=f"{i}" * 300, next_tool=f"tool{i}", output=1,
            agent_type=f"type{i}", agent=-5 if i % 2 else 3, deadline_s="soon")
        if i % 50 == 0:
            drain(s, clock)
    drain(s, clock)
    t = s.tracker
    assert (len(t.tenants.codes), len(t.tools.codes)) == (MAX_NAMES, MAX_TOOLS)
    assert max(map(len, (*t.tenants.codes, *t.tools.codes))) <= 200
    assert s.metrics.counts["hints unread"] == 700 + 350
    s.apply_notes({"session": f"s{i}", "agent": 0, "next_tool": "y" * 10_000} for i in range(1000))
    assert max(map(len, t.tools.codes)) <= 200
    assert len(s.snapshot()) < 10 * MAX_NAMES


def test_a_session_costs_less_than_a_kibibyte():
    import tracemalloc

    t = Tracker()
    for i in range(1000):
        t.abort(t.arrive(Hints(session=f"session-{i:032x}"), 0.0, 10), 0.0)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(1000, 17_000):  # the rows are full at 16,384: the worst moment is right after they doubled
        t.abort(t.arrive(Hints(session=f"session-{i:032x}"), 0.0, 10), 0.0)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown / 16_000 < 1024


# ---------------------------------------------------------------------- who waits, and for how long
def test_kv_of_a_session_whose_request_waits_is_kept_while_others_are_idle(folder):
    """40 blocks: three idle sessions of 10; the request of one waits for a place while another takes blocks."""
    for policy in ("saga", "saga+", "checkpoints/joint"):
        s, clock = make(folder, "lru", blocks=41, seqs=1)
        for i in range(3):
            ask(s, f"i{i}", [60 + i] * 10 * BLOCK, session=f"s{i}")
            drain(s, clock)
            clock.now += 1.0
        s.swap(preset(policy), policy)
        ask(s, "taker", [9] * 10 * BLOCK, session="taker", output=9 * BLOCK)  # it grows into the idle sessions' blocks
        step(s)
        ask(s, "back", [60] * 10 * BLOCK + [1] * 5, session="s0")
        for _ in range(8 * BLOCK):
            step(s)
            clock.now += 0.01
        assert [r.request_id for r in s.waiting] == ["back"], policy
        assert s.block_queue.taken >= 6 and s.block_queue.evicted["waiting"] == 0, policy
        assert cached(s, [60] * 10 * BLOCK) == 10, policy


@pytest.mark.parametrize(("starve_s", "place"), [(5.0, "early"), (1e6, "last")])
def test_a_new_session_is_not_passed_over_for_ever(folder, starve_s, place):
    """One at a time, session-fcfs: an older session always has a request ready, so it overtakes the new one."""
    s, clock = make(folder, {"ordering": "session-fcfs"}, seqs=1, saga={"starve_s": starve_s})
    ask(s, "first", [1] * 20, session="old", output=1)
    drain(s, clock)
    for i in range(3):
        ask(s, f"old{i}", [1] * 20, session="old", output=4)
    clock.now += 0.1
    ask(s, "new", [2] * 20, session="new", output=4)
    done: list[str] = []
    for n in range(400):
        ended = step(s)
        done += ended
        for name in ended:
            if name.startswith("old"):
                ask(s, f"old{n}+", [1] * 20, session="old", output=4)
        clock.now += 0.1
    assert ("new" in done) == (place == "early")
    if place == "early":
        assert 5.0 <= 0.4 * done.index("new") <= 7.0


def test_a_starving_request_that_admission_holds_starts_when_it_fits(folder):
    starts = {}
    for starve_s in (5.0, 1e6):
        s, clock = make(folder, {"admission": "reserve-older", "eviction": "youngest"}, blocks=65,
                        saga={"starve_s": starve_s, "expiry_s": 1e6})
        ask(s, "old", [1] * 30 * BLOCK, session="s0")
        drain(s, clock)
        ask(s, "running", [2] * 4 * BLOCK, session="s1", output=250)
        step(s)
        ask(s, "big", [3] * 28 * BLOCK, session="s2", output=4)
        asked, starts[starve_s] = clock.now, math.inf
        while "running" in s.requests:
            step(s)
            clock.now += 0.05
            if s.requests.get("big") in s.running:
                starts[starve_s] = min(starts[starve_s], clock.now - asked)
        assert s.metrics.counts["let in starving"] == (starve_s == 5.0)
    assert 5.0 < starts[5.0] < 5.3 < starts[1e6]


def test_the_policys_last_is_preempted_if_the_configuration_says_so(folder):
    """Two requests grow until blocks run out. The older session's was scheduled last: vLLM would preempt that."""
    victims = {}
    for by_policy in (False, True):
        s, clock = make(folder, {"ordering": "session-fcfs"}, blocks=17, saga={"preempt_by_policy": by_policy})
        ask(s, "begin", [5] * 4, session="old", output=1)
        drain(s, clock)
        clock.now += 1.0
        ask(s, "young", [6] * 6 * BLOCK, session="young", output=60)
        step(s)
        clock.now += 1.0
        ask(s, "old", [7] * 6 * BLOCK, session="old", output=60)
        for _ in range(60):
            step(s)
            clock.now += 0.05
            if s.metrics.counts["preemptions"]:
                break
        victims[by_policy] = [r.request_id for r in s.waiting]
        assert sorted(drain(s, clock)) == ["old", "young"]
    assert victims == {False: ["old"], True: ["young"]}


@pytest.mark.parametrize("ordering", ["afs", "session-fcfs", "vtc"])
def test_preemption_by_policy_under_pressure_serves_everyone(folder, ordering):
    s, clock = make(folder, {"ordering": ordering, "eviction": "youngest"}, cls=SagaScheduler, blocks=32, seqs=6,
                    saga={"preempt_by_policy": True})
    rng, done = random.Random(4), []
    for n in range(300):
        if n % 5 == 0:
            ask(s, f"r{n}", [n] * rng.randrange(1, 6 * BLOCK), session=f"s{n % 9}", output=rng.randrange(1, 60))
        done += step(s)
        clock.now += 0.05
    done += drain(s, clock)
    assert len(done) == 60 and broken(s) == [] and s.metrics.counts["preemptions"] > 0


def test_what_a_tenant_floods_leaves_another_its_floor(folder):
    s, clock = make(folder, "saga+", blocks=65, saga={"kv_floors": {"calm": 0.25}})
    ask(s, "calm", [4] * 16 * BLOCK, session="calm", tenant="calm")
    drain(s, clock)
    for n in range(40):
        for k in range(3):
            ask(s, f"f{n}.{k}", [100 + 3 * n + k] * 12 * BLOCK, session=f"f{n}.{k}", tenant="flood", output=3)
        drain(s, clock)
    assert cached(s, [4] * 16 * BLOCK) == 16 and s.block_queue.floors.breaks == 0
    assert sum(s.block_queue.evicted.values()) > 500
