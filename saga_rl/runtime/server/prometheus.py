"""Our figures on vLLM's /metrics: what the engines and the router last said, as Prometheus wants it
(docs/reference/metrics.md).

Everything is read from the `Poller`'s last answers, so a scrape costs no engine anything. Counters are the engines'
own: they begin anew with an engine. Labels are bounded: `MOST_CAUSES` causes, a fixed number of tenants; the rest is
`other`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from saga_rl.runtime.engine.policy_change import shown
from saga_rl.runtime.server.poller import Poller

OTHER = "other"
MOST_CAUSES = 64
"""Values of each label that names a cause, a hook or an event."""
ROUTER = "router"
"""Label `engine` of what the API server itself counts."""

COUNTERS = {
    "requests": ("saga_requests", "Requests that came"),
    "recomputed tokens": ("saga_recomputed_tokens", "Prompt tokens computed that the chain had computed before"),
    "preemptions": ("saga_preemptions", "Running requests that lost their blocks"),
    "afs preemptions": ("saga_afs_preemptions", "Of those: for a request that had waited too long"),
    "admission held": ("saga_admission_held", "Times that a waiting request was held back by the admission policy"),
    "let in starving": ("saga_admission_starving", "Requests let in because they had waited for `starve_s`"),
    "expired": ("saga_chains_expired", "Chains presumed to have ended"),
    "notes": ("saga_notes", "Notes from answers that applied: the tool called, or the end of a session"),
    "notes unread": ("saga_notes_unread", "Notes that could not be read"),
    "hints unread": ("saga_hints_unread", "Hints of clients that could not be read"),
    "policy swaps": ("saga_policy_swaps", "Changes of policy, changes back counted"),
    "floor breaks": ("saga_floor_breaks", "Evictions below a tenant's KV floor, for want of any other block"),
    "invariants broken": ("saga_invariants_broken", "Findings of the invariant check, where it is on"),
    "placements": ("saga_placements", "Requests placed by our policy"),
    "migrations": ("saga_migrations", "Requests of a chain that went to another engine than the one before"),
    "steals": ("saga_steals", "Queued requests taken by an idle engine"),
    "steals refused": ("saga_steals_refused", "Requests that the engine asked had begun by then"),
    "requests sent again": ("saga_requests_sent_again", "Unanswered requests of a lost engine sent to another"),
    "requests failed with an engine": ("saga_requests_failed", "Requests lost in the middle of an answer"),
    "engines lost": ("saga_engines_lost", "Engines that ended while the server served"),
    "engines found hung": ("saga_engines_hung", "Of those: engines that said nothing, and were ended for it"),
    "servers lost": ("saga_servers_lost", "Other API servers that ended"),
}
"""Names in a snapshot -> metric, meaning. Zero until it happens: the router's are those from `placements` on."""
ROUTERS = (*COUNTERS,)[[*COUNTERS].index("placements"):]
EVICTED = ("idle", "waiting", "ended", "shared")
"""Causes that are shown from the start."""
CAUSES = {
    "evicted": ("saga_evicted_blocks", "cause", "KV blocks evicted, by what their chain was doing"),
    "failed": ("saga_hook_failures", "hook", "Hooks of ours that raised; vLLM went on without"),
}
"""Names `FIRST/REST` -> metric, label of REST, meaning."""
GAUGES = {
    "requests/running": ("saga_requests_running", "Requests that run"),
    "requests/waiting": ("saga_requests_waiting", "Requests that wait"),
    "chains": ("saga_chains", "Chains (contexts of agents) that are remembered"),
    "kv/blocks": ("saga_kv_capacity_blocks", "KV blocks of the engine"),
    "tier found": ("saga_tier_found_share", "Share of lost KV that memory below the GPU is expected to have"),
    "service gap": ("saga_fairness_gap_tokens", "Largest service gap seen between tenants that waited, tokens"),
    "engines live": ("saga_engines_live", "Engines that serve"),
}
HTTP = ("requests", "sessions begun", "sessions by chain", "tools seen", "answers unread",
        "bodies read outside the loop", "bodies not read", "bodies not understood", "hints dropped",
        "tenants not believed", "doubled headers",
        "proofs not agreed", "notes sent", "notes applied",
        "notes unanswered", "notes dropped", "notes failed")
"""What the middleware counts; its failures are a metric of their own."""
STATES = ("running", "live", "waiting", "ended", "empty")
TIMES = ("schedule", "admission", "placements")
"""Decisions whose time is taken."""
TENANT = {"afs": ("saga_tenant_afs", "Agent Fair Share now"),
          "service": ("saga_tenant_service_tokens", "Service counter, tokens (lifted when a tenant returns)"),
          "kv": ("saga_tenant_kv_blocks", "KV blocks held, running and idle")}


class Names:
    """At most `most` values of a label, those that came first; any later one is `other`, and stays it."""

    def __init__(self, most: int, known: Iterable[str] = ()) -> None:
        self.most = most
        self.known = dict.fromkeys([*known][:most])

    def label(self, name: str) -> str:
        if name not in self.known:
            if len(self.known) >= self.most:
                return OTHER
            self.known[name] = None
        return name


class Collector:
    """For `registry.register`. tenants: how many have labels of their own; first: those that surely have one; http:
    the middleware's counts, once it has begun."""

    def __init__(self, poller: Poller, tenants: int, first: Iterable[str] = (),
                 http: Callable[[], Mapping[str, int]] = dict) -> None:
        self.poller, self.http = poller, http
        self.tenants = Names(tenants, [t for t in first if t != "*"])
        self.causes = {name: Names(MOST_CAUSES) for name in ("evicted", "failed", "fallback")}

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not collect to know that our names are ours."""
        return []

    def collect(self) -> Iterator[Metric]:
        said: dict[str, dict[str, Any]] = {str(e): a for e, a in sorted(self.poller.latest.items())}
        router = self.poller.placement
        both = said if router is None else {**said, ROUTER: router.metrics.snapshot()}
        yield from _info(said)
        yield from _plain(both)
        yield from self._causes(both)
        yield from _blocks(said)
        yield from _times(both)
        yield from self._tenants(said)
        yield from _sessions(said)
        yield from self._answers(both)
        yield from self._http()

    def _causes(self, said: dict[str, dict[str, Any]]) -> Iterator[Metric]:
        for first, (name, label, text) in CAUSES.items():
            family = CounterMetricFamily(name, text, labels=["engine", label])
            for engine, a in said.items():
                zeros = dict.fromkeys(EVICTED, 0.0) if first == "evicted" and engine != ROUTER else {}
                for cause, n in {**zeros, **self._summed(a, first)}.items():
                    family.add_metric([engine, cause], n)
            yield family
        family = CounterMetricFamily("saga_fallbacks", "Decisions that a policy's fallback, or vLLM, made instead",
                                     labels=["engine", "decision", "cause"])
        for engine, a in said.items():
            for key, n in self._summed(a, "fallback").items():
                decision, _, cause = key.partition("/")
                family.add_metric([engine, decision, cause], n)
        yield family

    def _http(self) -> Iterator[Metric]:
        counts = self.http()
        read = CounterMetricFamily("saga_http", "What was read of workflows in requests and answers", labels=["what"])
        for what in HTTP:
            read.add_metric([what], counts.get(what, 0))
        yield read
        family = CounterMetricFamily("saga_http_failures", "Requests that the middleware could not read; they were "
                                     "served without", labels=["part"])
        for part, n in self._summed(dict(counts), "failed").items():
            family.add_metric([part], n)
        yield family

    def _summed(self, a: dict[str, Any], first: str) -> dict[str, float]:
        out: dict[str, float] = {}
        for key, n in a.items():
            if key.startswith(first + "/"):
                label = self.causes[first].label(key[len(first) + 1:])
                out[label] = out.get(label, 0.0) + n
        return out

    def _tenants(self, said: dict[str, dict[str, Any]]) -> Iterator[Metric]:
        for kind, (name, text) in TENANT.items():
            family = GaugeMetricFamily(name, text, labels=["engine", "tenant"])
            for engine, a in said.items():
                values: dict[str, list[float]] = {}
                for key, v in a.items():
                    if key.startswith("tenant/") and key.endswith("/" + kind):
                        values.setdefault(self.tenants.label(key[7:-len(kind) - 1]), []).append(float(v))
                for tenant, each in values.items():  # a share is not a sum: the others' lowest, which rules look at
                    family.add_metric([engine, tenant], min(each) if kind == "afs" else sum(each))
            yield family

    def _answers(self, said: dict[str, dict[str, Any]]) -> Iterator[Metric]:
        p, now = self.poller, time.monotonic()
        unanswered = CounterMetricFamily("saga_engine_unanswered", "Questions for its numbers that an engine did not "
                                         "answer in time", labels=["engine"])
        for engine, n in sorted(p.unanswered.items()):
            unanswered.add_metric([str(engine)], n)
        yield unanswered
        age = GaugeMetricFamily("saga_numbers_age_seconds", "How old these figures of the engine are",
                                labels=["engine"])
        for engine in sorted(p.latest):
            age.add_metric([str(engine)], now - p.answered_s[engine])
        yield age
        homed = GaugeMetricFamily("saga_chains_homed", "Chains that live on the engine, as the router believes",
                                  labels=["engine"])
        for i, n in enumerate(said.get(ROUTER, {}).get("homed", ())):
            homed.add_metric([str(i)], n)
        yield homed


def _info(said: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    labels = ["policy", "eviction", "placement", "ordering", "admission", "checkpoints"]
    family = GaugeMetricFamily("saga_policy_info", "1: the policies in force", labels=["engine", *labels])
    for engine, a in said.items():
        family.add_metric([engine, shown(a.get("spec", a.get("policy", "")))[:200],
                           *(str(a.get(f"policies/{decision}", "")) for decision in labels[1:5]),
                           " ".join(h[:12] for h in a.get("checkpoints", {}).values())], 1)
    yield family


def _plain(said: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    for names, kind in ((COUNTERS, CounterMetricFamily), (GAUGES, GaugeMetricFamily)):
        for key, (name, text) in names.items():
            family = kind(name, text, labels=["engine"])
            for engine, a in said.items():
                if key in a or (kind is CounterMetricFamily and (key in ROUTERS) == (engine == ROUTER)):
                    family.add_metric([engine], a.get(key, 0))
            yield family


def _blocks(said: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    family = GaugeMetricFamily("saga_kv_blocks", "KV blocks by who holds them", labels=["engine", "state"])
    for engine, a in said.items():
        for state in STATES:
            if f"kv/{state}" in a:
                family.add_metric([engine, state], a[f"kv/{state}"])
    yield family


def _times(said: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    family = SummaryMetricFamily("saga_decision_seconds", "Decisions and the time they took", labels=["engine", "kind"])
    for engine, a in said.items():
        for kind in TIMES:
            if f"{kind}_sum_s" in a:
                family.add_metric([engine, kind], a[kind], a[f"{kind}_sum_s"])
    yield family


def _sessions(said: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    ended = CounterMetricFamily("saga_sessions_ended", "Sessions that ended, known or presumed",
                                labels=["engine", "end"])
    tct = HistogramMetricFamily("saga_session_tct_seconds", "Task completion time: first request to last answer",
                                labels=["engine"])
    for engine, a in said.items():
        for end, key in (("known", "sessions/finished"), ("presumed", "sessions/presumed ended")):
            if key in a:
                ended.add_metric([engine, end], a[key])
        found = [(k.removeprefix("tct/le/"), n) for k, n in a.items() if k.startswith("tct/le/")]
        bounds = [("+Inf" if bound == "inf" else str(float(bound)), n) for bound, n in found]
        if bounds:
            tct.add_metric([engine], bounds, a["tct/sum_s"])
    yield ended
    yield tct
