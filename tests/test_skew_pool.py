"""No skew between training and serving in what an engine knows of its pool and its queue: the real `SagaScheduler` and
the simulator serve one trace under one virtual clock, and every row that either side shows to a policy is compared.

What must be equal to the last bit: eviction rows (all columns, also those of a policy with memory and the events that
it is told of), occasion by occasion, as a set: a pool has no order. To ten digits: ordering rows, admission rows.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import vllm_twin_engine
from numba import njit
from vllm_twin_engine import Turn, VllmEngine, kv_config, make_request, vllm_config

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.aeg.validate import check
from saga_rl.policies import features as ft
from saga_rl.policies.base import DECISIONS, MEMORY, SCORE, Policy, PolicySet
from saga_rl.policies.registry import make
from saga_rl.runtime.engine.scheduler import SagaSyncScheduler
from saga_rl.sim.cluster import Cluster
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import CostProfile
from saga_rl.sim.engine import state as st

PROFILE = CostProfile("unit", base_s=0.01, per_prefill_token_s=1e-4, per_kv_token_s=1e-7, per_seq_s=1e-4,
                      per_attn_s=1e-8, per_context_s=1e-7, max_batched_tokens=256)
BLOCK = 16
WIDTH = max(ft.COLUMNS.values())
ROOM = 150_000
"""Rows that are kept of a decision."""
JOINT = Path(__file__).resolve().parents[1] / "checkpoints" / "joint"
STOCK_SCHEDULER = vllm_twin_engine.make_scheduler


def plain(policy: Policy) -> Policy:
    """The same policy without its promises: it is scored at every occasion, on whole rows."""
    return replace(policy, steady=False, oldest_first=False, steady_one_tenant=False, informed=True,
                   scaled=True)


def recorded(policy: Policy) -> Policy:
    """The same, and it leaves every row that it sees in its scratch, behind what it needs itself."""
    inner, own = policy.score, own_scratch(policy)

    @njit(SCORE)
    def score(x, params, scratch):
        n = int(scratch[own])
        at = own + 1 + n * WIDTH
        if at + WIDTH <= len(scratch):
            scratch[at:at + len(x)] = x
        scratch[own] = n + 1
        return inner(x, params, scratch[:own])

    return replace(plain(policy), score=score, scratch=own + 1 + ROOM * WIDTH)


def own_scratch(policy: Policy) -> int:
    return max(MEMORY, policy.scratch)


def rows_of(scratch: np.ndarray, policy: Policy) -> np.ndarray:
    own = own_scratch(policy)
    n = int(scratch[own])
    assert n <= ROOM
    return scratch[own + 1:own + 1 + n * WIDTH].reshape(n, WIDTH)[:, :ft.COLUMNS[policy.decision]]


def simulated(trace: Trace, config: SimConfig, policies: PolicySet) -> tuple[list[Turn], dict[str, np.ndarray]]:
    """Iterations and rows by decision."""
    seen = PolicySet(recorded(policies.eviction), policies.placement, recorded(policies.ordering),
                     recorded(policies.admission))
    cluster = Cluster(trace, config, seen, iterations=64 * trace.n_steps + 4096)
    cluster.advance()
    run = cluster.world.run
    assert not run.count[st.OVERFLOW]
    scratch = {decision: cluster.policy_refs.scratch[decision] for decision in ("ordering", "admission", "eviction")}
    times = [(float(s), float(d)) for s, d in run.it_f[:run.count[st.N_ITERATIONS]]]
    return [Turn(s, d, [], []) for s, d in times], {
        decision: rows_of(x, getattr(policies, decision)) for decision, x in scratch.items()}


class SagaEngine(VllmEngine):
    """`VllmEngine` around our scheduler: requests with hints, told when they come, and a record of every row."""

    def __init__(self, trace: Trace, config: SimConfig, policies: PolicySet, **rules: Any) -> None:
        self.now = 0.0
        self.policies = PolicySet(*(plain(getattr(policies, decision)) for decision in DECISIONS))
        self.rules = rules
        with patch.object(vllm_twin_engine, "make_scheduler", self._make):
            super().__init__(trace, config)
        self.rows: dict[str, list[np.ndarray]] = {"eviction": [], "ordering": [], "admission": []}
        """Eviction: one array for each occasion. The others: one a row."""
        s = self.scheduler
        self._watch_victims(s.block_queue.victims)
        if hasattr(s.waiting, "rows"):
            self._wrap(s.waiting, "rows", lambda out: self.rows["ordering"].extend(out.copy()))
        self._wrap(s.admission, "admits", lambda out: self.rows["admission"].append(s.admission.row[0].copy()))
        let_in = s.admission.let_in

        def told(found: int, total: int) -> None:
            let_in(found, total)
            if s.policies.admission.memory:
                self.rows["admission"].append(s.admission.row[0].copy())

        s.admission.let_in = told

    def _make(self, config: SimConfig) -> SagaSyncScheduler:
        shared = vllm_config()
        stock = STOCK_SCHEDULER(config)  # sets the limits
        shared.additional_config = {"saga": {"expiry_s": config.expiry_s, "budget_s": 60.0, **self.rules}}
        with patch("saga_rl.runtime.engine.scheduler.policies_of", lambda _: self.policies):
            cls = type("Timed", (SagaSyncScheduler,), {"clock": staticmethod(lambda: self.now)})
            return cls(vllm_config=shared, kv_cache_config=kv_config(config.pool_blocks, config.block_tokens),
                       structured_output_manager=stock.structured_output_manager, block_size=config.block_tokens,
                       hash_block_size=config.block_tokens)

    def _watch_victims(self, victims: Any) -> None:
        scores, tell = victims.scores, victims.notify

        def scored(runs, slots, now):
            out = scores(runs, slots, now)
            self.rows["eviction"].append(victims._rows[:len(slots)].copy())
            return out

        def told(*args):
            tell(*args)
            if victims.policy.memory:
                self.rows["eviction"].append(victims._rows[:1].copy())

        victims.scores, victims.notify = scored, told

    @staticmethod
    def _wrap(owner: Any, name: str, look: Any) -> None:
        method = getattr(owner, name)

        def wrapped(*args: Any) -> Any:
            out = method(*args)
            look(out)
            return out

        setattr(owner, name, wrapped)

    def run(self) -> list[Turn]:  # type: ignore[override]
        """Arrivals are told at their times, also while an iteration runs."""
        t, trace = self.trace.steps, self.trace
        self._pending = {i: int(t.parent_offsets[i + 1] - t.parent_offsets[i]) for i in range(trace.n_steps)}
        self._ready = dict.fromkeys(range(trace.n_steps), 0.0)
        self.arrivals = [(float(trace.sessions.arrival_s[t.session[i]]), i) for i, n in self._pending.items() if n == 0]
        heapq.heapify(self.arrivals)
        while self.arrivals or self.scheduler.has_unfinished_requests():
            if not self.scheduler.has_unfinished_requests():
                self.now = max(self.now, self.arrivals[0][0])
            self._arrive(self.now)
            turn = self._iterate(self.now)
            self.served.turns.append(turn)
            end = self.now + turn.seconds
            self._arrive(end)
            self.now = end
            self._finish(turn, end)
            heapq.heapify(self.arrivals)
        return self.served.turns

    def _arrive(self, until: float) -> None:
        while self.arrivals and self.arrivals[0][0] <= until:
            self.now, step = heapq.heappop(self.arrivals)
            self._add(step)
        self.now = until

    def _add(self, step: int) -> None:
        trace, t = self.trace, self.trace.steps
        s, tool = int(t.session[step]), int(t.tool[step])
        request = make_request(str(step), self.tokens[step], int(t.prompt_tokens[step]), self.config.block_tokens)
        self.places.learn(step, request.block_hashes)
        request.session_id = trace.sessions.session_id[s]
        mine = np.arange(trace.session_offsets[s], trace.session_offsets[s + 1])
        last = int(mine[t.agent[mine] == t.agent[step]][-1])
        slack = float(trace.sessions.deadline_s[s] - trace.sessions.arrival_s[s])
        request.sampling_params.extra_args = {
            "saga_agent": int(t.agent[step]), "saga_tenant": trace.tenants[int(trace.sessions.tenant[s])],
            "saga_agent_type": trace.agent_types[int(trace.sessions.agent_type[s])], "saga_final": int(step == last),
            **({"saga_next_tool": trace.tools[tool]} if tool >= 0 else {}),
            **({"saga_deadline_s": slack} if np.isfinite(slack) else {})}
        self.scheduler.add_request(request)


def crowd(seed: int, sessions: int = 12) -> Trace:
    """Sessions of three tenants and two types of agents, with sub-agents, that send all that they have, each time, and
    now and then go on from an earlier point. Most begin with one of two texts of a block."""
    rng = random.Random(seed)
    specs = []
    for s in range(sessions):
        tenant, kind = f"t{rng.randrange(3)}", rng.choice(["coder", "browser"])
        rows: list[StepSpec] = []
        last: dict[int, int] = {}
        for i in range(rng.randint(3, 14)):
            agent = 0 if i == 0 or rng.random() < 0.8 else 1
            new, out = rng.randint(4, 120), rng.randint(2, 24)
            gap = rng.choice([0.0, 0.2, 0.6, 2.0]) * rng.random()
            if agent in last:
                known = rows[last[agent]].prompt_tokens + rows[last[agent]].output_tokens
                if rng.random() < 0.15:
                    known = rng.randint(0, known)
                parents, prefix = {last[agent], i - 1}, {"prefix_step": last[agent], "prefix_tokens": known}
            else:
                known = rng.choice([0, BLOCK, BLOCK])
                parents = {i - 1} if i else set()
                prefix = {"prefix_tokens": known, "shared_prefix": rng.choice(["policy", "manual"]) if known else None}
            tool = rng.choice([None, "bash", "web"])
            rows.append(StepSpec(known + new, out, tuple(sorted(parents)), agent, tool, gap, 0.0, **prefix))
            last[agent] = i
        deadline = s * 0.4 + 20.0 if rng.random() < 0.3 else float("nan")
        specs.append(SessionSpec(f"s{s}", s * 0.4, rows, tenant=tenant, agent_type=kind, deadline_s=deadline))
    trace = build_trace(TraceMeta("crowd", "generated:test"), specs)
    check(trace)
    return trace


def config_for(trace: Trace, contexts: float, **kwargs: Any) -> SimConfig:
    """A pool of so many times the longest context."""
    longest = int((trace.steps.prompt_tokens + trace.steps.output_tokens).max())
    return SimConfig(kv_tokens=int(contexts * longest), block_tokens=BLOCK, max_num_seqs=5, max_batched_tokens=256,
                     profile=PROFILE, expiry_s=2.0, end_hint=True, **kwargs)


def in_order(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(np.nan_to_num(rows).T[::-1])]


def differing(decision: str, a: np.ndarray, b: np.ndarray) -> list[str]:
    names = {"eviction": ft.EVICTION, "ordering": ft.ORDERING, "admission": ft.ADMISSION}[decision]
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return [f"{n}: simulator {x!r}, engine {y!r}" for n, x, y, ok in zip(names, a, b, same, strict=True) if not ok]


def assert_same_victims_seen(simulated_rows: np.ndarray, occasions: list[np.ndarray]) -> None:
    """Occasion by occasion, each as a set of rows."""
    at = 0
    for k, rows in enumerate(occasions):
        mine, theirs = in_order(simulated_rows[at:at + len(rows)]), in_order(rows)
        for a, b in zip(mine, theirs, strict=True):
            assert not differing("eviction", a, b), f"occasion {k} of {len(occasions)}"
        at += len(rows)
    assert at == len(simulated_rows)


def assert_all_seen(decision: str, simulated_rows: np.ndarray, rows: list[np.ndarray]) -> None:
    """Every row that the engine makes is one that the simulator makes. Not in step: the simulator looks at some oftener
    (it asks whether an arrival would be first before it queues it), and sorts a queue in another order. Sums over
    chains (a tenant's share, what older chains hold) are added up in another order: ten digits are compared."""
    def rounded(row: np.ndarray) -> bytes:
        return np.array([float(f"{x:.10g}") for x in row + 0.0]).tobytes()

    known = {rounded(row) for row in simulated_rows}
    for k, row in enumerate(rows):
        if rounded(row) not in known:
            nearest = min(simulated_rows, key=lambda x: len(differing(decision, x, row)))
            raise AssertionError((f"{decision} row {k} of {len(rows)}", differing(decision, nearest, row)))


@pytest.mark.vllm
@pytest.mark.parametrize(("eviction", "ordering", "admission", "seed", "contexts"), [
    ("wa-lru", "afs", "reserve-older:likely=1", 1, 1.6),
    ("bayes-tables", "session-fcfs", "grow", 2, 1.3),
    ("continuum", "dlpm", "aimd", 3, 1.5),
    ("s3-fifo", "las", "pause-resume", 4, 2.0),
    ("youngest", "srpt", "reserve-older", 5, 1.4),
    (f"learned:{JOINT}/eviction", f"learned:{JOINT}/ordering", f"learned:{JOINT}/admission", 6, 1.5),
])
def test_engine_and_simulator_show_policies_the_same_rows(eviction, ordering, admission, seed, contexts):
    trace = crowd(seed)
    config = config_for(trace, contexts)
    policies = PolicySet(make("eviction", eviction), make("placement", "sticky"), make("ordering", ordering),
                         make("admission", admission))
    turns, rows = simulated(trace, config, policies)
    engine = SagaEngine(trace, config, policies)
    mine = engine.run()
    assert [(t.start_s, t.seconds) for t in turns] == [(t.start_s, t.seconds) for t in mine]
    assert_same_victims_seen(rows["eviction"], engine.rows["eviction"])
    assert len(engine.rows["eviction"]) > 20
    for decision in ("ordering", "admission"):
        assert_all_seen(decision, rows[decision], engine.rows[decision])
        assert len(engine.rows[decision]) > 20
