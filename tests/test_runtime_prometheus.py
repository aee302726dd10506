"""What /metrics shows of given answers, by hand; its bounds; and the poller that asks engines in the background."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from saga_rl.runtime.server.poller import Poller
from saga_rl.runtime.server.prometheus import COUNTERS, EVICTED, MOST_CAUSES, ROUTER, ROUTERS, Collector

ANSWER: dict[str, Any] = {
    "name": "engine-0", "requests": 7, "evicted/idle": 3, "evicted/ended": 4, "recomputed tokens": 96, "schedule": 10,
    "schedule_mean_ms": 0.5, "schedule_sum_s": 0.005, "fallback/eviction/over budget": 2, "fallback/eviction/drift": 1,
    "failed/step": 1, "service gap": 128.0, "chains": 5, "policy": "saga", "spec": "saga",
    "policies/eviction": "wa-lru", "policies/placement": "saga", "policies/ordering": "afs",
    "policies/admission": "none", "checkpoints": {"eviction": "ab" * 32}, "requests/running": 2, "requests/waiting": 1,
    "kv/blocks": 23, "kv/running": 4, "kv/live": 5, "kv/waiting": 6, "kv/ended": 7, "kv/empty": 1,
    "tenant/a/afs": 0.5, "tenant/a/service": 100.0, "tenant/a/kv": 9, "sessions/finished": 2,
    "sessions/presumed ended": 1, "tct/count": 3, "tct/sum_s": 12.5, "tct/le/1": 1, "tct/le/2": 1, "tct/le/inf": 3}


def shown(answers: dict[int, dict[str, Any]], tenants: int = 50, first: tuple[str, ...] = (),
          router: dict[str, Any] | None = None, http: dict[str, int] | None = None) -> dict[tuple, float]:
    """(sample name, labels in order) -> value, through the text that Prometheus reads."""
    placement = None if router is None else SimpleNamespace(metrics=SimpleNamespace(snapshot=lambda: router))
    poller = Poller(None, 1.0, placement)
    poller.latest = dict(answers)
    poller.answered_s = dict.fromkeys(answers, 0.0)
    registry = CollectorRegistry()
    registry.register(Collector(poller, tenants, first, lambda: http or {}))
    text = generate_latest(registry).decode()
    return {(s.name, *(f"{k}={v}" for k, v in sorted(s.labels.items()))): s.value
            for f in text_string_to_metric_families(text) for s in f.samples}


def test_what_the_middleware_counts():
    m = shown({}, http={"requests": 5, "notes applied": 2, "failed/request ValueError": 1, "something else": 9})
    assert m["saga_http_total", "what=bodies not read"] == 0
    assert {k: v for k, v in m.items() if v} == {
        ("saga_http_total", "what=requests"): 5, ("saga_http_total", "what=notes applied"): 2,
        ("saga_http_failures_total", "part=request ValueError"): 1}


def test_every_figure_by_hand():
    m = shown({0: ANSWER})
    assert m["saga_requests_total", "engine=0"] == 7
    assert m["saga_recomputed_tokens_total", "engine=0"] == 96
    assert m["saga_evicted_blocks_total", "cause=idle", "engine=0"] == 3
    assert m["saga_fallbacks_total", "cause=over budget", "decision=eviction", "engine=0"] == 2
    assert m["saga_hook_failures_total", "engine=0", "hook=step"] == 1
    assert (m["saga_decision_seconds_count", "engine=0", "kind=schedule"],
            m["saga_decision_seconds_sum", "engine=0", "kind=schedule"]) == (10, 0.005)
    assert m["saga_fairness_gap_tokens", "engine=0"] == 128
    states = [v for k, v in m.items() if k[0] == "saga_kv_blocks"]
    assert (sorted(states), m["saga_kv_capacity_blocks", "engine=0"]) == ([1, 4, 5, 6, 7], 23)
    assert m["saga_tenant_afs", "engine=0", "tenant=a"] == 0.5
    assert m["saga_sessions_ended_total", "end=presumed", "engine=0"] == 1
    assert [m["saga_session_tct_seconds_bucket", "engine=0", f"le={b}"] for b in ("1.0", "2.0", "+Inf")] == [1, 1, 3]
    assert (m["saga_session_tct_seconds_count", "engine=0"], m["saga_session_tct_seconds_sum", "engine=0"]) == (3, 12.5)
    assert m["saga_policy_info", "admission=none", "checkpoints=abababababab", "engine=0", "eviction=wa-lru",
             "ordering=afs", "placement=saga", "policy=saga"] == 1


def test_the_router_is_an_engine_of_its_own_and_shows_where_chains_live():
    m = shown({0: ANSWER, 1: ANSWER}, router={"name": "router", "placements": 9, "migrations": 2, "homed": [3, 4],
                                              "fallback/placement/choice TypeError": 5, "engines live": 2})
    assert m["saga_placements_total", "engine=router"] == 9
    assert m["saga_fallbacks_total", "cause=choice TypeError", "decision=placement", "engine=router"] == 5
    assert [m["saga_chains_homed", f"engine={e}"] for e in (0, 1)] == [3, 4]
    assert ("saga_placements_total", "engine=0") not in m


def test_labels_are_bounded_and_nothing_is_lost_in_the_rest():
    many = {f"tenant/t{i}/{kind}": 1.0 + i for i in range(500) for kind in ("afs", "service", "kv")}
    causes = {f"evicted/c{i}": 1 for i in range(500)}
    m = shown({0: {**ANSWER, **many, **causes}}, tenants=10, first=("*", "t400"))
    tenants = {k[2] for k in m if k[0] == "saga_tenant_kv_blocks"}
    assert len(tenants) == 11
    assert {"tenant=t400", "tenant=a", "tenant=other"} < tenants
    total = sum(v for k, v in m.items() if k[0] == "saga_tenant_kv_blocks")
    assert total == 9 + sum(1 + i for i in range(500))
    evicted = {k[1]: v for k, v in m.items() if k[0] == "saga_evicted_blocks_total"}
    always = len(EVICTED) - 2  # two of those that are shown in any case have happened
    assert (len(evicted), sum(evicted.values())) == (MOST_CAUSES + 1 + always, 507)
    assert m["saga_tenant_afs", "engine=0", "tenant=other"] == 9.0  # the lowest of those without a label: t8


def test_names_of_tenants_cannot_break_the_text():
    odd = 'x"}\n# TYPE evil counter\nevil 1\\'
    m = shown({0: {**ANSWER, f"tenant/{odd}/kv": 3}})
    assert m["saga_tenant_kv_blocks", "engine=0", f"tenant={odd}"] == 3
    assert not any(k[0].startswith("evil") for k in m)


def test_no_engine_has_answered_yet():
    assert not any(shown({}).values())


def test_the_docs_list_every_metric():
    from pathlib import Path

    text = (Path(__file__).resolve().parents[1] / "docs" / "reference" / "metrics.md").read_text()
    poller = Poller(None, 1.0)
    names = {family.name for family in Collector(poller, 1).collect()}
    assert len(names) > len(COUNTERS)
    assert [n for n in sorted(names) if f"`{n}`" not in text and f"`{n}_total`" not in text] == []


class Engines:
    """Engines that answer when they are told to."""

    def __init__(self, n: int) -> None:
        self.core_engines = [bytes([i]) for i in range(n)]
        self.open = [asyncio.Event() for _ in range(n)]
        self.asked = [0] * n
        self.fail: set[int] = set()

    async def _call_utility_async(self, method: str, *args: Any, engine: bytes) -> Any:
        i = engine[0]
        self.asked[i] += 1
        await self.open[i].wait()
        if i in self.fail:
            raise RuntimeError("dead")
        return {"requests": 10 * i}


def test_an_engine_that_does_not_answer_is_skipped_counted_and_asked_once():
    async def run() -> None:
        client = Engines(3)
        client.open[0].set()
        client.open[1].set()
        client.fail.add(1)
        p = Poller(client, 1.0)
        for _ in range(3):
            await p.ask(0.02)
        assert client.asked == [3, 3, 1]
        assert p.latest == {0: {"engine": 0, "requests": 0}}
        assert p.unanswered == {1: 3, 2: 3}
        client.open[2].set()
        await p.ask(0.02)
        assert p.latest[2]["requests"] == 20
        assert p.unanswered[2] == 3

    asyncio.run(run())


def test_who_asks_anew_is_not_given_an_answer_that_was_owed_before():
    async def run() -> None:
        client = Engines(1)
        p = Poller(client, 0.02)
        await p.ask()  # nothing comes: an answer is owed
        asked = asyncio.ensure_future(p.ask(5.0, anew=True))
        await asyncio.sleep(0.02)
        assert client.asked == [1]
        client.open[0].set()
        await asked
        assert client.asked == [2]
        client.open[0].clear()
        await p.ask()
        before = p.unanswered[0]
        await p.ask(0.05, anew=True)  # gives up in time, with the old answer
        assert (client.asked, p.latest[0]["requests"], p.unanswered[0]) == ([3], 0, before + 1)

    asyncio.run(run())


@pytest.mark.parametrize("lost", [0, 1])
def test_an_engine_that_was_taken_out_is_no_longer_shown(lost):
    async def run() -> None:
        client = Engines(2)
        for e in client.open:
            e.set()
        p = Poller(client, 1.0)
        await p.ask(0.05)
        assert set(p.latest) == {0, 1}
        client.saga_engines = SimpleNamespace(live=lambda: [1 - lost])
        await p.ask(0.05)
        assert set(p.latest) == {1 - lost}

    asyncio.run(run())


def test_counters_are_zero_until_something_happens():
    """A rate over a series that begins with its first event misses that event."""
    m = shown({0: {"requests/running": 0}}, router={})
    for key, (name, _) in COUNTERS.items():
        assert m[f"{name}_total", f"engine={ROUTER if key in ROUTERS else 0}"] == 0
        assert (f"{name}_total", f"engine={0 if key in ROUTERS else ROUTER}") not in m
    assert m["saga_evicted_blocks_total", "cause=idle", "engine=0"] == 0
