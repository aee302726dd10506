"""Models whose layers are of several kinds: a chain counts in each KV group's own tokens, what it left behind goes
first, and the policy decides about the rest."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from runtime_kit import BLOCK, Clock, drain, make_request, make_scheduler, step, vllm

from saga_rl.policies.features import AD
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.engine.invariants import broken
from saga_rl.runtime.engine.kv.groups import STATES, blocks_for
from saga_rl.runtime.engine.scheduler import SagaScheduler, SagaSyncScheduler
from saga_rl.runtime.sessions.hints import Hints

assert vllm is not None
import torch  # noqa: E402
from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec  # noqa: E402
from vllm.v1.request import RequestStatus  # noqa: E402

WINDOW = 4 * BLOCK
FULL = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
SLIDING = SlidingWindowSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32, sliding_window=WINDOW)
STATE = MambaSpec(shapes=((2 * BLOCK,),), dtypes=(torch.float32,), block_size=BLOCK, mamba_cache_mode="align")
MODELS = {"full and sliding window": (FULL, SLIDING), "full and Mamba": (FULL, STATE), "sliding window": (SLIDING,)}
LENGTH = 20 * BLOCK + 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


def align(config: Any) -> None:
    config.cache_config.mamba_cache_mode = "align"


def scheduler(folder: Path, model: str, cls: type = SagaSyncScheduler, **kwargs: Any) -> Any:
    """Prompts are computed in parts of four blocks, so that windows move while a request runs."""
    saga = {} if "Saga" not in cls.__name__ else {"saga": {"policy": kwargs.pop("policy", "likely")}}
    return make_scheduler(cls, folder, **{"blocks": 120, "batched": WINDOW, "specs": MODELS[model],
                                          "change": align if "Mamba" in model else lambda _: None, **saga, **kwargs})


def serve(s: Any, name: str, start: int, length: int = LENGTH, **hints: Any) -> int:
    """One request of a session of its own, played to its end; the row of its chain."""
    s.add_request(make_request(name, list(range(start, start + length)), session=name, **hints))
    c = int(s.served[name].chain)
    drain(s, s.clock)
    return c


@pytest.mark.parametrize("model", MODELS)
def test_a_chain_holds_what_its_best_group_holds_and_looks_alive(folder: Path, model: str) -> None:
    s = scheduler(folder, model, clock=Clock())
    c = serve(s, "a", 0)
    owned = s.block_queue.runs.owned_by(c)
    assert 0 < owned <= LENGTH // BLOCK
    assert s.block_queue.victims.undecided(c, owned)
    assert broken(s) == []


@pytest.mark.parametrize("model", MODELS)
def test_what_a_chain_left_behind_is_its_own_and_goes_first(folder: Path, model: str) -> None:
    """Although another session has been idle for longer."""
    s = scheduler(folder, model, clock=Clock())
    old = serve(s, "old", 0, 3 * BLOCK + 1)
    s.clock.now += 50
    c = serve(s, "long", 1000)
    runs = s.block_queue.runs
    behind = [b for run in runs.all() if run.stale for b in run]
    assert sum(run.num_free_blocks for run in runs.all() if run.stale and run.chain == c) >= 4
    assert all(run.chain in (c, old) for run in runs.all())
    ahead = s.kv.rank(s.block_queue.n_empty + len(behind))[s.block_queue.n_empty:]
    assert {b.block_id for b in ahead} == {b.block_id for b in behind}
    s.block_queue.popleft_n(s.block_queue.n_empty + len(behind))
    assert s.block_queue.evicted == {"left behind": len(behind)}


@pytest.mark.parametrize("model", MODELS)
def test_the_policy_decides_not_the_time_of_release(folder: Path, model: str) -> None:
    """A session that has ended goes before one that is older and lives."""
    s = scheduler(folder, model, clock=Clock())
    alive = serve(s, "alive", 0)
    s.clock.now += 1
    ended = serve(s, "ended", 1000, final=1)
    queue = s.block_queue
    rest = [queue.runs.of[b.block_id] for b in s.kv.rank(200) if queue.runs.of[b.block_id] is not None]
    order = [run.chain for run in rest if not run.stale]
    assert set(order) == {alive, ended} and order == sorted(order, key=lambda c: c != ended)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("ours", "stock"), [(SagaSyncScheduler, Scheduler), (SagaScheduler, AsyncScheduler)])
def test_with_lru_every_step_is_the_stock_schedulers(folder: Path, model: str, ours: type, stock: type) -> None:
    pair = [scheduler(folder, model, ours, policy="lru", clock=Clock(), blocks=90), scheduler(folder, model, stock,
                                                                                              blocks=90)]
    rng, log, contexts, n = random.Random(5), ([], []), {i: [100 + i] * 20 for i in range(6)}, 0
    for _ in range(250):
        new = []
        if rng.random() < 0.2:
            i = rng.randrange(6)
            contexts[i] = (contexts[i] + [rng.randrange(5)] * rng.randrange(1, 90))[: 20 * BLOCK]
            n += 1
            new.append((f"r{n}", contexts[i], f"s{i}", rng.randrange(1, 30)))
        for s, seen in zip(pair, log, strict=True):
            for name, tokens, session, output in new:
                s.add_request(make_request(name, tokens, session=session, output=output))
            free = s.kv_cache_manager.block_pool.free_block_queue
            seen.append((step(s), [b.block_id for b in free.get_all_free_blocks()],
                         {r: s.kv_cache_manager.get_block_ids(r) for r in s.requests}))
    assert log[0] == log[1]
    assert sum(pair[0].block_queue.evicted.values()) > 50


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("policy", ["likely", "saga", "saga+"])
def test_under_pressure_everything_holds_and_all_are_served(folder: Path, model: str, policy: str) -> None:
    """Checked after each step by `SAGA_RL_CHECK`."""
    s = scheduler(folder, model, SagaScheduler, policy=policy, clock=Clock(), blocks=80)
    rng, contexts, done = random.Random(2), {i: [100 + i] * 20 for i in range(8)}, 0
    for n in range(60):
        i = n % 8
        contexts[i] = contexts[i] + [rng.randrange(5)] * rng.randrange(1, 80)
        if len(contexts[i]) > 18 * BLOCK:
            contexts[i] = [1000 + n] * 20
        s.add_request(make_request(f"r{n}", contexts[i], session=f"s{i}", output=rng.randrange(1, 20),
                                   final=int(rng.random() < 0.1), tenant=f"t{i % 2}"))
        for _ in range(rng.randrange(1, 6)):
            done += len(step(s))
            s.clock.now += 0.05
    done += len(drain(s, s.clock))
    assert done == 60 and broken(s) == []
    evicted = s.block_queue.evicted
    assert sum(evicted.values()) > 20 and evicted["left behind"] > 0


@pytest.mark.skipif(not hasattr(Scheduler, "_drain_deferred_frees"), reason="this vLLM defers no frees")
def test_frees_that_come_late_are_told_apart_by_group(folder: Path) -> None:
    """vLLM puts the blocks of all groups into one list then."""
    s = scheduler(folder, "full and sliding window", clock=Clock())
    s.defer_block_free = True
    s.sched_step_seq, s.processed_step_seq = 5, 3
    request = make_request("r", list(range(LENGTH)), session="a", output=100)
    s.add_request(request)
    c = s.served["r"].chain
    while request.num_output_tokens < 2:
        step(s)
    request.last_sched_seq = s.sched_step_seq + 1
    s.finish_requests("r", RequestStatus.FINISHED_STOPPED)
    assert s.block_queue.runs.owned_by(c) < LENGTH // BLOCK and len(s.deferred_frees) == 1
    s.processed_step_seq = s.sched_step_seq + 1
    s._drain_deferred_frees()
    runs = s.block_queue.runs
    mine = [run for run in runs.all() if run.chain == c and not run.stale]
    assert sorted(run.group for run in mine) == [0, 1] and broken(s) == []
    assert runs.owned_by(c) == LENGTH // BLOCK
    assert not any(runs.base)


def test_admission_asks_for_the_blocks_of_all_groups(folder: Path) -> None:
    s = scheduler(folder, "full and sliding window", clock=Clock())
    groups = s.block_queue.groups
    assert groups.tokens.tolist() == [BLOCK, BLOCK] and groups.most[0] == float("inf") > groups.most[1] > 4
    assert blocks_for(float(LENGTH), groups.tokens, groups.most) == 21 + groups.most[1]
    assert blocks_for(float(BLOCK), groups.tokens, groups.most) == 2
    served = s.tracker.arrive(Hints(session="x"), 0.0, LENGTH)
    s.admission.make_row(make_request("x", list(range(LENGTH))), served, 0, [], {}, 0.0)
    assert s.admission.row[0, AD.need] >= 21 + groups.most[1]
    mamba = scheduler(folder, "full and Mamba", clock=Clock()).block_queue.groups
    assert mamba.most.tolist() == [float("inf"), STATES] and mamba.growing == BLOCK
    alone = scheduler(folder, "sliding window", clock=Clock()).block_queue.groups
    assert alone.growing == float("inf") and alone.skips


def test_a_session_that_goes_on_uses_its_window_again(folder: Path) -> None:
    s = scheduler(folder, "full and sliding window", clock=Clock())
    c = serve(s, "a", 0)
    s.clock.now += 1
    s.add_request(make_request("again", list(range(LENGTH + 5)), session="a"))
    step(s)
    assert s.served["again"].cached_tokens >= LENGTH - BLOCK
    drain(s, s.clock)
    assert s.tracker.chains[c, ch.STEPS] == 2 and broken(s) == []
