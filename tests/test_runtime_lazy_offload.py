"""The tier that holds what its GPU is about to lose, over vLLM's own connector: beside the simulator, and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_async_virtual import config, sessions, virtual

from saga_rl.policies.presets import preset
from saga_rl.runtime.config import versions
from saga_rl.runtime.emulate.virtual.cluster import _Run
from saga_rl.sim.cluster import simulate

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not versions.at_least(0, 32), reason="from vLLM 0.32 on")]


def tiered(contexts: float = 3.0, below: int = 10**6, population: int = 6):
    trace = sessions()
    sim = replace(config(trace, contexts=contexts, population=population), tool_names=False, async_scheduling=True,
                  cpu_tokens=below, offloading="lazy", pcie_tokens_per_s=1e6, expiry_s=1e9)
    return trace, sim


def run(trace, sim, name: str | None):
    """A run, and its engines' schedulers as they stand at its end."""
    play = _Run(trace, virtual.VirtualConfig(sim), None if name is None else preset(name), lambda done, steps: None)
    schedulers = [e.scheduler for e in play.engines]
    return play.run(), schedulers


@pytest.mark.parametrize("name", ["lru", "auto"])
def test_what_the_gpu_lost_is_found_below_it_as_in_the_simulator(name):
    trace, sim = tiered()
    played, _ = run(trace, sim, name)
    told = simulate(trace, sim, preset(name), slo=False).metrics
    cached = played.steps["cached_tokens"].sum() / trace.steps.prompt_tokens.sum()
    loaded = told["loaded_tokens"] / trace.steps.prompt_tokens.sum()
    assert played.counts["cpu tier/stored"] > 0 and loaded > 0
    assert cached == pytest.approx(told["hit_share"] + loaded, abs=0.02)
    # a request waits for copies that the simulator does not wait for: some steps, where a context is half of the pool
    assert played.counts["held for a copy"] > 0
    assert 0.97 < played.tct_s.mean() / told["tct_mean_s"] < 1.2


def test_no_block_is_lost_and_the_run_repeats():
    trace, sim = tiered(contexts=2.0, below=4_000)
    (played, (scheduler,)), (again, _) = (run(trace, sim, "auto") for _ in range(2))
    assert played.done_s.tolist() == again.done_s.tolist()
    assert played.counts["held for a copy"] > 0
    pool, below = scheduler.kv_cache_manager.block_pool, scheduler.connector.scheduler_manager.cpu_block_pool
    for p in (pool, below):
        free = p.free_block_queue.get_all_free_blocks()
        held = [b for b in p.blocks if b.ref_cnt > 0 and not b.is_null]
        assert len({b.block_id for b in free}) == len(free) == p.free_block_queue.num_free_blocks
        assert len(free) + len(held) + 1 == len(p.blocks)
    manager = scheduler.connector.scheduler_manager
    in_flight = sum(len(t.gpu_block_ids) for t in manager._store_event_to_blocks.values())
    assert manager._in_flight == in_flight == sum(b.ref_cnt for b in pool.blocks if not b.is_null)


def test_copies_are_of_what_goes_next():
    trace, sim = tiered()
    play = _Run(trace, virtual.VirtualConfig(sim), preset("auto"), lambda done, steps: None)
    scheduler = play.engines[0].scheduler
    queue = scheduler.block_queue
    seen = 0

    hand_down = queue.hand_down

    def watched(most: int):
        nonlocal seen
        order = [b.block_id for b in queue.in_order() if b.block_hash is not None and queue.runs.of[b.block_id]]
        free = queue.num_free_blocks
        out = hand_down(most)
        if out:
            dropped = [i for i in order if i not in {b.block_id for b in out}]
            # those that go next, but for what has ended, which is not copied
            assert [i for i in order if i in {b.block_id for b in out}] == [b.block_id for b in out]
            assert queue.num_free_blocks == free - len(out)
            first = order.index(out[0].block_id)
            assert all(queue.runs.of[i] is None for i in dropped[:first])
            seen += len(out)
        return out

    queue.hand_down = watched
    play.run()
    assert seen > 0


def test_what_is_loaded_back_is_the_next_to_go_below():
    trace, sim = tiered()
    play = _Run(trace, virtual.VirtualConfig(sim), preset("auto"), lambda done, steps: None)
    manager = play.engines[0].scheduler.connector.scheduler_manager
    clean, loads = manager._cleanup_load_request, 0

    def watched(name: str) -> int:
        nonlocal loads
        state = manager._reqs_to_load.get(name)
        n = clean(name)
        if n and state is not None:
            ids = [i for i in state.transfer_meta.cpu_block_ids if manager.cpu_block_pool.blocks[i].ref_cnt == 0]
            ahead = [b.block_id for b in manager.cpu_block_pool.free_block_queue.get_all_free_blocks()[:len(ids)]]
            assert ahead == ids[::-1]
            loads += 1
        return n

    manager._cleanup_load_request = watched
    play.run()
    assert loads > 0


def test_vllms_own_lazy_connector_plays_too():
    trace, sim = tiered()
    played, _ = run(trace, sim, None)
    assert np.isfinite(played.tct_s).all()
