"""vLLM's real scheduler under our hooks, without a model: victims, order, admission, preemption, conservation."""

from __future__ import annotations

import random

import pytest
from runtime_kit import BLOCK, Clock, drain, make_request, make_scheduler, step, vllm

from saga_rl.errors import UserError
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.config import versions
from saga_rl.runtime.engine.kv.block_queue import PolicyBlockQueue

assert vllm is not None
from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402
from vllm.v1.request import RequestStatus  # noqa: E402

from saga_rl.runtime.engine.scheduler import SagaScheduler, SagaSyncScheduler  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


def make(folder, policy, *, clock=None, cls=SagaSyncScheduler, **kwargs):
    saga = {"policy": policy, **kwargs.pop("saga", {})}
    return make_scheduler(cls, folder, clock=clock or Clock(), saga=saga, **kwargs)


def policies(**decisions):
    return decisions


def ask(s, name, tokens, **kwargs):
    s.add_request(make_request(name, tokens, **kwargs))


def cached_blocks(s, tokens) -> int:
    pool = s.kv_cache_manager.block_pool
    return sum(pool.get_cached_block(h, [0]) is not None for h in make_request("probe", tokens).block_hashes)


def session_tokens(i: int, blocks: int) -> list[int]:
    return [1] * BLOCK + [100 + i] * (blocks - 1) * BLOCK


@pytest.mark.parametrize(("ours", "stock"), [(SagaSyncScheduler, Scheduler), (SagaScheduler, AsyncScheduler)])
def test_with_lru_every_step_is_the_stock_schedulers(folder, ours, stock):
    """Same requests scheduled, same block ids, same preemptions, under pressure, with sessions that come back."""
    pair = [make(folder, "lru", cls=ours, blocks=40), make_scheduler(stock, folder, blocks=40)]
    rng = random.Random(3)
    log: list[list] = [[], []]
    contexts = {i: session_tokens(i, 2) for i in range(6)}
    n = 0
    for _ in range(400):
        events = []
        if rng.random() < 0.25:
            i = rng.randrange(6)
            contexts[i] = contexts[i] + [rng.randrange(5)] * rng.randrange(1, 40)
            if len(contexts[i]) > 20 * BLOCK:
                contexts[i] = session_tokens(i, 2)
            n += 1
            events.append((f"r{n}", contexts[i], f"s{i}", rng.randrange(1, 30)))
        abort = f"r{rng.randrange(1, n + 1)}" if n and rng.random() < 0.02 else None
        for k, s in enumerate(pair):
            for name, tokens, session, output in events:
                ask(s, name, tokens, session=session, output=output)
            if abort in s.requests:
                s.finish_requests(abort, RequestStatus.FINISHED_ABORTED)
            log[k].append((step(s), [b.block_id for b in s.kv_cache_manager.block_pool.free_block_queue
                                     .get_all_free_blocks()],
                           {r: s.kv_cache_manager.get_block_ids(r) for r in s.requests}))
    assert log[0] == log[1]
    queue = pair[0].block_queue
    assert queue.evicted["idle"] + queue.evicted["shared"] > 100
    assert pair[0].metrics.counts["preemptions"] > 0


def test_victims_come_from_the_policy(folder):
    """Youngest-first keeps the older session's cache, although it was used longer ago than the younger one's."""
    left = {}
    for eviction in ("youngest", "lru"):
        clock = Clock()
        s = make(folder, policies(eviction=eviction), clock=clock, blocks=41)
        for i in (0, 1):
            ask(s, f"a{i}", session_tokens(i, 12), session=f"s{i}")
            drain(s, clock)
        ask(s, "new", session_tokens(2, 22), session="s2")
        drain(s, clock)
        left[eviction] = [cached_blocks(s, session_tokens(i, 12)) for i in (0, 1)]
    assert left["youngest"][0] == 12
    assert left["youngest"][1] < 12
    assert left["lru"][0] < 12
    assert left["lru"][1] == 12


def test_an_ended_session_goes_first(folder):
    clock = Clock()
    s = make(folder, policies(eviction="youngest"), clock=clock, blocks=41)
    ask(s, "a0", session_tokens(0, 12), session="s0", final=1)
    drain(s, clock)
    ask(s, "a1", session_tokens(1, 12), session="s1")
    drain(s, clock)
    ask(s, "new", session_tokens(2, 22), session="s2")
    drain(s, clock)
    assert cached_blocks(s, session_tokens(1, 12)) == 12
    assert s.block_queue.evicted["ended"] > 0
    assert s.block_queue.evicted["idle"] == 0


@pytest.mark.parametrize("policy", ["lru", "saga", "saga+"])
def test_blocks_are_conserved_running_ones_untouched_and_everyone_is_served(folder, policy):
    clock = Clock()
    s = make(folder, policy, clock=clock, blocks=48, cls=SagaScheduler)
    pool = s.kv_cache_manager.block_pool
    rng = random.Random(1)
    contexts = {i: session_tokens(i, 2) for i in range(8)}
    busy: dict[str, int] = {}
    sent, done = 0, []
    for _ in range(1500):
        if sent < 120 and rng.random() < 0.3:
            free = [i for i in contexts if i not in busy.values()]
            if free:
                i = rng.choice(free)
                sent += 1
                final = len(contexts[i]) > 12 * BLOCK
                ask(s, f"r{sent}", contexts[i], session=f"s{i}.{final}", output=rng.randrange(1, 20), final=int(final),
                    next_tool=rng.choice(["bash", "web"]), tenant=f"t{i % 3}")
                busy[f"r{sent}"] = i
                contexts[i] = session_tokens(i + 8 * sent, 2) if final else contexts[i] + [rng.randrange(9)] * 30
        ended = step(s)
        done += ended
        for name in ended:
            del busy[name]
        free_ids = [b.block_id for b in pool.free_block_queue.get_all_free_blocks()]
        held = {b for r in s.running for b in s.kv_cache_manager.get_block_ids(r.request_id)[0]}
        assert len(free_ids) == len(set(free_ids)) == pool.get_num_free_blocks()
        assert held.isdisjoint(free_ids)
        assert held | set(free_ids) == set(range(1, 48))
        assert all(pool.blocks[b].ref_cnt > 0 for b in held)
        clock.now += 0.05
    done += drain(s, clock)
    assert sorted(done) == sorted(f"r{k}" for k in range(1, sent + 1))
    assert sum(s.block_queue.evicted.values()) > 0
    assert not s.served
    live = s.tracker.chains
    assert live[:, ch.WAITING].sum() == live[:, ch.RUNNING].sum() == 0


def test_the_older_sessions_request_overtakes(folder):
    clock = Clock()
    s = make(folder, policies(ordering="session-fcfs"), clock=clock, seqs=1)
    ask(s, "old", session_tokens(0, 2), session="s0")
    drain(s, clock)
    ask(s, "running", session_tokens(3, 2), session="s3", output=3)
    step(s)
    clock.now += 1
    ask(s, "young", session_tokens(1, 2), session="s1")
    clock.now += 1
    ask(s, "again", session_tokens(0, 4), session="s0")
    assert [r.request_id for r in s.waiting] == ["again", "young"]
    assert drain(s, clock) == ["running", "again", "young"]


def test_the_tenant_with_the_highest_share_goes_first_and_shares_are_recomputed(folder):
    clock = Clock()
    s = make(folder, policies(ordering="afs"), clock=clock, seqs=1)
    ask(s, "running", session_tokens(0, 2), session="s0", output=8)
    step(s)
    ask(s, "calm", session_tokens(1, 2), session="s1", tenant="calm", deadline_s=1000)
    ask(s, "urgent", session_tokens(2, 2), session="s2", tenant="urgent", deadline_s=5)
    clock.now += 1
    step(s)
    assert [r.request_id for r in s.waiting] == ["urgent", "calm"]
    drain(s, clock)


def test_admission_holds_for_older_sessions_lets_go_and_never_stops_an_idle_engine(folder):
    clock = Clock()
    s = make(folder, policies(admission="reserve-older", eviction="youngest"), clock=clock, blocks=65,
             saga={"expiry_s": 60.0})
    ask(s, "old", session_tokens(0, 30), session="s0")
    drain(s, clock)
    ask(s, "running", session_tokens(1, 4), session="s1", output=40)
    step(s)
    ask(s, "big", session_tokens(2, 28), session="s2")
    for _ in range(5):
        step(s)
        clock.now += 0.05
    assert [r.request_id for r in s.waiting] == ["big"]
    assert s.metrics.counts["admission held"] >= 5
    assert cached_blocks(s, session_tokens(0, 30)) == 30
    clock.now += 100.0  # the old session expires: nothing is reserved for it any more
    step(s)
    assert not s.waiting
    drain(s, clock)
    ask(s, "old2", session_tokens(3, 30), session="s3")
    drain(s, clock)
    ask(s, "alone", session_tokens(4, 50), session="s4")
    held = s.metrics.counts["admission held"]
    step(s)
    assert not s.waiting
    assert s.metrics.counts["admission held"] == held


@pytest.mark.parametrize("named", [True, False])
def test_nothing_is_reserved_for_prompts_that_nobody_named(folder, named):
    """Traffic without agents: single prompts, one after the other, more than memory holds."""
    clock = Clock()
    s = make(folder, policies(admission="reserve-older", eviction="youngest"), clock=clock, blocks=65,
             saga={"expiry_s": 60.0})
    for k in range(12):
        for i in range(2):
            ask(s, f"{k}/{i}", session_tokens(2 * k + i, 14), session=f"s{k}/{i}" if named else None)
        drain(s, clock)
        if k == 3:  # how long answers are is known from now on
            s.metrics.counts["admission held"] = 0
    assert (s.metrics.counts["admission held"] > 0) == named


def test_a_preempted_request_comes_back_and_its_row_says_so(folder):
    clock = Clock()
    s = make(folder, policies(ordering="session-fcfs"), clock=clock, blocks=17)
    ask(s, "a", session_tokens(0, 7), session="s0", output=40)
    ask(s, "b", session_tokens(1, 7), session="s1", output=40)
    seen = False
    for _ in range(60):
        step(s)
        clock.now += 0.05
        c = s.tracker.chain_of("s1")
        if s.metrics.counts["preemptions"] and not seen:
            seen = True
            assert s.tracker.chains[c, ch.WAITING] == 1
            assert s.tracker.chains[c, ch.ATTAINED] > 0
            assert [r.request_id for r in s.waiting] == ["b"]
    assert seen
    drain(s, clock)
    assert s.tracker.chains[s.tracker.chain_of("s1"), ch.STEPS] == 1


def test_aborts_leave_nothing_behind(folder):
    s = make(folder, "saga+", blocks=40)
    for i in range(4):
        ask(s, f"r{i}", session_tokens(i, 12), session=f"s{i}", output=10)
    step(s)
    for i in range(4):
        s.finish_requests(f"r{i}", RequestStatus.FINISHED_ABORTED)
    assert not s.has_unfinished_requests()
    assert not s.served
    assert s.kv_cache_manager.block_pool.get_num_free_blocks() == 39
    assert (s.tracker.chains[:, ch.STEPS] == 0).all()


def test_chains_without_blocks_are_forgotten(folder):
    clock = Clock()
    s = make(folder, "saga+", clock=clock, blocks=40)
    for i in range(30):
        ask(s, f"r{i}", session_tokens(i, 3))
        drain(s, clock)
    assert len(s.tracker) == 30
    clock.now += 4000.0
    s.schedule()
    held = s.block_queue.runs.owners()
    assert 0 < len(held) == len(s.tracker) < 30


@pytest.mark.parametrize(("saga", "message"), [
    ({"policy": "lur"}, "no policy named 'lur'; choose one of: lru"),
    ({"policy": {"evict": "lru"}}, "no decision named 'evict'; choose one of: eviction"),
    ({"polcy": "lru"}, "named 'polcy'; choose one of: policy"),
    ({"policy": {"eviction": "belady"}}, "needs to know the future"),
    ({"expiry_s": -1}, "expiry_s: is -1"),
])
def test_a_wrong_configuration_is_told_in_one_line(folder, saga, message):
    with pytest.raises(UserError) as e:
        make_scheduler(SagaSyncScheduler, folder, saga=saga)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_an_untested_version_and_a_changed_method_are_refused(folder, monkeypatch):
    monkeypatch.delenv(versions.ALLOW, raising=False)  # `make vllm` sets it
    monkeypatch.setattr(versions, "installed", lambda: ("vllm", "0.99.1"))
    with pytest.raises(UserError, match=r"vllm 0.99.1: is outside the tested range 0.28 - 0.33; .*--allow-untested"):
        make_scheduler(SagaSyncScheduler, folder)
    assert versions.require_tested(allow_untested=True) == "0.99.1"
    monkeypatch.setattr(versions, "installed", lambda: ("vllm", "0.30.0"))
    monkeypatch.delattr(PolicyBlockQueue, "prepend_n")
    with pytest.raises(UserError, match=r"PolicyBlockQueue.prepend_n: does not exist"):
        make_scheduler(SagaSyncScheduler, folder)


def lanes(s, session: str) -> list[float]:
    """Whether each lane of the session's first agent has ended (0: it lives)."""
    rows = (s.tracker.chain_of(session, 0, lane) for lane in range(9))
    return [float(s.tracker.chains[c, ch.ENDED]) for c in rows if c >= 0]


@pytest.mark.parametrize("earlier", ["two answers at once", "a retry, both answered", "a retry, the first given up",
                                     "a retry that outlives the last"])
def test_the_end_of_an_agent_ends_all_its_lanes(folder, earlier):
    """Or what a retry or n > 1 left behind would stay reserved until it expires."""
    clock = Clock()
    s = make(folder, "likely", clock=clock)
    ask(s, "a", session_tokens(0, 5), session="s", output=4 if "outlives" not in earlier else 40)
    ask(s, "b", session_tokens(0, 5), session="s", output=4)
    ask(s, "other agent", session_tokens(1, 5), session="s", output=4, agent=1)
    step(s)
    if "given up" in earlier:
        s.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    if "outlives" not in earlier:
        drain(s, clock)
    ask(s, "last", session_tokens(0, 7), session="s", final=1)
    drain(s, clock)
    assert len(lanes(s, "s")) == (3 if "outlives" in earlier else 2)
    assert all(lanes(s, "s")) and not s.tracker.chains[s.tracker.chain_of("s", 1), ch.ENDED]
    ask(s, "begins anew", session_tokens(0, 7), session="s")
    drain(s, clock)
    assert not all(lanes(s, "s"))


def test_a_note_of_the_end_ends_all_lanes_too(folder):
    clock = Clock()
    s = make(folder, "likely", clock=clock)
    for name in ("a", "b"):
        ask(s, name, session_tokens(0, 5), session="s")
    drain(s, clock)
    assert s.apply_notes([{"session": "s", "agent": 0, "final": True}]) == 1
    assert lanes(s, "s") == [1.0, 1.0]
