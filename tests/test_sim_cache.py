"""The block pool as the closed loop uses it: chunks, copies, partial pins; its invariants after every move."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_strings import BLOCK, random_trace

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.forest import build_forest
from saga_rl.aeg.trace import TraceMeta
from saga_rl.policies.features import EVICTION, G_TAU_MAX, make_g
from saga_rl.policies.registry import make
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state.tables import make_tables
from saga_rl.sim.cache import evict as ev
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.compiled.jit import compiled


class Worker:
    """One worker's pool with the calls that a scheduler makes."""

    def __init__(self, trace, blocks: int, eviction: str = "lru") -> None:
        forest = build_forest(trace, BLOCK)
        self.tree = kv.make_tree(forest)
        self.pool = kv.make_pool(1, blocks, len(forest.seg_parent), len(forest.chain_session))
        self.chains = ch.make_chains(len(forest.chain_session))
        self.tables = make_tables(1, len(trace.tools), len(trace.agent_types))
        self.g = make_g(1, 0, 0, make("eviction", "wa-lru"))
        self.policy = make("eviction", eviction)
        self.next_use = np.full(len(forest.seg_parent), np.nan)
        self.running: dict[int, list[int]] = {}

    @property
    def n(self) -> np.ndarray:
        return self.pool.n[0]

    def room(self, need: int, now: float) -> None:
        if self.n[kv.FREE] >= need:
            return
        scratch, row, scores = np.zeros(1), np.zeros(len(EVICTION)), np.zeros(len(self.next_use))
        policy = self.policy.score, self.policy.params, scratch
        args = (self.pool, self.chains, self.tables, self.g, 0, now, self.next_use, *policy, row, scores)
        compiled(ev.rank.py_func, args, (7,))(*args)
        args = (self.tree, self.pool, self.chains, self.tables, self.g, 0, need, now, self.next_use, *policy,
                self.policy.whole_chain, row, scores)
        compiled(ev.make_room.py_func, args, (9,))(*args)

    def grow(self, step: int, want: int, now: float) -> bool:
        """Extend a running step to `want` tokens; False if that does not fit."""
        held, have, copies = self.running[step]
        need = -(-want // BLOCK) - -(-have // BLOCK)
        if self.n[kv.FREE] + kv.evictable(self.pool, 0) < need:
            return False
        self.room(need, now)
        held, more = kv.grow(self.tree, self.pool, 0, step, held, have, want, BLOCK)
        self.running[step] = [held, want, copies + more]
        return True

    def start(self, step: int, prompt: int, want: int, now: float) -> bool:
        cached = min(kv.resident_prefix(self.tree, self.pool, 0, step), (prompt - 1) // BLOCK)
        want = max(want, cached * BLOCK + 1)
        need = -(-want // BLOCK) - cached
        if self.n[kv.FREE] + kv.evictable(self.pool, 0) - kv.idle_hit_blocks(
                self.tree, self.pool, 0, step, cached) < need:
            return False
        self.running[step] = [kv.pin(self.tree, self.pool, 0, step, 0, cached), cached * BLOCK, 0]
        return self.grow(step, want, now)

    def release(self, step: int, now: float) -> None:
        held, have, copies = self.running.pop(step)
        kv.release(self.tree, self.pool, 0, step, held, have, copies, now, BLOCK)

    def check(self) -> None:
        t, p, n = self.tree, self.pool, self.n
        res = p.res[:len(t.parent)]
        assert n[kv.FREE] + n[kv.PRIVATE] + n[kv.RESIDENT] == n[kv.POOL], "I1"
        assert (n[:4] >= 0).all(), "I1"
        assert n[kv.RESIDENT] == res.sum(), "I1"
        assert n[kv.PINNED] == res[p.ref[:len(t.parent)] > 0].sum(), "I1"
        assert n[kv.PRIVATE] == sum(c + (h % BLOCK > 0) for _, h, c in self.running.values()), "I1"
        assert sorted(p.idle[0, :n[kv.IDLE]]) == np.flatnonzero((res > 0) & (p.ref[:len(t.parent)] == 0)).tolist()
        assert p.owned.sum() == n[kv.RESIDENT] - n[kv.PINNED]
        assert (res <= p.ever).all()
        for step, (_, have, _) in self.running.items():
            assert kv.resident_prefix(t, p, 0, step) >= have // BLOCK, "I4"
        for seg in np.flatnonzero(res):
            up = t.parent[seg]
            assert up < 0 or res[up] == t.blocks[up], "I5"
        kids = np.bincount(t.parent[(res > 0) & (t.parent >= 0)], minlength=len(res))
        assert (kids == p.kids[:len(res)]).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_invariants_under_random_scheduling(seed):
    rng = random.Random(seed)
    trace = random_trace(seed, sessions=4, steps=5, hashes=seed % 3 == 0)
    context = trace.steps.prompt_tokens + trace.steps.output_tokens - 1
    worker = Worker(trace, int(-(-context.max() // BLOCK)) + rng.randint(0, 6))
    for now in range(60):
        step = rng.randrange(trace.n_steps)
        if step not in worker.running:
            prompt = int(trace.steps.prompt_tokens[step])
            worker.start(step, prompt, rng.randint(1, prompt), float(now))
        elif rng.random() < 0.5:
            worker.grow(step, rng.randint(worker.running[step][1], int(context[step])), float(now))
        else:
            worker.release(step, float(now))
        worker.check()
    for step in list(worker.running):
        worker.release(step, 99.0)
    worker.check()
    assert worker.n[kv.PRIVATE] == worker.n[kv.PINNED] == 0


def chain_of(*outputs: int) -> list[StepSpec]:
    return [StepSpec(9, o) for o in outputs]


def branches(seed_prompt: int = 17) -> tuple:
    """One session: a trunk of 4 blocks, two sub-agents that continue it by 2 blocks each."""
    trunk = StepSpec(seed_prompt, 1)
    leaves = [StepSpec(25, 1, (0,), agent, prefix_step=0, prefix_tokens=17) for agent in (1, 2)]
    return build_trace(TraceMeta("x", "generated:test"), [SessionSpec("s", 0.0, [trunk, *leaves])])


def serve(worker: Worker, step: int, prompt: int, now: float) -> None:
    assert worker.start(step, prompt, prompt, now)
    worker.release(step, now)


def test_the_trunk_goes_after_every_branch():
    worker = Worker(branches(), 20)
    for step, prompt in enumerate((17, 25, 25)):
        serve(worker, step, prompt, float(step))
    trunk, one, two = (int(worker.tree.path[worker.tree.path_off[i + 1] - 1]) for i in range(3))
    assert worker.pool.res[[trunk, one, two]].tolist() == [4, 2, 2]
    order = []
    for need in range(13, 21):
        before = worker.pool.res[:len(worker.tree.parent)].copy()
        worker.room(need, 10.0)
        order.append(int(np.flatnonzero(before != worker.pool.res[:len(worker.tree.parent)])[0]))
    assert order == [one, one, two, two, trunk, trunk, trunk, trunk]


def test_a_whole_chain_goes_at_once_and_only_its_own():
    worker = Worker(branches(), 20, "wa-lru-literal:cold_tasks=0")
    for step, prompt in enumerate((17, 25, 25)):
        serve(worker, step, prompt, float(step))
    worker.room(13, 10.0)
    assert worker.n[kv.FREE] == 14, "both blocks of the larger chain's branch, though one would do; the trunk is in use"
    worker.room(15, 10.0)
    assert worker.n[kv.FREE] == 16, "the other branch; the trunk belongs to the chain that released it last"
    worker.room(17, 10.0)
    assert worker.n[kv.FREE] == 20
    single = Worker(branches(), 20, "wa-lru-literal")
    serve(single, 0, 17, 0.0)
    serve(single, 1, 25, 1.0)
    single.room(15, 10.0)
    assert single.n[kv.FREE] == 20, "a branch and the trunk that only its chain still owns"


def test_vllm_releases_and_evicts_in_the_same_order():
    """Blocks of equal release time go tail first: a chain's tail before its head, earlier releases before later."""
    trace = build_trace(TraceMeta("x", "generated:test"), [SessionSpec(c, 0.0, chain_of(1)) for c in "ab"])
    worker = Worker(trace, 4)
    serve(worker, 0, 9, 1.0)
    serve(worker, 1, 9, 1.0)
    worker.room(1, 5.0)
    assert worker.pool.res[:len(worker.tree.parent)].tolist() == [1, 2]
    worker.room(3, 5.0)
    assert worker.pool.res[:len(worker.tree.parent)].tolist() == [0, 1]


def test_the_largest_idle_time_is_known_before_any_row_is_made():
    trace = build_trace(TraceMeta("x", "generated:test"), [SessionSpec(c, 0.0, chain_of(1)) for c in "ab"])
    rows = []
    for first, second in ((0, 1), (1, 0)):
        worker = Worker(trace, 40)
        for step in (first, second):
            serve(worker, step, 9, 3.0 if step else 1.0)
        ev.refresh(worker.pool, worker.chains, worker.tables, worker.g, 0, 11.0)
        row = np.zeros((2, len(EVICTION)))
        for k in range(2):
            seg = worker.pool.idle[0, k]
            ev.row_of(worker.pool, worker.chains, worker.tables, worker.g, 0, seg, 11.0, worker.next_use, row[seg])
        rows.append(row)
        assert worker.g[0, G_TAU_MAX] == 10.0
    np.testing.assert_array_equal(rows[0], rows[1])


@pytest.mark.parametrize(("idle_s", "waiting", "left"), [(9.0, 0, 2), (11.0, 0, 0), (11.0, 1, 2)])
def test_literal_ttl_drops_expired_chains_that_do_not_wait(idle_s, waiting, left):
    """Cold start: the TTL is 10 s."""
    trace = build_trace(TraceMeta("x", "generated:test"), [SessionSpec("a", 0.0, chain_of(1))])
    worker = Worker(trace, 40)
    serve(worker, 0, 9, 0.0)
    worker.chains[0, ch.WAITING] = waiting
    ev.drop_expired(worker.tree, worker.pool, worker.chains, worker.tables, worker.g, 0, idle_s, worker.next_use,
                    np.zeros(len(EVICTION)))
    assert worker.n[kv.RESIDENT] == left
    worker.check()


def test_dropping_climbs_a_chain_of_segments():
    worker = Worker(branches(), 20)
    for step, prompt in enumerate((17, 25, 25)):
        serve(worker, step, prompt, 0.0)
    ev.drop_expired(worker.tree, worker.pool, worker.chains, worker.tables, worker.g, 0, 50.0, worker.next_use,
                    np.zeros(len(EVICTION)))
    assert worker.n[kv.RESIDENT] == 0
    worker.check()
