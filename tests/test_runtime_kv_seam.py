"""Whose KV blocks are: when they come late, when their content goes, and what would go next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runtime_kit import BLOCK, Clock, drain, make_request, make_scheduler, step
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import RequestStatus

from saga_rl.runtime.engine.invariants import broken
from saga_rl.runtime.engine.scheduler import SagaScheduler, SagaSyncScheduler

LENGTH, STOP = 6 * BLOCK + 3, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


def scheduler(folder: Path, cls: type = SagaSyncScheduler, blocks: int = 40) -> Any:
    return make_scheduler(cls, folder, blocks=blocks, clock=Clock(), saga={"policy": "saga+"})


def owned(s: Any, session: str) -> float:
    """Evictable blocks that the session's first agent owns."""
    chains = [row for row in range(len(s.tracker.chains)) if s.block_queue.runs.owned_by(row)]
    return sum(s.block_queue.runs.owned_by(c) for c in chains if c == s.mine[session])


def served(s: Any, name: str, session: str, start: int = 0) -> None:
    """One request of LENGTH tokens, played to its end."""
    s.add_request(make_request(name, list(range(start, start + LENGTH)), session=session))
    s.mine = {**getattr(s, "mine", {}), session: s.served[name].chain}
    drain(s)


def test_blocks_that_a_connector_keeps_are_their_sessions_when_they_come(folder: Path) -> None:
    s = scheduler(folder)
    kept: list[Any] = []
    stock = s._connector_finished

    def finished(request: Any) -> tuple[bool, None]:
        stock(request)
        kept.append(request)
        return True, None

    s._connector_finished = finished
    served(s, "r", "a")
    assert owned(s, "a") == 0 and s.kv.owners().tolist() == [s.mine["a"]]
    s._free_blocks(kept[0])
    assert owned(s, "a") == LENGTH // BLOCK and broken(s) == []
    assert s.kv.owners().tolist() == [s.mine["a"]]


@pytest.mark.skipif(not hasattr(Scheduler, "_drain_deferred_frees"), reason="this vLLM defers no frees")
def test_blocks_that_a_step_may_still_write_are_their_sessions_when_they_come(folder: Path) -> None:
    """Asynchronous scheduling: an answer ends by a stop token while the next step is on its way."""
    s = scheduler(folder, SagaScheduler)
    s.defer_block_free = True
    request = make_request("r", list(range(LENGTH)), session="a", output=8)
    request.sampling_params.stop_token_ids = [STOP]
    s.add_request(request)
    s.mine = {"a": s.served["r"].chain}
    ahead = [s.schedule(), s.schedule()]
    answer(s, ahead.pop(0))
    assert "r" not in s.requests and owned(s, "a") == 0
    assert len(s.deferred_frees) == 1 and s.kv.owners().tolist() == [s.mine["a"]]
    answer(s, ahead.pop(0))
    assert not s.deferred_frees and owned(s, "a") == LENGTH // BLOCK and broken(s) == []


def answer(s: Any, scheduled: Any) -> None:
    """The step's outputs: `STOP` for whoever it was scheduled for."""
    ids = list(scheduled.num_scheduled_tokens)
    s.update_from_output(scheduled, ModelRunnerOutput(
        req_ids=ids, req_id_to_index={r: i for i, r in enumerate(ids)}, sampled_token_ids=[[STOP] for _ in ids],
        logprobs=None, prompt_logprobs_dict={}, pooler_output=[]))


def test_a_reset_leaves_nothing_to_anybody(folder: Path) -> None:
    s = scheduler(folder)
    for k, session in enumerate("abc"):
        served(s, f"r{k}", session, 1000 * k)
    assert s.block_queue.n_evictable == 3 * (LENGTH // BLOCK)
    assert s.reset_prefix_cache()
    assert s.block_queue.n_evictable == 0 and s.kv.owners().size == 0 and broken(s) == []
    assert s.block_queue.n_empty == s.block_queue.num_free_blocks == 39
    s.add_request(make_request("again", list(range(35 * BLOCK)), session="d"))  # room for it is there
    step(s)
    assert len(s.running) == 1
    drain(s)
    assert broken(s) == []


def test_blocks_that_lose_their_content_are_nobodys(folder: Path) -> None:
    s = scheduler(folder)
    served(s, "r", "a")
    some = {b.block_id for b in s.kv.rank(40)[-2:]}
    s.kv_cache_manager.block_pool.evict_blocks(some)
    assert owned(s, "a") == LENGTH // BLOCK - 2 and broken(s) == []


def test_rank_is_the_order_in_which_blocks_go(folder: Path) -> None:
    s = scheduler(folder)
    for k, session in enumerate("ab"):
        served(s, f"r{k}", session, 1000 * k)
    n = s.block_queue.num_free_blocks
    first = [b.block_id for b in s.kv.rank(n)]
    assert first == [b.block_id for b in s.block_queue.get_all_free_blocks()]
    assert [b.block_id for b in s.block_queue.popleft_n(n)] == first


@pytest.mark.skipif(not hasattr(KVCacheBlock(0), "pool"), reason="this vLLM has one pool")
def test_blocks_of_another_pool_are_left_alone(folder: Path) -> None:
    """A table may name blocks on the host: their numbers are not of this pool, and go beyond it."""
    s = scheduler(folder)
    s.add_request(make_request("r", list(range(LENGTH)), session="a"))
    s.mine = {"a": s.served["r"].chain}
    host = BlockPool(500, True, BLOCK)
    foreign = host.get_new_blocks(400)[-3:]
    for block in foreign:
        block.ref_cnt += 1  # somebody else holds them, too
    while s.requests["r"].num_output_tokens < 2:
        step(s)
    table = s.kv_cache_manager.coordinator.single_type_managers[0].req_to_blocks["r"]
    assert len(table) < len(host.blocks)
    table[0:0] = foreign[:2]
    table[3:3] = foreign[2:]
    s.finish_requests("r", RequestStatus.FINISHED_STOPPED)
    assert owned(s, "a") == LENGTH // BLOCK and broken(s) == []
    assert [block.ref_cnt for block in foreign] == [1, 1, 1]
