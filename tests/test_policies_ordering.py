"""Ordering baselines do what their sources claim, on rows of the real row functions, beside the papers' rules."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.policies import features as F
from saga_rl.policies.registry import make
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import service as sv
from saga_rl.policies.state import tables as tb

quick = settings(max_examples=150, deadline=None)


def waiting(chains, tables, spec: str, requests: list[dict], now=1000.0, service=None) -> list[int]:
    """The requests' numbers in the policy's order. A request: chain, arrival, and what `ordering_row` is told of it."""
    policy, out = make("ordering", spec), np.zeros(len(F.ORDERING))
    keys = []
    for r in requests:
        tenant = int(chains[r["chain"], ch.TENANT])
        has, least = (service[0, tenant, sv.COUNTER], sv.least(service, 0)) if service is not None else (0.0, 0.0)
        F.ordering_row(chains, tables, 0, r["chain"], now, float(r["arrival"]), 100.0, r.get("preempted", 0.0), 0.0,
                       float(r.get("cached", 0)), has, least, out)
        keys.append((policy.score(out, policy.params, np.zeros(1)), r["arrival"]))
    return sorted(range(len(keys)), key=lambda k: keys[k])


def test_las_queues():
    chains, tables = ch.make_chains(5), tb.make_tables(1, 1, 1)
    chains[:, ch.ATTAINED] = [1.9, 2.0, 3.9, 4.0, 0.0]  # queues 0 (below 2 s), 1 (below 4), 1, 2 (below 8), 0
    asked = [{"chain": c, "arrival": 10 - c} for c in range(5)]
    assert waiting(chains, tables, "las", asked) == [4, 0, 2, 1, 3]  # first come first served within a queue
    assert waiting(chains, tables, "las:base_s=100", asked) == [4, 3, 2, 1, 0]  # one queue for all
    # all have waited for 990 s or more: over 240 times what each of them had, 400 times for those below 2.4 s
    assert waiting(chains, tables, "las:starve=240", asked) == [4, 3, 2, 1, 0]
    assert waiting(chains, tables, "las:starve=400", asked) == [4, 1, 0, 2, 3]
    # 500 times: a chain with hardly any service counts as one with base_s
    assert waiting(chains, tables, "las:starve=500", asked) == [4, 0, 2, 1, 3]


def test_a_preempted_request_keeps_its_place():
    chains, tables = ch.make_chains(3), tb.make_tables(1, 1, 1)
    chains[2, ch.ATTAINED] = 50.0
    asked = [{"chain": 0, "arrival": 2}, {"chain": 1, "arrival": 1, "preempted": 1.0}, {"chain": 2, "arrival": 0,
             "preempted": 1.0}]
    assert waiting(chains, tables, "las", asked) == [1, 0, 2]
    assert waiting(chains, tables, "vtc", asked, service=sv.make_service(1, 1)) == [2, 1, 0]
    assert waiting(chains, tables, "fcfs", asked) == [2, 1, 0]


def test_srpt_takes_the_shortest_expected_rest():
    chains, tables = ch.make_chains(4), tb.make_tables(1, 1, 2)
    for agent_type, steps, step_s in ((0, 10.0, 4.0), (1, 30.0, 1.0)):
        tables.types[0, agent_type, [tb.STEPS, tb.STEP_S]] = steps, step_s
    for c, (agent_type, done) in enumerate([(0, 0), (0, 8), (1, 0), (1, 50)]):
        chains[c, ch.TYPE], chains[c, ch.STEPS] = agent_type, done
    # expected rest: 40 s, 8 s, 30 s, 1 s (never less than a step)
    assert waiting(chains, tables, "srpt", [{"chain": c, "arrival": c} for c in range(4)]) == [3, 1, 2, 0]


class Engine:
    """Serves one request at a time in a policy's order, with the counters of `policies.state.service`."""

    def __init__(self, spec: str, tenants: int) -> None:
        self.spec, self.queue, self.counters = spec, [], sv.make_service(1, tenants)
        self.chains, self.tables = ch.make_chains(tenants), tb.make_tables(1, 1, 1)
        self.chains[:, ch.TENANT] = np.arange(tenants)

    def arrive(self, request: dict) -> None:
        sv.queued(self.counters, 0, request["chain"])
        self.queue.append(request)

    def serve(self) -> dict:
        r = self.queue.pop(waiting(self.chains, self.tables, self.spec, self.queue, service=self.counters)[0])
        sv.left(self.counters, 0, r["chain"], True)
        sv.charge(self.counters, 0, r["chain"], r["prompt"], r["output"])
        return r


requests = st.lists(st.fixed_dictionaries({
    "chain": st.integers(0, 1), "prompt": st.integers(1, 500), "output": st.integers(1, 200),
    "cached": st.integers(0, 20).map(lambda k: 64 * k), "before": st.integers(0, 3)}), min_size=1, max_size=30)


def vtc_reference(asked: list[dict]) -> list[int]:
    """Algorithm 2 of the VTC paper for an engine that takes one request at a time; `before` requests are served between
    two arrivals."""
    counter, queue, order, last = {0: 0, 1: 0}, [], [], None

    def serve():
        nonlocal last
        if queue:
            first = min(queue, key=lambda i: (counter[asked[i]["chain"]], asked[i]["arrival"]))
            queue.remove(first)
            last = asked[first]["chain"]
            counter[last] += asked[first]["prompt"] + 2 * asked[first]["output"]
            order.append(first)

    for i, r in enumerate(asked):
        for _ in range(r["before"]):
            serve()
        tenant, others = r["chain"], {asked[k]["chain"] for k in queue}
        if tenant not in others:
            floor = min(counter[t] for t in others) if others else counter[last] if last is not None else 0
            counter[tenant] = max(counter[tenant], floor)
        queue.append(i)
    while queue:
        serve()
    return order


@quick
@given(asked=requests)
def test_vtc_is_the_papers(asked):
    for i, r in enumerate(asked):
        r["arrival"] = i
    engine, order = Engine("vtc", 2), []
    for r in asked:
        order += [engine.serve()["arrival"] for _ in range(min(r["before"], len(engine.queue)))]
        engine.arrive(r)
    order += [engine.serve()["arrival"] for _ in range(len(engine.queue))]
    assert order == vtc_reference(asked)


def deficit_reference(queue: list[dict], quantum: int) -> list[int]:
    """DLPM with deficit counters that are refilled when no tenant who waits has any left, until one tenant has nothing
    to ask for."""
    left, order, queue = {0: 0, 1: 0}, [], list(queue)
    while len({r["chain"] for r in queue}) == 2:
        while all(q <= 0 for q in left.values()):
            left = {t: q + quantum for t, q in left.items()}
        r = min((r for r in queue if left[r["chain"]] > 0), key=lambda r: (-r["cached"], r["arrival"]))
        queue.remove(r)
        left[r["chain"]] -= r["prompt"] + 2 * r["output"]
        order.append(r["arrival"])
    return order


@quick
@given(asked=requests, quantum=st.sampled_from([100, 400, 2000]))
def test_dlpm_is_the_papers_and_bounds_the_gap(asked, quantum):
    engine = Engine(f"dlpm:quantum={quantum}", 2)
    for i, r in enumerate(asked):
        r["arrival"] = i
        engine.arrive(r)
    order, most = [], max(r["prompt"] + 2 * r["output"] for r in asked)
    while len({r["chain"] for r in engine.queue}) == 2:
        order.append(engine.serve()["arrival"])
        a, b = engine.counters[0, :2, sv.COUNTER]
        assert abs(a - b) <= quantum + most
    assert order == deficit_reference(asked, quantum)


def test_dlpm_prefers_the_longest_prefix_within_the_quantum():
    engine = Engine("dlpm:quantum=1000", 2)
    for i, (tenant, cached) in enumerate([(1, 0), (0, 640), (0, 64), (0, 1280), (1, 128)]):
        engine.arrive({"chain": tenant, "arrival": i, "cached": cached, "prompt": 500, "output": 10})
    # tenant 0 spends 520 each: after two it is beyond its 1,000 and waits, though its prefix is longer than tenant 1's
    assert [engine.serve()["arrival"] for _ in range(5)] == [3, 1, 4, 0, 2]
