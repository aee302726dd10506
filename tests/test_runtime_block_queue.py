"""The block queue through vLLM's own BlockPool and KVCacheManager: stock order under `lru`, our order otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_kit import BLOCK, make_request, vllm

from saga_rl.policies.registry import make
from saga_rl.runtime.engine.kv.block_queue import PolicyBlockQueue
from saga_rl.runtime.engine.kv.victims import Victims
from saga_rl.runtime.sessions.hints import Hints
from saga_rl.runtime.sessions.tracker import Tracker

assert vllm is not None
from vllm.v1.core.kv_cache_manager import KVCacheManager  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec  # noqa: E402
from vllm.v1.request import RequestStatus  # noqa: E402

N = 24


def manager():
    import torch

    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return KVCacheManager(KVCacheConfig(num_blocks=N, kv_cache_tensors=[],
                                        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]),
                          max_model_len=4096, scheduler_block_size=BLOCK, hash_block_size=BLOCK)


class Engine:
    """Requests against one KVCacheManager, with our queue (policy given) or vLLM's."""

    def __init__(self, policy: str | None, whole: bool | None = None) -> None:
        self.kv = manager()
        self.pool = self.kv.block_pool
        self.queue = None
        self.live = {}
        self.count = 0
        if policy is not None:
            self.tracker = Tracker()
            chosen = make("eviction", policy)
            if whole is not None:
                chosen = replace(chosen, whole_chain=whole)
            victims = Victims(self.tracker, chosen, BLOCK, N - 1, 10.0)
            self.queue = PolicyBlockQueue(self.pool.free_block_queue, N, victims, self.pool._maybe_evict_cached_block)
            self.pool.free_block_queue = self.queue

    def start(self, session: str, tokens: list[int], now: float, final: bool = False):
        """Allocate for the whole prompt. Returns (cached tokens, block ids), or None if it does not fit."""
        self.count += 1
        r = make_request(f"r{self.count}", tokens)
        served = None
        if self.queue is not None:
            self.queue.now = now
            served = self.tracker.arrive(Hints(session=session, final=final), now, len(tokens))
            self.tracker.schedule(served, now)
        blocks, cached, *_ = self.kv.get_computed_blocks(r)
        new = self.kv.allocate_slots(r, len(tokens) - cached, cached, blocks)
        if new is None:
            if served is not None:
                self.tracker.abort(served, now)
            return None
        r.num_computed_tokens = len(tokens)
        r.status = RequestStatus.RUNNING
        self.live[r.request_id] = (r, served)
        return cached, self.kv.get_block_ids(r.request_id)[0]

    def end(self, index: int, now: float) -> None:
        name = sorted(self.live)[index % len(self.live)]
        r, served = self.live.pop(name)
        if self.queue is None:
            self.kv.free(r)
            return
        self.queue.now = now
        tables = self.kv.get_blocks(name).blocks
        before = self.queue.begin_release(served.chain)
        self.kv.free(r)
        self.queue.end_release(before, tables)
        self.tracker.finish(served, now, 1)

    def free_order(self) -> list[int]:
        return [b.block_id for b in self.pool.free_block_queue.get_all_free_blocks()]


def prompt(session: int, branch: int, length: int) -> list[int]:
    """Two blocks that all share, two that pairs of sessions share, then the session's and branch's own. Branch 2 shares
    nothing, so that it can push the others out without touching what they share."""
    if branch == 2:
        return ([3000 + session] * 12 * BLOCK)[:length]
    shared, pair = [1] * 2 * BLOCK, [100 + session // 2] * 2 * BLOCK
    return (shared + pair + [1000 + 10 * session + branch] * 20 * BLOCK)[:length]


LENGTH = st.integers(1, 10 * BLOCK) | st.integers(6, 10).map(lambda blocks: blocks * BLOCK)
ACT = st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 2), LENGTH, st.integers(0, 20),
                st.sampled_from((0.0, 0.0, 1.0, 3.5)))


@settings(max_examples=100, deadline=None)
@given(st.lists(ACT, min_size=5, max_size=60))
def test_under_lru_every_block_and_every_victim_is_the_stock_queues(acts):
    ours, stock = Engine("lru"), Engine(None)
    now = 10.0
    for begin, session, branch, length, which, gap in acts:
        now += gap
        if begin or not ours.live:
            tokens = prompt(session, branch, length)
            assert ours.start(f"s{session}", tokens, now) == stock.start(f"s{session}", tokens, now)
        else:
            ours.end(which, now)
            stock.end(which, now)
        assert ours.free_order() == stock.free_order()
        assert ours.pool.free_block_queue.num_free_blocks == stock.pool.free_block_queue.num_free_blocks


@settings(max_examples=100, deadline=None)
@given(st.lists(ACT, min_size=20, max_size=60),
       st.sampled_from(("youngest", "wa-lru", "lru-protect", "wa-lru-literal")))
def test_under_any_policy_blocks_are_conserved_ancestors_stay_and_nothing_running_is_touched(acts, policy):
    e = Engine(policy)
    now = 10.0
    for begin, session, branch, length, which, gap in acts:
        now += gap
        if begin or not e.live:
            e.start(f"s{session}.{branch == 2}", prompt(session, branch, length), now, final=which == 0)
        else:
            e.end(which, now)
        if e.queue.victims.policy.drop_expired:
            e.queue.drop_past_ttl()
        free = e.free_order()
        assert len(free) == len(set(free)) == e.queue.num_free_blocks
        held = {b.block_id for r, _ in e.live.values() for b in e.kv.get_blocks(r.request_id).blocks[0]}
        assert held.isdisjoint(free)
        assert held | set(free) == set(range(1, N))
        for r, _ in e.live.values():  # I4: what runs still has its hashes
            assert all(b.ref_cnt > 0 for b in e.kv.get_blocks(r.request_id).blocks[0])
        assert_ancestors_resident(e)


def assert_ancestors_resident(e: Engine) -> None:
    """I5: no cached block without the block before it, along every context that was ever sent."""
    cache = e.pool.cached_block_hash_to_block
    for session in range(5):
        for branch in range(3):
            r = make_request("probe", prompt(session, branch, 12 * BLOCK))
            have = [e.pool.get_cached_block(h, [0]) is not None for h in r.block_hashes]
            assert have == sorted(have, reverse=True), (session, branch, have, len(cache))


def test_the_youngest_session_goes_first_tail_first_and_what_others_share_last():
    e = Engine("youngest")
    e.start("old", prompt(0, 0, 6 * BLOCK), 10.0)
    e.end(0, 11.0)
    e.start("young", prompt(2, 0, 6 * BLOCK), 12.0)
    e.end(0, 13.0)
    probe_old, probe_young = (make_request(f"p{s}", prompt(s, 0, 6 * BLOCK)) for s in (0, 2))

    def cached(r) -> int:
        return sum(e.pool.get_cached_block(h, [0]) is not None for h in r.block_hashes)

    assert (cached(probe_old), cached(probe_young)) == (6, 6)
    e.start("new", [9999] * ((N - 1 - 10 + 3) * BLOCK), 14.0)  # three more than the empty ones
    assert (cached(probe_old), cached(probe_young)) == (6, 3)
    assert e.queue.evicted["idle"] == 3
    e.start("next", [7777] * 2 * BLOCK, 15.0)  # the young one's last own block, then the old one's tail
    assert (cached(probe_old), cached(probe_young)) == (5, 2)
    e.start("more", [6666] * 3 * BLOCK, 16.0)
    assert (cached(probe_old), cached(probe_young)) == (2, 2)
    assert e.queue.evicted["shared"] == 0


def test_whole_chain_policies_drop_the_rest_of_the_victim():
    e = Engine("youngest", whole=True)
    e.start("old", prompt(0, 0, 6 * BLOCK), 10.0)
    e.end(0, 11.0)
    e.start("young", [5] * 6 * BLOCK, 12.0)
    e.end(0, 13.0)
    e.start("new", [9999] * ((N - 1 - 12 + 1) * BLOCK), 14.0)
    assert e.queue.n_empty == 5
    assert e.queue.evicted["whole"] == 5
    assert all(e.pool.get_cached_block(h, [0]) is None for h in make_request("p", [5] * 6 * BLOCK).block_hashes)


def test_idle_kv_is_ranked_once_a_step_and_anew_where_something_was_released():
    e = Engine("wa-lru")
    for k in range(3):
        e.start(f"s{k}", [900 + k] * 6 * BLOCK, 10.0 + k)
    for k in range(2):
        e.end(0, 20.0 + 2 * k)
    e.queue.now = 40.0
    e.queue.popleft_n(e.queue.n_empty)
    asked, scores = [], e.queue.victims.scores
    e.queue.victims.scores = lambda runs, slots, now: asked.append((now, len(slots))) or scores(runs, slots, now)
    order = [b.block_id for b in e.queue.get_all_free_blocks()]
    asked.clear()
    assert [e.queue.popleft().block_id for _ in range(4)] == order[:4]
    assert asked == [(40.0, 2)], "one step, one ranking"
    e.end(0, 40.0)
    e.queue.popleft()
    assert asked == [(40.0, 2), (40.0, 3)], "what was released in a step can go in it"
    e.queue.now = 41.0
    for _ in range(3):
        e.queue.popleft()
    assert asked == [(40.0, 2), (40.0, 3), (41.0, 3)]


def test_what_a_returning_session_leaves_is_a_candidate_in_the_same_step():
    """Ranked, then touched: nothing of it is taken while it is in use, and all else can still go."""
    e = Engine("wa-lru")
    for k in range(3):
        e.start(f"s{k}", [900 + k] * 5 * BLOCK, 10.0 + k)
        e.end(0, 20.0 + k)
    e.queue.now = 40.0
    e.queue.popleft_n(e.queue.n_empty + 1)
    _, mine = e.start("s1", [901] * 5 * BLOCK, 40.0)
    taken = [b.block_id for b in e.queue.popleft_n(e.queue.num_free_blocks)]
    assert not set(taken) & set(mine)
    assert len(set(taken)) == len(taken) and e.queue.num_free_blocks == 0 and not e.queue.runs.all()


def test_a_session_that_returns_is_put_down_once_and_reads_the_same_as_block_for_block():
    """Touched from the prefix on, as vLLM does; from the tail; and with others in between."""
    def touched(order, look: bool):
        e = Engine("youngest")
        for k in range(2):
            e.start(f"s{k}", prompt(k, 0, 9 * BLOCK), 10.0 + k)
        for k in range(2):
            e.end(0, 12.0 + k)
        chains = [list(run)[::-1] for run in e.queue.runs.all()]
        for run, at in order:
            e.queue.remove(chains[run].pop(at))
            if look:
                assert e.queue.runs.all()
        runs = e.queue.runs
        return ([(r.seq, [b.block_id for b in r], r.num_free_blocks) for r in runs.all()], runs.base, runs.on,
                runs.owned.tolist(), dict(runs.idle), runs.table.tolist(), e.queue.num_free_blocks)

    for order in ([(0, 0)] * 3, [(0, -1)] * 3, [(0, 1), (0, 0), (1, 0), (0, 0), (1, 0), (1, 0)],
                  [(0, 0)] * 4 + [(1, 2)]):
        assert touched(order, False) == touched(order, True)


def test_iteration_after_a_cursor_and_the_empty_queue():
    e = Engine("lru")
    order = e.pool.free_block_queue.get_all_free_blocks()
    assert list(e.queue.iter_blocks_after(order[3])) == order[4:]
    assert list(e.queue.iter_blocks_after(None)) == order
    e.queue.popleft_n(N - 1)
    with pytest.raises(ValueError, match="No free blocks"):
        e.queue.popleft()
