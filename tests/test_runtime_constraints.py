"""Fairness between tenants on vLLM's real scheduler, which no policy overrides: random scores in every decision, and
small cases with the numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from runtime_kit import BLOCK, Clock, drain, make_request, make_scheduler, step, vllm

from saga_rl.errors import UserError
from saga_rl.policies.base import DECISIONS, SCORE, Policy, PolicySet
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import service as sv
from saga_rl.runtime.config.settings import read_config, read_floors

assert vllm is not None
from saga_rl.runtime.engine.scheduler import SagaScheduler, SagaSyncScheduler  # noqa: E402


@njit(SCORE)
def _noise(x, params, scratch):
    """A hash of the row."""
    h = params[0]
    for i in range(len(x)):
        if x[i] == x[i]:
            h = np.sin(h + 0.37 * i + 12.9898 * x[i]) * 43758.5453
            h -= np.floor(h)
    return 2.0 * h - 1.0


def noise(seed: int) -> PolicySet:
    """Random scores; an admission that refuses at random; half of the time an order that is made anew each time."""
    params = np.array([float(seed)])
    one = {decision: Policy(decision, "noise", _noise, params) for decision in DECISIONS}
    return replace(PolicySet(**one), ordering=replace(one["ordering"], fresh=seed % 2 == 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


class Crowd:
    """Requests of several tenants at random: sessions that grow, prefixes that tenants share, ends and returns."""

    def __init__(self, seed: int, tenants: int) -> None:
        self.rng, self.tenants, self.sent = random.Random(seed), tenants, 0
        self.contexts: dict[tuple[int, int], list[int]] = {}
        self.busy: dict[str, tuple[int, int]] = {}

    def maybe_send(self, scheduler) -> None:
        rng = self.rng
        tenant = min(rng.randrange(self.tenants), rng.randrange(self.tenants))  # some ask for much more than others
        key = tenant, rng.randrange(6)
        if key in self.busy.values():
            return
        tokens = self.contexts.get(key, [1] * BLOCK * rng.randrange(4))
        tokens = tokens + [100 + 10 * tenant + key[1]] * rng.randrange(1, 5 * BLOCK)
        if len(tokens) > 20 * BLOCK:
            tokens = tokens[:BLOCK] + [rng.randrange(1000, 9000)] * BLOCK
        self.contexts[key] = tokens
        self.sent += 1
        name = f"r{self.sent}"
        self.busy[name] = key
        scheduler.add_request(make_request(name, tokens, output=rng.randrange(1, 24), session=f"s{key}",
                                           tenant=f"t{tenant}", final=int(rng.random() < 0.1)))

    def play(self, scheduler, clock: Clock, look, iterations: int = 250) -> None:
        done = 0
        for _ in range(iterations):
            while self.rng.random() < 0.55:
                self.maybe_send(scheduler)
            for name in step(scheduler):
                del self.busy[name]
                done += 1
            clock.now += 0.03
            look(scheduler)
        done += len(drain(scheduler, clock))
        assert done == self.sent > 50
        pool = scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
        assert not scheduler.service.counters[0, :-1, sv.WAITING].any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from((0.0, 50.0, 800.0)), st.booleans())
def test_service_of_tenants_that_wait_stays_within_the_bound_whatever_the_scores(folder, seed, gap, fcfs):
    clock, policies = Clock(), noise(seed)
    if fcfs:  # the gap also holds where vLLM's own queue would stand
        policies = replace(policies, ordering=make("ordering", "fcfs"))
    s = make_scheduler(SagaSyncScheduler, folder, clock=clock, blocks=48, seqs=4, policies=policies,
                       saga={"service_gap_tokens": gap})
    limit = sv.bound(gap, 25 * BLOCK, 4, 24)

    def look(s) -> None:
        counted: dict[int, int] = {}
        for r in s.waiting:
            served = s.served[r.request_id]
            counted[served.tenant] = counted.get(served.tenant, 0) + 1
        counters = s.service.counters[0]
        assert {t: int(n) for t, n in enumerate(counters[:-1, sv.WAITING]) if n} == counted
        if counted:
            waiting = counters[list(counted), sv.COUNTER]
            assert waiting.max() - waiting.min() <= limit

    Crowd(seed, 3).play(s, clock, look)
    assert 0 < s.service.spread <= limit


def test_without_the_constraint_a_flood_keeps_another_tenant_waiting_and_with_it_does_not(folder):
    """One request at a time, 32 prompt tokens computed and 4 generated: 40 tokens of service each. Ten of tenant a
    come before one of b."""
    place = {}
    for gap in (None, 100.0):
        clock = Clock()
        s = make_scheduler(SagaSyncScheduler, folder, clock=clock, seqs=1,
                           saga={"policy": "lru", "service_gap_tokens": gap})
        for k in range(10):
            s.add_request(make_request(f"a{k}", [10 + k] * 2 * BLOCK, output=4, tenant="a"))
        s.add_request(make_request("b", [99] * 2 * BLOCK, output=4, tenant="b"))
        place[gap] = drain(s, clock).index("b")
    assert place == {None: 10, 100.0: 3}  # b begins at a's counter, 0; a is at 40, 80, then 120 > 0 + 100


def test_service_counts_computed_prompt_once_and_every_generated_token(folder):
    clock = Clock()
    s = make_scheduler(SagaSyncScheduler, folder, clock=clock, blocks=17, saga={"policy": "lru"})
    counters = s.service.counters[0]
    for name, tokens, output in (("r0", [1] * 40, 5), ("r1", [1] * 60, 3)):
        s.add_request(make_request(name, tokens, output=output, session="s", tenant="a"))
        drain(s, clock)
    assert counters[0, sv.COUNTER] == 40 + 2 * 5 + (60 - 32) + 2 * 3  # two of the first request's blocks are cached
    for name, tenant in (("x", "b"), ("y", "c")):  # both grow until one is preempted, which is not charged again
        s.add_request(make_request(name, [7 + ord(name)] * 112, output=60, session=name, tenant=tenant))
    drain(s, clock)
    assert s.metrics.counts["preemptions"] > 0
    base = counters[0, sv.COUNTER]  # who begins to wait while nobody does starts where the tenant served last is
    assert sorted(s.service.counters[0, 1:3, sv.COUNTER] - base) == [112 + 2 * 60] * 2


class Auditor:
    """Counts, by itself, what each tenant has whenever blocks are taken, and holds it against its floor."""

    def __init__(self, s, shares: dict[str, float]) -> None:
        self.s, self.shares, self.queue = s, shares, s.block_queue
        self.seen = self.broken = 0
        self._inner_pop = self.queue._pop
        self.queue._pop = self._pop

    def has(self, tenant: int) -> int:
        s, runs = self.s, self.queue.runs
        idle = sum(r.num_free_blocks for r in runs.all()
                   if s.tracker.chains[r.chain, ch.TENANT] == tenant)
        table = s.kv_cache_manager.get_block_ids
        return idle + sum(len(table(r.request_id)[0]) for r in s.running
                          if s.served[r.request_id].tenant == tenant)

    def _pop(self, run, most, out):
        had, taken = self.has(run.tenant), self._inner_pop(run, most, out)
        self.seen += taken
        names = {code: name for name, code in self.s.tracker.tenants.codes.items()}
        if run.tenant in names and run.tenant != self.queue.tenant:
            share = self.shares.get(names[run.tenant], self.shares.get("*", 0.0))
            within = taken - max(had - int(share * self.s.admission.pool_blocks), 0)
            if within > 0:
                assert len(self.s.running) <= 1, "a floor is broken although another request could make room"
                self.broken += within
        return taken


def honest_counts(floors) -> None:
    """Hold every answer of what may be taken against a count of everything: never more, and less only beyond what was
    asked about."""
    stock = floors.takeable

    def takeable(runs, tenant, evictable, at_least=math.inf, gone=0):
        have = stock(runs, tenant, evictable, at_least, gone)
        spare = floors.spare(runs, tenant)
        whole = floors._walk(runs, spare) if spare and runs.on else evictable - sum(
            runs.idle[t] - n for t, n in spare.items())
        assert have == whole or (have < whole and have >= at_least) or have == 0 >= at_least
        return have

    floors.takeable = takeable


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from(({"*": 0.2}, {"t0": 0.5, "t1": 0.3}, {"t2": 0.6, "*": 0.1})))
def test_floors_hold_whatever_the_scores_while_more_than_one_request_runs(folder, seed, floors):
    clock = Clock()
    s = make_scheduler(SagaSyncScheduler, folder, clock=clock, blocks=40, seqs=4, policies=noise(seed),
                       saga={"kv_floors": floors})
    auditor = Auditor(s, floors)
    honest_counts(s.block_queue.floors)
    Crowd(seed, 3).play(s, clock, lambda s: None)
    assert auditor.seen > 20
    assert auditor.broken == s.block_queue.floors.breaks


def test_a_floor_keeps_a_tenants_cache_and_gives_way_only_to_a_request_alone(folder):
    """39 blocks. Tenant a leaves 12 blocks and may lose those above 10."""
    clock = Clock()
    s = make_scheduler(SagaSyncScheduler, folder, clock=clock, blocks=40,
                       saga={"policy": "lru", "kv_floors": {"a": 0.26}})  # 10.14 of 39 blocks

    def ask(name, token, blocks, output=4, **hints):
        s.add_request(make_request(name, [token] * (blocks * BLOCK), output=output, session=name, **hints))

    def cached(token, blocks):
        hashes = make_request("probe", [token] * (blocks * BLOCK)).block_hashes
        return sum(s.kv_cache_manager.block_pool.get_cached_block(h, [0]) is not None for h in hashes)

    ask("a", 5, 12, tenant="a")
    drain(s, clock)
    ask("running", 6, 3, output=30, tenant="b")
    step(s)
    ask("big", 7, 26, tenant="b")  # 39 - 10 - 4: a block short
    step(s)
    assert [r.request_id for r in s.waiting] == ["big"]
    assert cached(5, 12) == 12
    drain(s, clock)
    assert (cached(5, 12), s.block_queue.floors.breaks) == (10, 0)  # it went when the other was done: 26 + 1 + 2
    ask("alone", 8, 32, tenant="b")
    drain(s, clock)
    assert (cached(5, 12), s.block_queue.floors.breaks) == (39 - 33, 4)


def test_floors_of_tenants_that_appear_shrink_together(folder):
    s = make_scheduler(SagaSyncScheduler, folder, blocks=101, saga={"policy": "lru", "kv_floors": {"a": 0.5, "*": 0.2}})
    floors, codes = s.block_queue.floors, s.tracker.tenants
    for name in ("a", "b", "c"):
        codes.code(name)
    assert floors.blocks() == {0: 50, 1: 20, 2: 20}
    codes.code("d")
    assert floors.blocks() == {0: 50, 1: 13, 2: 13, 3: 13}


def test_a_request_that_waits_too_long_makes_a_tenant_with_less_need_yield_and_its_kv_stays(folder):
    clock = Clock()
    s = make_scheduler(SagaSyncScheduler, folder, clock=clock, seqs=2,
                       saga={"policy": "lru", "afs_preempt_s": 0.5})
    for name in ("calm1", "calm2"):
        s.add_request(make_request(name, [ord(name[-1])] * 4 * BLOCK, output=60, session=name, tenant="calm",
                                   deadline_s=5000))
    step(s)
    clock.now += 0.05
    for name in ("urgent1", "urgent2"):
        s.add_request(make_request(name, [ord(name[-1]) + 9] * 2 * BLOCK, output=3, session=name, tenant="urgent",
                                   deadline_s=5))
    states = []
    for _ in range(40):
        states.append(([r.request_id for r in s.running], s.metrics.counts["afs preemptions"], clock.now))
        step(s)
        clock.now += 0.05
    running = [x for x, _, _ in states]
    first = next(k for k, x in enumerate(running) if "urgent1" in x)
    assert running[first] == ["calm1", "urgent1"]  # the one that was scheduled last yields; fcfs alone would resume it
    assert 0.5 < states[first][2] - 1000.05 < 0.7
    assert max(b - a for (_, a, _), (_, b, _) in itertools.pairwise(states)) == 1
    times = [t for (_, a, t), (_, b, _) in itertools.pairwise(states) if b > a]
    assert all(b - a >= 0.5 - 1e-9 for a, b in itertools.pairwise(times))
    assert len(times) == 2
    assert not any(len(x) > 2 for x in running)
    calm2 = s.requests["calm2"]
    served = s.served["calm2"]
    assert (served.preemptions, served.yields, served.cached_tokens) == (2, 2, 0)  # once for each of the urgent ones
    assert calm2.num_preemptions == 2
    drain(s, clock)
    assert s.kv_cache_manager.block_pool.get_num_free_blocks() == 63


def test_a_tenant_with_more_need_is_not_made_to_yield(folder):
    clock = Clock()
    s = make_scheduler(SagaSyncScheduler, folder, clock=clock, seqs=1, saga={"policy": "lru", "afs_preempt_s": 0.5})
    s.add_request(make_request("urgent", [3] * BLOCK, output=60, session="u", tenant="urgent", deadline_s=2))
    step(s)
    s.add_request(make_request("calm", [4] * BLOCK, output=2, session="c", tenant="calm", deadline_s=5000))
    drain(s, clock)
    assert s.metrics.counts["afs preemptions"] == s.metrics.counts["preemptions"] == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20))
def test_all_constraints_at_once_over_the_asynchronous_scheduler_and_everyone_is_served(folder, seed):
    clock = Clock()
    s = make_scheduler(SagaScheduler, folder, clock=clock, blocks=44, seqs=4, policies=noise(seed),
                       saga={"service_gap_tokens": 200.0, "kv_floors": {"*": 0.2}, "afs_preempt_s": 0.2})
    Auditor(s, {"*": 0.2})
    Crowd(seed, 3).play(s, clock, lambda s: None)
    assert s.service.spread <= sv.bound(200.0, 25 * BLOCK, 4, 24)


def test_steps_in_flight_survive_a_preemption_between_them(folder):
    """The asynchronous scheduler composes the next step before the last one's tokens are there."""
    from vllm.v1.outputs import ModelRunnerOutput

    clock = Clock()
    s = make_scheduler(SagaScheduler, folder, clock=clock, seqs=1, saga={"policy": "lru", "afs_preempt_s": 0.2})
    s.add_request(make_request("calm", [3] * 2 * BLOCK, output=30, session="c", tenant="calm", deadline_s=5000))
    flight, ended = [], set()
    for k in range(200):
        if k == 3:
            s.add_request(make_request("urgent", [4] * 2 * BLOCK, output=5, session="u", tenant="urgent", deadline_s=2))
        out = s.schedule()
        sampled = [[7] if s.requests[r].num_computed_tokens >= s.requests[r].num_tokens else []
                   for r in out.num_scheduled_tokens]
        flight.append((out, sampled))
        if len(flight) == 2 or not s.has_unfinished_requests():
            out, sampled = flight.pop(0)
            ids = list(out.num_scheduled_tokens)
            before = dict(s.requests)
            s.update_from_output(out, ModelRunnerOutput(
                req_ids=ids, req_id_to_index={r: i for i, r in enumerate(ids)}, sampled_token_ids=sampled,
                logprobs=None, prompt_logprobs_dict={}, pooler_output=[]))
            ended |= {r: before[r].num_output_tokens for r in before if r not in s.requests}.items()
        clock.now += 0.05
    assert ended == {("calm", 30), ("urgent", 5)}
    assert s.metrics.counts["afs preemptions"] == 1
    assert s.kv_cache_manager.block_pool.get_num_free_blocks() == 63


# ---------------------------------------------------------------- configuration
@pytest.mark.parametrize(("saga", "message"), [
    ({"service_gap_tokens": -1}, "service gap: is -1"),
    ({"service_gap_tokens": "much"}, "service_gap_tokens: is 'much'; give a number"),
    ({"kv_floors": [0.5]}, "kv_floors: is [0.5]; give shares by tenant"),
    ({"kv_floors": {"a": 0.5, "b": 0.41}}, "KV floors: claim 0.91 of the pool; claim at most 0.9"),
    ({"kv_floors": {"a": 1.5}}, "KV floor of tenant 'a': is 1.5"),
    ({"afs_preempt_s": 0}, "AFS preemption: after 0 s"),
])
def test_a_constraint_that_cannot_be_is_told_in_one_line(saga, message):
    with pytest.raises(UserError) as e:
        read_config({"saga": saga})
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_floors_as_they_are_written():
    assert read_floors(["a=0.2", "0.1", "x=y=0.3"]) == {"a": 0.2, "*": 0.1, "x=y": 0.3}
    for bad, message in ((["a=lots"], "'lots' is not a number"), (["0.1", "*=0.2"], "names \\* a second time")):
        with pytest.raises(UserError, match=message):
            read_floors(bad)


def test_presets_set_no_constraint():
    assert preset("saga+").ordering.name == "session-fcfs"
    assert not read_config({"saga": {}}).constraints.active


@pytest.mark.parametrize("floors", [{"*": 0.1}, {"t1": 0.3, "t2": 0.3, "t3": 0.25}])
def test_floors_cost_what_changes_not_what_runs_or_is_idle(folder, floors):
    """Of 64 requests that run, each needs a block in one of 16 steps: what they hold is looked at then, and all that is
    idle is walked through only after something was let go of, if at all."""
    clock = Clock()
    s = make_scheduler(SagaSyncScheduler, folder, clock=clock, blocks=790, seqs=70, batched=4096,
                       saga={"policy": {"eviction": "bayes-tables"}, "kv_floors": floors})
    prefix = [5] * 2 * BLOCK  # shared: much is built on it
    for i in range(120):
        s.add_request(make_request(f"i{i}", prefix + [1000 + i] * 4 * BLOCK, session=f"s{i}", tenant=f"t{i % 4}"))
        drain(s, clock)
    for i in range(64):
        s.add_request(make_request(f"r{i}", [5000 + i] * (3 * BLOCK + i % BLOCK), session=f"q{i}", output=200,
                                   tenant=f"t{i % 4}"))
    while s.waiting:
        step(s)
    taken = s.block_queue.taken
    s.pins.updates = s.block_queue.floors.walks = 0
    for _ in range(16):
        step(s)
    assert len(s.running) == 64
    assert s.pins.updates <= 64 + 4 and s.block_queue.floors.walks <= 4
    assert s.block_queue.taken > taken and s.block_queue.runs.on  # it evicts, and floors and prefixes are asked about
    tables = s.kv_cache_manager.get_block_ids
    assert +s.pins.by_tenant == Counter(
        {t: sum(len(tables(r.request_id)[0]) for r in s.running if s.served[r.request_id].tenant == t)
         for t in range(4)})
