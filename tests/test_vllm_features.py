"""vLLM's features under every preset, on vLLM's real scheduler in one process: sessions that grow, under pressure, are
all answered, and what must hold after each step does (`SAGA_RL_CHECK`). docs/reference/vllm-features.md names these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from features_kit import FEATURES, Play, remade
from runtime_kit import BLOCK, Clock, drain, make_request, make_scheduler, step
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

from saga_rl.policies.presets import preset_names
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.engine.invariants import broken
from saga_rl.runtime.engine.scheduler import SagaScheduler

SESSIONS, REQUESTS = 6, 36
every_preset = pytest.mark.parametrize("policy", preset_names())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@every_preset
@pytest.mark.parametrize("name", FEATURES)
def test_sessions_are_served_with(folder: Path, name: str, policy: str) -> None:
    feature = FEATURES[name]
    clock = Clock()
    s = make_scheduler(feature.cls, folder, clock=clock, saga={"policy": policy, "starve_s": 1e9},
                       **{"blocks": 60, **feature.config(folder)})
    play = Play(s)
    feature.ready(play)
    contexts = {i: [100 + i] * 20 for i in range(SESSIONS)}
    for n in range(REQUESTS):
        i = n % SESSIONS
        contexts[i] = contexts[i] + [play.rng.randrange(5) for _ in range(play.rng.randrange(1, 90))]
        for r in feature.ask(play, f"r{n}", contexts[i], f"s{i}"):
            play.asked.append(r.request_id)
            s.add_request(r)
        for _ in range(play.rng.randrange(1, 6)):
            play.done += feature.step(play)
            clock.now += 0.05
    for _ in range(2000):
        if not s.requests:
            break
        play.done += feature.step(play)
        clock.now += 0.05
    assert sorted(play.done) == sorted(play.asked)
    assert broken(s) == [] and not s.served and not s.loading
    rows = s.tracker.chains
    assert not (rows[:, ch.WAITING] == 1).any() and not (rows[:, ch.RUNNING] == 1).any()
    assert not [k for k in s.metrics.counts if k.startswith("failed/")]
    assert not feature.pressure or sum(s.block_queue.evicted.values()) > 10
    feature.check(play)


# ---------------------------------------------------------------------- streaming input
@every_preset
def test_a_streaming_input_is_one_step_of_its_session(folder: Path, policy: str) -> None:
    """It waits for more with its KV, others come and go meanwhile, and its end is no abort."""
    s = make_scheduler(SagaScheduler, folder, clock=Clock(), blocks=40, saga={"policy": policy, "starve_s": 1e9})

    def part(k: int, more: bool = True) -> Any:
        tokens = list(range(1000 * k, 1000 * k + 3 * BLOCK))
        return remade(make_request("stream", tokens, session="a", output=4), resumable=more)

    s.add_request(part(1))
    c = int(s.served["stream"].chain)
    for k in range(2, 6):
        for _ in range(20):
            step(s)
            s.clock.now += 0.05
        assert s.requests["stream"].status == RequestStatus.WAITING_FOR_STREAMING_REQ
        s.add_request(make_request(f"r{k}", [k] * 20 * BLOCK, session=f"s{k}"))
        while f"r{k}" in s.requests:
            step(s)
            s.clock.now += 0.05
        s.add_request(part(k, more=k < 5))
    assert not s.requests and broken(s) == [] and sum(s.block_queue.evicted.values()) > 10
    row = s.tracker.chains[c]
    assert row[ch.STEPS] == 1 and row[ch.CONTEXT] >= 4 * 3 * BLOCK
    assert s.block_queue.runs.owned_by(c) >= 4 * 3


# ---------------------------------------------------------------------- pause, sleep
def busy(folder: Path, policy: str, **saga: Any) -> Any:
    """Three requests run, three wait."""
    s = make_scheduler(SagaScheduler, folder, clock=Clock(), seqs=3, saga={"policy": policy, **saga})
    for k in range(6):
        s.add_request(make_request(f"r{k}", [k] * 3 * BLOCK, session=f"s{k}", output=10,
                                   tenant="calm" if k < 3 else "urgent", deadline_s=5000 if k < 3 else 5))
        if k == 2:
            step(s)
            s.clock.now += 0.05
    assert len(s.running) == len(s.waiting) == 3
    return s


def steps(s: Any, n: int) -> list[str]:
    done = []
    for _ in range(n):
        done += step(s)
        s.clock.now += 0.05
    return done


@every_preset
def test_a_pause_that_waits_lets_what_runs_end_and_nothing_begin(folder: Path, policy: str) -> None:
    s = busy(folder, policy)
    running = sorted(r.request_id for r in s.running)
    s.set_pause_state(PauseState.PAUSED_NEW)
    s.add_request(make_request("later", [9] * BLOCK, session="later"))
    assert sorted(steps(s, 40)) == running and len(s.waiting) == 4
    s.set_pause_state(PauseState.UNPAUSED)
    assert len(drain(s, s.clock)) == 4


@every_preset
def test_what_a_pause_freezes_goes_on_where_it_was(folder: Path, policy: str) -> None:
    s = busy(folder, policy)
    had = {r.request_id: r.num_tokens for r in s.running}
    s.set_pause_state(PauseState.PAUSED_ALL)
    assert steps(s, 40) == [] and {r.request_id: r.num_tokens for r in s.running} == had
    s.set_pause_state(PauseState.UNPAUSED)
    assert len(drain(s, s.clock)) == 6 and s.metrics.counts["preemptions"] == 0


@every_preset
def test_sleep_and_new_weights_leave_no_kv_and_lose_no_request(folder: Path, policy: str) -> None:
    """What vLLM does at a pause that clears its caches while requests are kept."""
    s = busy(folder, policy)
    s.set_pause_state(PauseState.PAUSED_ALL)
    assert s.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
    assert s.block_queue.n_evictable == 0 and s.kv.owners().size == 0
    assert steps(s, 5) == []
    s.set_pause_state(PauseState.UNPAUSED)
    assert len(drain(s, s.clock)) == 6 and broken(s) == []


def test_nobody_yields_in_a_pause(folder: Path) -> None:
    """Agent Fair Share makes a running request yield to a late one, which does not begin in a pause."""
    s = busy(folder, "saga", afs_preempt_s=0.5)
    running = sorted(r.request_id for r in s.running)
    s.set_pause_state(PauseState.PAUSED_NEW)
    s.clock.now += 2
    assert sorted(steps(s, 40)) == running and s.metrics.counts["afs preemptions"] == 0
    s.set_pause_state(PauseState.UNPAUSED)
    assert len(drain(s, s.clock)) == 3
    free = busy(folder, "saga", afs_preempt_s=0.5)
    free.clock.now += 2
    step(free)
    assert free.metrics.counts["afs preemptions"] > 0  # without the pause it does
    drain(free, free.clock)


# ---------------------------------------------------------------------- priorities
def test_priorities_are_vllms_under_lru(folder: Path) -> None:
    s = make_scheduler(SagaScheduler, folder, clock=Clock(), seqs=1, saga={"policy": "lru"},
                       change=lambda config: setattr(config.scheduler_config, "policy", "priority"))
    for k, priority in enumerate((5, 1, 3, 0)):
        request = make_request(f"r{k}", [k] * 3 * BLOCK, session=f"s{k}")
        request.priority = priority
        s.add_request(request)
    assert drain(s, s.clock) == ["r3", "r1", "r2", "r0"] and broken(s) == []
