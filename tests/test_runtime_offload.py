"""vLLM's CPU tier under our policy, against vLLM's own manager: LRU chunk for chunk, and the order of our policies."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_kit import BLOCK, Clock, make_request, make_scheduler, vllm

assert vllm is not None
from vllm.v1.kv_offload.base import ReqContext, make_offload_key  # noqa: E402
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager  # noqa: E402
from vllm.v1.kv_offload.cpu.policies.factory import CachePolicyFactory  # noqa: E402

from saga_rl.policies import features as F  # noqa: E402
from saga_rl.policies.registry import make  # noqa: E402
from saga_rl.policies.state import chains as ch  # noqa: E402
from saga_rl.runtime.engine.offload.attach import WRAPPED, attach, managers  # noqa: E402
from saga_rl.runtime.engine.offload.cache_policy import SagaCachePolicy  # noqa: E402
from saga_rl.runtime.engine.scheduler import SagaSyncScheduler  # noqa: E402
from saga_rl.runtime.sessions.hints import Hints  # noqa: E402
from saga_rl.runtime.sessions.tracker import Tracker  # noqa: E402

MODULE = "saga_rl.runtime.engine.offload.cache_policy"


class Connector:
    """What `attach` looks at: a connector whose scheduler side calls a manager."""

    def __init__(self, manager) -> None:
        self.connector_scheduler = type("Side", (), {"manager": manager})()


class Tier:
    """vLLM's manager over `capacity` chunks, a tracker, and a clock; requests as the connector plays them."""

    def __init__(self, capacity: int, policy: str = "youngest", ours: bool = True, bound: bool = True) -> None:
        name = "SagaCachePolicy" if ours else "lru"
        self.manager = CPUOffloadingManager(capacity, name, MODULE if ours else None)
        self.tracker, self.now, self.served = Tracker(), 100.0, {}
        self.requests = 0
        if bound:
            self.tied = attach(Connector(self.manager), self.tracker, make("eviction", policy), 16, 1.0,
                               lambda r: self.served[r].chain if r in self.served else None, lambda: self.now)

    @property
    def policy(self) -> SagaCachePolicy:
        return self.manager._policy

    def request(self, session: str, names, *, final=False, tool="bash", finish=True) -> tuple[list[str], bool]:
        """A request whose context is the chunks `names`: loads what is there, stores the rest. Returns what was evicted
        for it, and whether it could be stored."""
        self.requests += 1
        self.now += 1.0
        rid, keys = f"r{self.requests}", [key(n) for n in names]
        served = self.tracker.arrive(Hints(session, next_tool=tool, final=final), self.now, 16 * len(keys))
        self.served[rid] = served
        ctx = ReqContext(req_id=rid)
        for position, k in enumerate(keys):
            if hasattr(ctx, "set_offload_key_position"):
                ctx.set_offload_key_position(k, position)
        m = self.manager
        m.on_new_request(ctx)
        hits = []
        for k in keys:
            if m.lookup(k, ctx).name != "HIT":
                break
            hits.append(k)
        m.touch(keys, ctx) if "on_request_finished" not in CPUOffloadingManager.__dict__ else None  # as 0.28 does
        if hits:
            m.prepare_load(hits, ctx)
        self.tracker.schedule(served, self.now)
        if hits:
            m.complete_load(hits, ctx)
        out = m.prepare_store(keys, ctx)
        if out is not None:
            m.complete_store(out.keys_to_store, ctx)
        self.now += 0.5
        if finish:
            self.tracker.finish(served, self.now, 1)
            del self.served[rid]
            m.on_request_finished(ctx)
        return ([] if out is None else [name_of(k) for k in out.evicted_keys]), out is not None

    def holds(self, name) -> bool:
        return self.policy.get(key(name)) is not None


def key(name):
    return make_offload_key(str(name).encode(), 0)


def name_of(k) -> str:
    return k[:-4].decode()


def context(session: int, n: int, shared: int = 0) -> list[str]:
    return [f"shared-{i}" if i < shared else f"{session}-{i}" for i in range(n)]


# ---------------------------------------------------------------------- LRU
HISTORY = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(0, 3), st.booleans()), min_size=1,
                   max_size=40)


@settings(max_examples=60, deadline=None)
@given(history=HISTORY, capacity=st.integers(4, 24), bound=st.booleans())
def test_lru_and_what_is_not_tied_evict_as_vllms_own_lru_does(history, capacity, bound):
    stock, ours = Tier(capacity, ours=False, bound=False), Tier(capacity, "lru", bound=bound)
    for session, n, shared, final in history:
        names = context(session, n, shared)
        assert stock.request(f"s{session}", names, final=final) == ours.request(f"s{session}", names, final=final)
    assert ours.policy.counts["failed"] == 0


# ---------------------------------------------------------------------- our order
@settings(max_examples=60, deadline=None)
@given(history=HISTORY, capacity=st.integers(6, 24), policy=st.sampled_from(["youngest", "wa-lru", "lru-protect"]))
def test_the_pool_is_conserved_and_what_was_stored_is_found(history, capacity, policy):
    tier = Tier(capacity, policy)
    for session, n, shared, final in history:
        before = set(tier.policy._shelf._at)
        evicted, stored = tier.request(f"s{session}", context(session, n, shared), final=final)
        now = set(tier.policy._shelf._at)
        assert len(now) <= capacity
        assert now == {k for k in now if tier.policy.get(k) is not None}
        assert {key(e) for e in evicted} <= before
        if stored:
            assert {key(x) for x in context(session, n, shared)} <= now
        else:
            assert now == before
        table = tier.policy._shelf.table
        assert table[:, 2].sum() == len(now) == tier.policy._shelf.owned.sum()
        assert tier.manager._get_num_free_chunks() == capacity - len(now) if hasattr(
            tier.manager, "_get_num_free_chunks") else True
    assert tier.policy.counts["failed"] == 0


def test_ended_sessions_go_first_whoever_was_used_last():
    tier = Tier(12)
    tier.request("done", context(1, 4))
    tier.request("alive", context(2, 4))
    tier.request("done", context(1, 4), final=True)
    evicted, _ = tier.request("new", context(3, 6))
    assert evicted == ["1-3", "1-2"]  # the deepest first: what is left is a prefix that can be used
    assert tier.policy.counts["ended"] == 2
    lru = Tier(12, "lru")
    lru.request("done", context(1, 4))
    lru.request("alive", context(2, 4))
    lru.request("done", context(1, 4), final=True)
    assert {x[0] for x in lru.request("new", context(3, 6))[0]} == {"2"}  # used longest ago


def test_the_policys_scores_decide_whose_chunks_go():
    """Three idle sessions: the victim is the one that the policy's own score puts first, for policies that differ."""
    victims = {}
    for name in ("youngest", "wa-lru"):
        tier = Tier(15, name)
        for session in (1, 2, 3):
            tier.request(f"s{session}", context(session, 5))
        tier.request("s1", context(1, 5))  # the oldest session was used last
        shelf, v = tier.policy._shelf, tier.policy._victims
        slots = shelf.slots()
        v.refresh(shelf, slots, 0, tier.now + 1.0)
        best = slots[np.argmax(v.scores(shelf, slots, tier.now + 1.0)[:len(slots)])]
        expected = tier.tracker.name(int(shelf.table[best, 0])).split("/")[0]
        evicted, _ = tier.request("s9", context(9, 1))
        assert evicted == [f"{expected[1:]}-4"]
        victims[name] = expected
    assert victims["youngest"] == "s3"


def test_a_session_whose_request_waits_keeps_its_chunks_until_nothing_else_is_left():
    tier = Tier(12)
    tier.request("old", context(1, 4))
    tier.request("young", context(2, 4))
    tier.request("back", context(3, 4))
    waiting = tier.tracker.arrive(Hints("back"), tier.now, 64)
    assert tier.request("new", context(4, 8))[0] == ["2-3", "2-2", "2-1", "2-0", "1-3", "1-2", "1-1", "1-0"]
    assert all(tier.holds(x) for x in context(3, 4))
    tier.tracker.abort(waiting, tier.now)


def test_what_cannot_be_evicted_changes_nothing():
    tier = Tier(8)
    tier.request("a", context(1, 8))
    before = dict(tier.policy._shelf._at)
    pinned = ReqContext(req_id="other")
    tier.manager.on_new_request(pinned)
    tier.manager.prepare_load([key(x) for x in context(1, 6)], pinned)
    assert tier.request("b", context(2, 5)) == ([], False)
    assert tier.policy._shelf._at == before
    assert tier.request("b", context(2, 2))[0] == ["1-7", "1-6"]


def test_a_branch_that_its_session_left_goes_before_what_it_used_last():
    tier = Tier(10)
    tier.request("a", ["p", "q", "old-1", "old-2"])
    tier.request("a", ["p", "q", "new-1", "new-2"])  # the context was compacted
    assert tier.request("b", context(9, 6))[0] == ["old-2", "old-1"]
    assert tier.request("c", context(8, 2))[0][0] != "p"


def test_shared_chunks_are_a_part_of_their_own():
    tier = Tier(20)
    tier.request("a", context(1, 5, shared=2))
    tier.request("b", context(2, 5, shared=2))
    shelf = tier.policy._shelf
    assert sorted(shelf.table[shelf.slots(), 2].tolist()) == [2.0, 3.0, 3.0]
    assert shelf.table[shelf.slots(), 3].sum() == 1.0


def test_forgotten_chains_go_first_and_their_row_is_not_taken_for_the_next_ones():
    tier = Tier(12)
    tier.request("gone", context(1, 4))
    row = tier.tracker.chain_of("gone")
    tier.request("alive", context(2, 4))
    tier.tracker._drop(row)
    tier.request("heir", context(3, 2))
    assert tier.tracker.chain_of("heir") == row
    evicted, _ = tier.request("new", context(4, 6))
    assert evicted == ["1-3", "1-2", "1-1", "1-0"]


def test_a_policy_that_raises_or_gives_nan_costs_the_order_only(monkeypatch):
    tier, lru = Tier(8), Tier(8, ours=False, bound=False)
    for t in (tier, lru):
        t.request("a", context(1, 4))
        t.request("b", context(2, 4))
    monkeypatch.setattr(tier.policy._victims, "scores", lambda *_: 1 / 0)
    assert tier.request("c", context(3, 2)) == lru.request("c", context(3, 2))
    assert tier.policy.counts["failed"] == 1
    monkeypatch.setattr(tier.policy._victims, "scores", lambda _, slots, __: np.full(len(slots), math.nan))
    assert tier.request("d", context(4, 2))[1]
    assert len(tier.policy._shelf) == 8


def test_a_reset_empties_everything():
    tier = Tier(8)
    tier.request("a", context(1, 8))
    tier.manager.reset_cache()
    assert len(tier.policy._shelf) == 0
    assert tier.request("b", context(2, 8)) == ([], True)
    assert tier.request("c", context(3, 1))[0] == ["2-7"]


def test_memory_of_requests_is_bounded_by_those_in_flight():
    tier = Tier(16)
    for k in range(50):
        tier.request(f"s{k}", context(k, 3))
    assert not tier.policy._chain and not tier.policy._seen
    assert len(tier.policy._shelf._slot) <= 16


def test_a_swap_ties_it_again_without_losing_a_chunk():
    tier, lru = Tier(12), Tier(12, ours=False, bound=False)
    for t in (tier, lru):
        t.request("s1", context(1, 4))
        t.request("s2", context(2, 4))
        t.request("s1", context(1, 4))
    again = attach(Connector(tier.manager), tier.tracker, make("eviction", "lru"), 16, 1.0, lambda _: None,
                   lambda: tier.now)
    assert again == [tier.policy] and len(tier.policy._shelf) == 8
    assert tier.request("s3", context(3, 6)) == lru.request("s3", context(3, 6))


def test_it_is_found_by_vllms_factory_and_no_other_policy_is_touched():
    assert CachePolicyFactory.get_cache_policy_cls("SagaCachePolicy", MODULE) is SagaCachePolicy
    assert list(managers(None)) == []
    assert list(managers(Connector(CPUOffloadingManager(4, "lru")))) == []
    for name in WRAPPED:
        assert list(inspect.signature(getattr(CPUOffloadingManager, name)).parameters)[-1] == "req_context"


@pytest.mark.parametrize("final", [False, True])
def test_rows_say_what_the_tracker_knows(final):
    tier = Tier(8)
    tier.request("a", context(1, 3), final=final)
    row = tier.tracker.chains[tier.tracker.chain_of("a")]
    assert row[ch.ENDED] == final
    assert tier.policy._shelf.chain_of(key("1-0")) == tier.tracker.chain_of("a")
    assert tier.policy._shelf.chain_of(key("9-0")) == -1


# ---------------------------------------------------------------------- with vLLM's scheduler and connector
CAPACITY = 24
CHUNK_BYTES = 4096


def engine(folder, clock, eviction: str):
    """vLLM's scheduler under ours with the offloading connector's scheduler side: 23 GPU blocks, 24 chunks."""
    from unittest.mock import patch

    from vllm.config import KVTransferConfig, VllmConfig

    transfer = KVTransferConfig(
        kv_connector="OffloadingConnector", kv_role="kv_both", kv_connector_extra_config={
            "cpu_bytes_to_use": CAPACITY * CHUNK_BYTES, "eviction_policy": "SagaCachePolicy",
            "cache_policy_module_path": MODULE})
    with patch("runtime_kit.VllmConfig", lambda **kw: VllmConfig(**kw, kv_transfer_config=transfer)):
        s = make_scheduler(SagaSyncScheduler, folder, clock=clock, blocks=24,
                           saga={"policy": {"eviction": eviction}})
    (tied,) = attach(s.connector, s.tracker, s.policies.eviction, BLOCK, 1.0,
                     lambda r: served.chain if (served := s.served.get(r)) else None, lambda: s.now)
    return s, tied


def play_step(s) -> dict[str, int]:
    """One iteration of the engine; the worker is played: each copy is done at once. Returns copies by kind."""
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
    from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

    out = s.schedule()
    meta = out.kv_connector_metadata
    done = OffloadingWorkerMetadata()
    for jobs in (meta.load_jobs, meta.store_jobs):
        for number in jobs:
            done.completed_jobs[number] = 1
    loaded = {job.req_id for job in meta.load_jobs.values()}
    ids = list(out.num_scheduled_tokens)
    sampled = [[7] if (r := s.requests[i]).num_computed_tokens >= r.num_tokens else [] for i in ids]
    s.update_from_output(out, ModelRunnerOutput(
        req_ids=ids, req_id_to_index={r: k for k, r in enumerate(ids)}, sampled_token_ids=sampled, logprobs=None,
        prompt_logprobs_dict={}, pooler_output=[], kv_connector_output=KVConnectorOutput(
            finished_recving=loaded or None, kv_connector_worker_meta=done)))
    return {"load": len(meta.load_jobs), "store": len(meta.store_jobs)}


def serve_request(s, clock, request) -> int:
    """Until it is answered and its copies are made. Returns loads."""
    s.add_request(request)
    loads = 0
    for _ in range(60):
        clock.now += 0.05
        loads += play_step(s)["load"]
        if not s.has_unfinished_requests():
            break
    for _ in range(3):
        loads += play_step(s)["load"]
    assert not s.has_unfinished_requests()
    return loads


@pytest.mark.parametrize(("eviction", "returns"), [("lru", False), ("youngest", True)])
def test_a_session_whose_kv_left_the_gpu_is_loaded_back_if_the_policy_kept_it(tmp_path, eviction, returns):
    """Three contexts of 10 blocks each through 23 GPU blocks and 24 chunks. The middle one has ended: our order gives
    its chunks to the third, LRU those of the first, which then comes back."""
    clock = Clock()
    s, tied = engine(tmp_path / "model", clock, eviction)
    if tied.cache_capacity == 0:
        pytest.skip("this vLLM sizes the tier by KV tensors, and a scheduler without a model has none")
    prompt = {n: list(range(100 * n, 100 * n + 10 * BLOCK)) for n in (1, 2, 3)}
    serve_request(s, clock, make_request("a1", prompt[1], session="a"))
    clock.now += 5.0
    serve_request(s, clock, make_request("b1", prompt[2], session="b", final=1))
    assert len(tied._shelf) == 20
    clock.now += 5.0
    serve_request(s, clock, make_request("c1", prompt[3], session="c"))
    assert tied.counts["failed"] == 0
    kept = sum(tied._shelf.chain_of(k) == s.tracker.chain_of("a") for k in tied._shelf._at)
    assert kept == (10 if returns else 4)
    assert s.kv_cache_manager.reset_prefix_cache()  # nothing of it on the GPU any more
    loads = serve_request(s, clock, make_request("a2", [*prompt[1], 7, 7, 7, 7, *range(30)], session="a"))
    assert loads == 1
    served_from_cpu = s.tracker.chains[s.tracker.chain_of("a")]
    assert served_from_cpu[ch.STEPS] == 2
    prior = F.PRIOR * s.admission.pool_blocks
    assert s.snapshot()["tier found"] == pytest.approx((kept + prior) / (10 + prior), abs=1e-3)
    assert not tied._chain and not tied._seen
    s.shutdown()
