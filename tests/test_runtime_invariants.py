"""The invariant check finds what is broken, and changes nothing; hooks and policies that fail do not stop serving."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np
import pytest
from numba import njit, objmode
from runtime_kit import BLOCK, Clock, drain, make_request, make_scheduler, step, vllm

from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.config.safe import PAUSE_S, SafeGuard
from saga_rl.runtime.engine.kv.runs import BLOCKS

assert vllm is not None
from vllm.v1.request import RequestStatus  # noqa: E402

from saga_rl.runtime.engine.invariants import InvariantError, broken  # noqa: E402
from saga_rl.runtime.engine.scheduler import SagaScheduler, SagaSyncScheduler  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


def busy(folder, policy="saga+", **kwargs):
    """Idle sessions, two requests that run and one that waits."""
    clock = Clock()
    saga = {"policy": policy, **kwargs.pop("saga", {})}
    s = make_scheduler(SagaSyncScheduler, folder, clock=clock, seqs=2, blocks=81, saga=saga, **kwargs)
    for i in range(4):
        s.add_request(make_request(f"i{i}", [1] * BLOCK + [50 + i] * 3 * BLOCK, session=f"s{i}", tenant=f"t{i % 2}"))
        drain(s, clock)
    for i in range(3):
        s.add_request(make_request(f"r{i}", [70 + i] * 2 * BLOCK, output=20, session=f"r{i}", tenant="t0"))
    step(s)
    return s, clock


def first_run(s):
    return s.block_queue.runs.all()[0]


def lose(run):
    run.popleft_n(1)


def other_list(run, queue):
    queue.empty.append_n(run.popleft_n(1))


BREAKS = {
    "stands in 0 lists": lambda s: lose(first_run(s)),
    "counted": lambda s: other_list(first_run(s), s.block_queue),
    "references and stands in": lambda s: setattr(
        s.kv_cache_manager.get_blocks("r0").blocks[0][0], "ref_cnt", 2),
    "by chain": lambda s: s.block_queue.runs.owned.__setitem__(5, 3.0),
    "by tenant": lambda s: s.block_queue.runs.idle.update({0: 1}),
    "the row of run": lambda s: s.block_queue.runs.table.__setitem__((first_run(s).slot, 0), 99),
    "is used and free": lambda s: s.block_queue.runs.table.__setitem__((60, BLOCKS), 2),
    "the order of runs": lambda s: setattr(s.block_queue.runs, "_slots", s.block_queue.runs.slots()[:-1]),
    "both ways round": lambda s: s.block_queue.runs.base.update({1: 2}),
    "hashes are not": lambda s: s.kv_cache_manager.block_pool.cached_block_hash_to_block._cache.popitem(),
    "share a row": lambda s: setattr(s.served["r0"], "chain", s.served["r1"].chain),
    "has gone": lambda s: s.served.update({"ghost": s.served["r0"]}),
    "nothing is known": lambda s: s.served.pop("r2"),
    "rows that run": lambda s: s.tracker.chains.__setitem__((s.served["r0"].chain, ch.RUNNING), 0),
    "rows that wait": lambda s: s.tracker.chains.__setitem__((s.served["r2"].chain, ch.WAITING), 0),
    "a row has leaked": lambda s: s.tracker._free.pop(),
    "sessions and rows": lambda s: s.tracker._sessions.pop("s1"),
    "lost tokens": lambda s: s.lost_tokens.update({"gone": 3}),
    "counted wrongly": lambda s: s.service.counters.__setitem__((0, 0, 1), 7.0),
    "waits for service": lambda s: s.service._waiting.add(10**6),
    "no number of tokens": lambda s: s.service.counters.__setitem__((0, 1, 0), np.nan),
    "not in order": lambda s: s.waiting._sorted.append((-1.0, 0.0, 0, s.waiting._sorted[0][3])),
}


@pytest.mark.parametrize("words", BREAKS)
def test_what_is_broken_is_found_and_named(folder, words):
    s, _ = busy(folder)
    assert broken(s) == []
    BREAKS[words](s)
    assert any(words in line for line in broken(s)), broken(s)


def test_the_environment_makes_it_raise_and_the_configuration_log(folder, monkeypatch, caplog):
    s, _ = busy(folder)  # the kit sets SAGA_RL_CHECK=raise
    s.tracker._free.pop()
    with pytest.raises(InvariantError, match="a row has leaked"):
        for _ in range(4):
            step(s)
    monkeypatch.delenv("SAGA_RL_CHECK")
    s, clock = busy(folder, saga={"check": "log"})
    s.tracker._free.pop()
    with caplog.at_level(logging.ERROR, "vllm.saga_rl"):
        drain(s, clock)
    assert s.metrics.counts["invariants broken"] > 0
    assert "a row has leaked" in caplog.text
    assert busy(folder)[0]._check is None


# ---------------------------------------------------------------------- policies that fail
@njit(SCORE)
def _nan(x, params, scratch):
    return np.nan


@njit(SCORE)
def _raises(x, params, scratch):
    for v in x:
        if v == v and v != 0.0:
            raise ValueError("no")
    return 0.0


@njit(SCORE)
def _slow(x, params, scratch):
    with objmode():
        time.sleep(0.05)
    return 0.0


def serve_with(folder, decision, score, cls=SagaScheduler, n=24, **policy):
    """24 requests of 6 sessions over 40 blocks under saga+, with a policy of ours in one decision."""
    clock = Clock()
    policies = replace(preset("saga+"), **{decision: Policy(decision, "bad", score, **policy)})
    s = make_scheduler(cls, folder, clock=clock, blocks=40, seqs=4, policies=policies)
    done: list[str] = []
    for i in range(n):
        s.add_request(make_request(f"r{i}", [i % 6] * (4 + i % 5) * BLOCK, session=f"s{i % 6}", output=5))
        done += step(s)
        clock.now += 0.05
    done += drain(s, clock)
    assert len(done) == n and broken(s) == []
    assert s.kv_cache_manager.block_pool.get_num_free_blocks() == 39
    return s


@pytest.mark.parametrize("decision", ["eviction", "ordering", "admission"])
@pytest.mark.parametrize(("score", "cause"), [(_nan, "non-finite score"), (_raises, "raised")])
def test_a_policy_that_gives_no_number_or_raises_is_replaced_and_counted(folder, decision, score, cause):
    s = serve_with(folder, decision, score)
    assert s.snapshot()[f"fallback/{decision}/{cause}"] > 0


@pytest.mark.parametrize("decision", ["eviction", "ordering", "admission"])
def test_a_policy_that_takes_too_long_costs_one_late_decision_in_a_while(folder, decision):
    started = time.perf_counter()
    s = serve_with(folder, decision, _slow)
    seconds = time.perf_counter() - started
    out = s.snapshot()
    late = out[f"fallback/{decision}/over budget"]
    assert late >= 2 and out.get(f"fallback/{decision}/paused", 0) > late
    assert late <= 3 + seconds / PAUSE_S


def test_a_policy_with_memory_that_raises_stops_being_told(folder):
    s = serve_with(folder, "eviction", _raises, scratch=16, memory=True)
    assert s.snapshot()["fallback/eviction/raised"] > 0
    assert s.block_queue.victims.guard.paused


def test_a_paused_policy_comes_back_and_pauses_grow():
    now = [0.0]
    guard = SafeGuard(make("eviction", "youngest"), make("eviction", "lru"), 0.02, lambda: now[0])
    rows = np.zeros((8, len(guard._scratch) + 64))
    guard.pause()
    guard.scores(rows, 8)
    assert guard.fallbacks == {"paused": 1}
    now[0] = 1.01
    guard.pause()
    now[0] = 2.9  # twice as long this time
    guard.scores(rows, 8)
    assert guard.fallbacks == {"paused": 2}
    now[0] = 3.1
    guard.scores(rows, 8)
    assert guard.fallbacks == {"paused": 2}


@pytest.mark.parametrize(("where", "owner", "method"), [
    ("arrival", "tracker", "arrive"), ("end of a request", "tracker", "finish"), ("step", "tracker", "expire"),
    ("admission", "admission", "make_row"), ("tier", "admission", "found_below"),
    ("start of a request", "admission", "let_in")])
def test_a_hook_of_ours_that_raises_is_counted_and_everyone_is_served(folder, monkeypatch, where, owner, method):
    monkeypatch.setenv("SAGA_RL_CHECK", "off")
    clock = Clock()
    s = make_scheduler(SagaScheduler, folder, clock=clock, blocks=40, seqs=4, saga={"policy": "saga+"})

    def fail(*args, **kwargs):
        raise RuntimeError("ours")

    monkeypatch.setattr(getattr(s, owner), method, fail)
    for i in range(8):
        s.add_request(make_request(f"r{i}", [i] * 5 * BLOCK, session=f"s{i}", output=5))
    assert len(drain(s, clock)) == 8
    assert s.metrics.counts[f"failed/{where}"] > 0
    assert s.kv_cache_manager.block_pool.get_num_free_blocks() == 39
    assert not s.served


@pytest.mark.parametrize("stage", ["waiting", "prefill", "decode", "preempted"])
def test_a_client_that_goes_away_leaves_nothing_at_any_stage(folder, stage):
    clock = Clock()
    policy = {"ordering": "session-fcfs", "eviction": "youngest"}
    s = make_scheduler(SagaScheduler, folder, clock=clock, blocks=41, seqs=2, batched=64, saga={"policy": policy})
    for i in range(2):
        s.add_request(make_request(f"r{i}", [i] * 10 * BLOCK, session=f"s{i}", output=200))
    victim = "r0"
    if stage == "waiting":
        s.add_request(make_request("late", [9] * BLOCK, session="late"))
        step(s)
        victim = "late"
    elif stage == "prefill":
        step(s)
        assert s.requests["r0"].num_computed_tokens < 10 * BLOCK
    else:
        for _ in range(400):
            step(s)
            clock.now += 0.05
            if stage == "decode" and s.requests["r0"].num_output_tokens > 3:
                break
            late = [r.request_id for r in s.waiting if r.status == RequestStatus.PREEMPTED]
            if late:
                victim = late[0]
                break
        assert (s.requests[victim].status == RequestStatus.PREEMPTED) == (stage == "preempted")
    s.finish_requests(victim, RequestStatus.FINISHED_ABORTED)
    assert victim not in s.served and broken(s) == []
    drain(s, clock)
    assert broken(s) == [] and s.kv_cache_manager.block_pool.get_num_free_blocks() == 40
    assert s.tracker.chains[s.tracker.chain_of("late" if stage == "waiting" else "s" + victim[1]), ch.STEPS] == 0
