"""The remembered prefix of a waiting request: vLLM's own answer at every look, and no second walk."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_kit import BLOCK, Clock, make_request, make_scheduler, step, vllm

assert vllm is not None
from saga_rl.runtime.engine.scheduler import SagaScheduler, SagaSyncScheduler  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


def checked(scheduler) -> list[int]:
    """Every lookup from now on is compared with vLLM's own; returns the lengths found."""
    coordinator, memo, found = scheduler.kv_cache_manager.coordinator, scheduler.prefix_memo, []

    def find(hashes, most):
        ours, stock = memo.find(hashes, most), type(coordinator).find_longest_cache_hit(coordinator, hashes, most)
        assert ours[0][0] == stock[0][0] and ours[1:] == stock[1:]
        found.append(ours[1])
        return ours

    coordinator.find_longest_cache_hit = find
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), blocks=st.integers(24, 60), policy=st.sampled_from(["lru", "likely", "saga+"]))
def test_every_look_finds_what_vllms_own_finds(folder, seed, blocks, policy):
    rng, clock = random.Random(seed), Clock()
    scheduler = make_scheduler(SagaSyncScheduler, folder, blocks=blocks, seqs=4, batched=64, clock=clock,
                               saga={"policy": policy})
    found = checked(scheduler)
    contexts = [[s] * BLOCK + [rng.randrange(5, 50) for _ in range(rng.randrange(8, 120))] for s in range(5)]
    sent = 0
    for _ in range(60):
        clock.now += rng.choice([0.01, 0.3, 4.0])
        if rng.random() < 0.5:
            s = rng.randrange(5)
            scheduler.add_request(make_request(f"r{sent}", contexts[s], output=rng.randrange(1, 20), session=f"s{s}"))
            contexts[s] = (contexts[s] + [rng.randrange(5, 50) for _ in range(rng.randrange(1, 40))])[:300]
            sent += 1
        if rng.random() < 0.03:
            scheduler.reset_prefix_cache()
        if scheduler.has_requests():
            step(scheduler)
    assert len(found) > sent // 2 > 0


@pytest.mark.parametrize("cls", [SagaSyncScheduler, SagaScheduler])
def test_a_head_that_is_refused_is_not_walked_again(folder, cls):
    clock = Clock()
    scheduler = make_scheduler(cls, folder, blocks=64, seqs=8, batched=512, clock=clock, saga={"policy": "lru"})
    old = list(range(100, 100 + 40 * BLOCK))
    scheduler.add_request(make_request("old", old, output=1, session="old"))
    while scheduler.has_requests():
        step(scheduler)
    scheduler.add_request(make_request("runs", list(range(5000, 5000 + 15 * BLOCK)), output=100, session="runs"))
    step(scheduler)
    # Its context is cached but for the last block, and it wants more blocks than are left.
    scheduler.add_request(make_request("waits", old + list(range(9000, 9000 + 20 * BLOCK)), output=4, session="old"))
    step(scheduler)
    walked = scheduler.prefix_memo.walked
    for _ in range(20):
        step(scheduler)
    assert len(scheduler.waiting) == 1 and scheduler.prefix_memo.walked - walked <= 2 * 20
