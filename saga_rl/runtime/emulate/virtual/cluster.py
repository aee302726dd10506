"""A trace played on virtual engines behind our router: clients as `replay.drive`, hints as they give them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.policies.base import PolicySet
from saga_rl.runtime.emulate.virtual.balance import StockBalancer
from saga_rl.runtime.emulate.virtual.content import Content
from saga_rl.runtime.emulate.virtual.engine import Answer, VirtualEngine
from saga_rl.runtime.emulate.virtual.front_ends import FrontEnds
from saga_rl.runtime.emulate.virtual.setup import PATIENT_S, make_request, make_scheduler
from saga_rl.runtime.engine.scheduler import SagaScheduler, SagaSyncScheduler
from saga_rl.runtime.routing.router import Router
from saga_rl.runtime.sessions.hints import Hints, read_hints
from saga_rl.sim.config import SimConfig

FINISH, CLIENT, SENT, GO = range(4)
"""Kinds of events, in this order at one instant: a batch is done; a client hears, waits no longer or starts a session;
a request reaches its engine; an engine's loop runs on."""
TICK_S = 1e-9


@dataclass(frozen=True)
class VirtualConfig:
    """What serves and how it is asked."""

    sim: SimConfig
    """Engines, pools, profile, population; `end_hint`: clients tell an agent's last request."""
    asynchronous: bool = True
    next_tool: bool = False
    """Clients name the tool that the answer will call with the request itself (a trace knows it, a client does not)."""
    at_once: bool = False
    """A request is told to the scheduler when it comes, not when the engine's loop comes round to it."""
    request_s: float = 0.0
    """From a client to its engine."""
    answer_s: float = 0.0
    """Back."""
    priority: bool = False
    """vLLM's `--scheduling-policy priority`, and requests that carry the number of their session's start."""
    tier_policy: bool = False
    """The tier evicts by the policy, as under `SagaCachePolicy`."""
    stock_engines: bool = False
    """vLLM's own scheduler on each engine, whoever places."""
    servers: int = 1
    """API servers."""
    shared_table: bool = True
    """Several servers share a table of homes and loads; else homes are drawn from names."""
    saga: dict[str, Any] = field(default_factory=dict)
    """Further keys of `SagaConfig`."""


@dataclass(frozen=True)
class Played:
    """What a run gave; names as in `SimResult.steps`. Seconds on the run's clock."""

    steps: dict[str, NDArray]
    begin_s: NDArray[np.float64]
    done_s: NDArray[np.float64]
    prompt_tokens: int
    counts: dict[str, float]
    """What the schedulers and the router counted, summed up."""

    @property
    def tct_s(self) -> NDArray[np.float64]:
        return self.done_s - self.begin_s

    def figures(self) -> dict[str, float]:
        """Keys as `simulate` names them."""
        tct, ttft = self.tct_s, self.steps["first_token_s"] - self.steps["ready_s"]
        return {"tct_mean_s": float(tct.mean()), "tct_p95_s": float(np.quantile(tct, 0.95)),
                "ttft_mean_s": float(ttft.mean()), "ttft_p95_s": float(np.quantile(ttft, 0.95)),
                "hit_share": float(self.steps["cached_tokens"].sum() / self.prompt_tokens),
                "preemptions": self.counts.get("preemptions", 0.0)}


def play(trace: Trace, config: VirtualConfig, policies: PolicySet | None,
         watch: Callable[[int, int], None] = lambda done, steps: None) -> Played:
    """Play `trace` to its end. policies: None = vLLM's own schedulers, and its own choice among them. watch: called
    with finished and all steps as they are done."""
    return _Run(trace, config, policies, watch).run()


class _Run:
    def __init__(self, trace: Trace, config: VirtualConfig, policies: PolicySet | None,
                 watch: Callable[[int, int], None]) -> None:
        self.trace, self.config, self.watch = trace, config, watch
        sim = config.sim
        self.now, self._tick = 0.0, 0.0
        self.content = Content(trace, sim.block_tokens)
        on_engines = None if config.stock_engines else policies
        self.engines = [VirtualEngine(
            make_scheduler(sim, on_engines, self._clock, config.asynchronous, config.priority, config.tier_policy,
                           **config.saga), sim.profile, 2 if config.asynchronous else 1, sim, self._pass_time)
            for _ in range(sim.workers)]
        self.router = self._front(policies)
        n, m = trace.n_steps, trace.n_sessions
        self.times = {k: np.full(n, np.nan) for k in ("ready_s", "scheduled_s", "first_token_s", "done_s")}
        self.worker, self.left = np.full(n, -1), np.diff(trace.session_offsets)
        self.unsent = self.left.copy()
        self.begin_s, self.done_s = np.full(m, np.nan), np.full(m, np.nan)
        self.pending, self.readers = _waits_for(trace)
        self.next_session = self.steps_done = self._number = 0
        self.heap: list[tuple[float, int, int, Callable[[], None]]] = []
        self.going = [False] * sim.workers
        """Whether an event of the engine's own loop is on the heap."""

    def _front(self, policies: PolicySet | None) -> Router | FrontEnds | StockBalancer:
        """What places requests."""
        schedulers, sim, c = [e.scheduler for e in self.engines], self.config.sim, self.config
        if policies is None:
            return StockBalancer(schedulers)
        about = (sim.workers, sim.max_num_seqs, sim.pool_blocks * sim.block_tokens)
        options: dict[str, Any] = {"expiry_s": sim.expiry_s, "budget_s": PATIENT_S,
                                   "tokens_per_s": sim.profile.prefill_tokens_per_s}
        return Router(policies.placement, *about, **options) if c.servers == 1 else FrontEnds(
            policies.placement, c.servers, c.shared_table, schedulers, *about, **options)

    def _router_of(self, name: str) -> Router | StockBalancer:
        return self.router.of(name, self.now) if isinstance(self.router, FrontEnds) else self.router

    def at(self, when: float, kind: int, call: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self.heap, (when, kind, self._number, call))

    def _clock(self) -> float:
        """No two readings are equal, as in service: who came before whom is never lost."""
        self._tick = max(self.now, self._tick + TICK_S)
        return self._tick

    def _pass_time(self, seconds: float) -> None:
        self._tick = max(self.now, self._tick) + seconds

    def run(self) -> Played:
        arrivals = self.trace.sessions.arrival_s
        places = self.config.sim.population
        for s in range(min(places, self.trace.n_sessions) if places else self.trace.n_sessions):
            # as in the simulator: a closed population starts at once, a microsecond apart
            self.at(s * 1e-6 if places else float(arrivals[s]), CLIENT, self._begin)
        while self.heap:
            self.now, _, _, call = heapq.heappop(self.heap)
            call()
        if np.isnan(self.done_s).any():
            raise RuntimeError(f"{int(np.isnan(self.done_s).sum())} sessions were never served to their end")
        return self._played()

    # ------------------------------------------------------------------ clients
    def _begin(self) -> None:
        s, trace = self.next_session, self.trace
        self.next_session += 1
        self.begin_s[s] = self.now
        for row in range(int(trace.session_offsets[s]), int(trace.session_offsets[s + 1])):
            self.times["ready_s"][row] = self.now
            if self.pending[row] == 0:
                self.at(self.now, CLIENT, partial(self._send, row))

    def _send(self, row: int) -> None:
        t, trace = self.trace.steps, self.trace
        s, prompt = int(t.session[row]), int(t.prompt_tokens[row])
        self.unsent[s] -= 1
        extra = self._hints(s, row)
        session = trace.sessions.session_id[s]
        self.worker[row] = w = self._place(str(row), read_hints(session, extra), prompt)
        request = make_request(str(row), prompt, int(t.output_tokens[row]), self.content.hasher(row), session, extra,
                               s if self.config.priority else 0, self.now)
        self.at(self.now + self.config.request_s, SENT, partial(self._arrive, w, request))

    def _place(self, name: str, hints: Hints, prompt: int) -> int:
        """Return the engine that serves the request."""
        router = self._router_of(name)
        if isinstance(router, StockBalancer):
            return router.choose(name, self.now)
        w = router.choose(hints, prompt, self.now) if len(self.engines) > 1 else 0
        router.book(name, hints, prompt, w, self.now)
        return w

    def _hints(self, s: int, row: int) -> dict[str, Any]:
        """As `replay_drive` gives them."""
        tr, t = self.trace, self.trace.steps
        out: dict[str, Any] = {
            "saga_agent": int(t.agent[row]), "saga_tenant": tr.tenants[int(tr.sessions.tenant[s])],
            "saga_agent_type": tr.agent_types[int(tr.sessions.agent_type[s])]}
        if self.config.sim.end_hint:
            out["saga_final"] = int(self.unsent[s] == 0)
        before = int(self.readers[row])
        if before >= 0 and t.tool[before] >= 0:
            out["saga_tool"] = tr.tools[int(t.tool[before])]
        if self.config.next_tool and t.tool[row] >= 0:
            out["saga_next_tool"] = tr.tools[int(t.tool[row])]
        allowed = float(tr.sessions.deadline_s[s] - tr.sessions.arrival_s[s])
        if not math.isnan(allowed):
            out["saga_deadline_s"] = allowed - (self.now - float(self.begin_s[s]))
        return out

    def _done(self, row: int) -> None:
        """The client has the whole answer."""
        t, s = self.trace.steps, int(self.trace.steps.session[row])
        self.times["done_s"][row] = self.now
        base, end = int(self.trace.session_offsets[s]), int(self.trace.session_offsets[s + 1])
        for kid in range(row + 1, end):
            parents = t.parents[t.parent_offsets[kid]:t.parent_offsets[kid + 1]]
            parent = row - base in parents
            if not parent and t.prefix_step[kid] != row - base:
                continue
            gap = float(t.tool_s[row] + t.think_s[row]) if parent and t.agent[kid] == t.agent[row] else 0.0
            ready = self.times["ready_s"]
            ready[kid] = max(ready[kid], self.now + gap)
            self.pending[kid] -= 1
            if self.pending[kid] == 0:
                self.at(float(ready[kid]), CLIENT, partial(self._send, kid))
        self.steps_done += 1
        self.watch(self.steps_done, self.trace.n_steps)
        self.left[s] -= 1
        if self.left[s] == 0:
            self.done_s[s] = self.now
            if self.config.sim.population and self.next_session < self.trace.n_sessions:
                self._begin()

    # ------------------------------------------------------------------ engines
    def _arrive(self, w: int, request: Any) -> None:
        if self.config.at_once:
            self.engines[w].scheduler.add_request(request)
        else:
            self.engines[w].receive(request)
        if not self.going[w]:
            self._wake(w, self.now)

    def _wake(self, w: int, when: float | None) -> None:
        self.going[w] = when is not None
        if when is not None:
            kind, call = (FINISH, self._finish) if self.engines[w].blocked else (GO, self._go)
            self.at(when, kind, partial(call, w))

    def _go(self, w: int) -> None:
        self._wake(w, self.engines[w].go(self.now))

    def _finish(self, w: int) -> None:
        answers, then = self.engines[w].finish(self.now)
        for a in answers:
            self.at(self.now + self.config.answer_s, CLIENT, partial(self._heard, a))
        self._wake(w, then)

    def _heard(self, a: Answer) -> None:
        row, router = int(a.name), self._router_of(a.name)
        if not isinstance(router, StockBalancer):
            router.output(a.name, a.tokens, a.finished, self.now)
        elif a.finished:
            router.finished(a.name)
        if a.tokens and math.isnan(self.times["first_token_s"][row]):
            self.times["first_token_s"][row] = self.now
        if a.finished:
            self._done(row)

    def _played(self) -> Played:
        n = self.trace.n_steps
        cached: dict[str, int] = {}
        counts: dict[str, float] = {"iterations": 0.0, "busy_s": 0.0, "migrations": float(self.router.migrations)}
        for e in self.engines:
            cached |= e.cached
            counts["iterations"] += e.iterations
            counts["busy_s"] += e.busy_s
            ours = isinstance(e.scheduler, SagaScheduler | SagaSyncScheduler)
            told = {**e.scheduler.metrics.counts, **e.scheduler._state()} if ours else {"preemptions": e.preemptions}
            for k, v in told.items():
                counts[k] = counts.get(k, 0.0) + float(v)
            e.scheduler.shutdown()
        steps = {"worker": self.worker, **self.times,
                 "cached_tokens": np.array([cached[str(i)] for i in range(n)], np.int64)}
        return Played(steps, self.begin_s, self.done_s, int(self.trace.steps.prompt_tokens.sum()), counts)


def _waits_for(trace: Trace) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(steps of which each step needs the answer, by step; the last parent of its own agent, a row, -1 = none)."""
    t = trace.steps
    pending, before = np.zeros(trace.n_steps, np.int64), np.full(trace.n_steps, -1, np.int64)
    for row in range(trace.n_steps):
        base = int(trace.session_offsets[t.session[row]])
        parents = {int(p) for p in t.parents[t.parent_offsets[row]:t.parent_offsets[row + 1]]}
        pending[row] = len((parents | {int(t.prefix_step[row])}) - {-1})
        mine = [base + p for p in parents if t.agent[base + p] == t.agent[row]]
        before[row] = max(mine, default=-1)
    return pending, before
