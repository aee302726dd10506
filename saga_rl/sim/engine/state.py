"""The arrays of a closed-loop run: what is fixed by the trace, what changes, and how they are laid out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.forest import Forest, build_forest
from saga_rl.aeg.trace import Trace
from saga_rl.policies import features as ft
from saga_rl.policies.base import PolicySet
from saga_rl.policies.state.chains import make_chains
from saga_rl.policies.state.service import make_service
from saga_rl.policies.state.tables import Tables, make_tables
from saga_rl.sim.cache.block_ring import make_rings
from saga_rl.sim.cache.pool import FREE, POOL, Pool, Tree, make_pool, make_tree
from saga_rl.sim.config import SimConfig
from saga_rl.sim.engine.heap import Heap, make_heap, push


class Plan(NamedTuple):
    """Fixed by the trace. Rows: step unless said otherwise."""

    session: NDArray[np.int32]
    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    tool: NDArray[np.int32]
    shared: NDArray[np.int8]
    """By segment: 1 = several chains' contexts hold it."""
    gap: NDArray[np.float64]
    """Tool + think seconds after the step, for the next step of the same agent."""
    final: NDArray[np.int8]
    """1: the last step of its chain."""
    child_off: NDArray[np.int64]
    child: NDArray[np.int32]
    root_off: NDArray[np.int64]
    """(sessions + 1,) into `root`: the steps without parents."""
    root: NDArray[np.int32]
    tenant: NDArray[np.int32]
    """By session, as all that follow."""
    agent_type: NDArray[np.int32]
    arrival: NDArray[np.float64]
    slack: NDArray[np.float64]
    """Deadline minus arrival; NaN = none."""
    first: NDArray[np.int64]
    """By session: its first chain."""


# columns of Run.i, by step
(STATE, WORKER, COMPUTED, GENERATED, HELD, COPIES, CACHED, PREEMPTIONS, PENDING, SCHEDULED, TARGET, KNOWN,
 BOOKED, YIELDED, STOLEN, TOKEN_COMES, TOKEN_BEHIND, OFFERED, SEEN_FROM) = range(19)
# OFFERED, SEEN_FROM: see `sim.engine.offloading`. TOKEN_COMES, TOKEN_BEHIND, under asynchronous scheduling: 1 = a token
# comes of the iteration that runs, of the one behind it
STEP_COUNTS = 19
# values of STATE
UNBORN, WAITING, RUNNING, DONE, LOADING = range(5)
# columns of Run.f, by step
READY, START_S, FIRST_S, DONE_S, KEY, READY_AT, SINCE, SENT = range(8)
# SINCE: since when it waits; begins anew with a preemption. SENT: asynchronous scheduling only, where READY is when the
# engine hears of it
STEP_TIMES = 8
# columns of Run.w, by worker
(N_RUNNING, N_WAITING, BUSY, IN_FLIGHT, HOMED, FORWARD, CHUNK, TOUCHED, N_LOADING, ACTIVE, PLACED_AT,
 URGENT, CHANGED, LETS, AHEAD, MAY_COMPOSE, STALE, N_INBOX, N_LOADED, N_TIER) = range(20)
# N_TIER: blocks in its tier (`sim.engine.offloading`). From AHEAD on, under asynchronous scheduling: 1 = an iteration
# is composed behind the one that runs; 1 = one ended, so that the next is composed; preempted requests of which a token
# may still come; requests not heard of yet; requests whose copy is there and not heard of yet
WORKER_COUNTS = 20
# values of LETS: whom the worker's next iteration lets in
AS_POLICY, ONE, NOBODY = range(3)
# columns of Run.wf, by worker; IN_USE and BUSY_BLOCKS are integrals over time, block-seconds
(EPOCH_S, SEEN_S, FLIGHT_TOKENS, QUEUED_TOKENS, DUE, FORWARD_FROM, NEXT_EXPIRY, NEXT_IDLE, PCIE_FREE, LINK_FREE,
 IN_PREFETCH, IDLE_SINCE, YIELDED_AT, IN_USE, BUSY_BLOCKS, AHEAD_DUE, NAPS_UNTIL) = range(17)
WORKER_TIMES = 17
# Run.count
STEPS_DONE, SESSIONS_DONE, EVENTS, PREEMPTED, MIGRATIONS, PREFILLED, RECOMPUTED, HIT, PROMPT, ITERATIONS, LOGGED, \
    NEXT_SESSION, AWAITING, OVERFLOW, SAMPLES, N_TOUCHED, FORWARDED, N_ITERATIONS, N_PARTS, STORED, LOADED, \
    MOVED_TOKENS, PREFETCHED, PLACED, FIRST_QUIET, N_QUIET, FLOOR_BREAKS, AFS_PREEMPTED, STEALS, LIVE_STEPS, ASKED, \
    COMPOSING, PAUSED, WANTED, SPARED, ASKED_BLOCKS, STARVED = range(37)
COUNTS = 37
# Run.total
USEFUL_IDLE, NOW, SAMPLE_EVERY, NEXT_SAMPLE, MOST_PREFILL, MOST_CONTEXT, MOST_SEQS, MOST_KV, SPREAD = range(9)
TOTALS = 9


class Run(NamedTuple):
    """Changes as time goes on."""

    i: NDArray[np.int64]
    f: NDArray[np.float64]
    w: NDArray[np.int64]
    wf: NDArray[np.float64]
    running: NDArray[np.int32]
    """(W, max_num_seqs) steps in the order in which they were scheduled."""
    queue: NDArray[np.int32]
    """(W, capacity) waiting steps in the order of their keys."""
    inbox: NDArray[np.int32]
    """(W, capacity) the first w[N_INBOX]: steps sent that the worker's engine has not heard of; asynchronous scheduling
    only, as `told_s`."""
    loaded: NDArray[np.int32]
    """(W, capacity) the first w[N_LOADED]: steps whose copy is there. SCHEDULED: 0 = no iteration was composed since;
    1 = the one composed behind the one that runs will say so; 2 = the one that runs."""
    tier_base: NDArray[np.int64]
    """See `sim.cache.block_ring`; empty without vLLM's tier, as the next two."""
    tier_after: NDArray[np.int32]
    tier_before: NDArray[np.int32]
    told_s: NDArray[np.float64]
    """(W, sessions) when the worker's engine first heard of the session, NaN = never."""
    told_late_s: NDArray[np.float64]
    """(W, sessions) by how much later than its request was sent: so much later it sees the session's deadline."""
    home: NDArray[np.int32]
    """By chain: the worker of its last step, -1 = none."""
    left: NDArray[np.int64]
    """By session: steps not done."""
    done_s: NDArray[np.float64]
    begin_s: NDArray[np.float64]
    count: NDArray[np.int64]  # type: ignore[assignment]  # shadows tuple.count, which nobody calls
    total: NDArray[np.float64]
    afs: NDArray[np.float64]
    """(workers, tenants)."""
    live: NDArray[np.int32]
    """[n, chains...]: chains that have begun and have not, as far as is known, ended."""
    live_at: NDArray[np.int32]
    """By chain: its place in `live`, 0 = not there."""
    counted: NDArray[np.int32]
    """(chains, 2) the worker that counts it as HOMED, and as ACTIVE; -1 = none."""
    quiet: NDArray[np.int32]
    """The first count[N_QUIET]: steps in the order in which they finished; before count[FIRST_QUIET] their chains have
    been heard of again or count as silent."""
    service: NDArray[np.float64]
    """(W, tenants + 1, 2) see `policies.state.service`."""
    floors: NDArray[np.float64]
    """(tenants,) blocks that each tenant keeps on a worker; empty = no floors."""
    held: NDArray[np.float64]
    """(tenants,) work space."""
    moved: NDArray[np.int8]
    """By chain: 1 = it has had steps on several workers."""
    source: NDArray[np.int32]
    """By chain: the worker before `home`, -1 = none."""
    last_step: NDArray[np.int32]
    """By chain, if prefetch is on: its last finished step."""
    landing: NDArray[np.float64]
    """By chain: when its prefetched KV is there (or was), s."""
    landing_at: NDArray[np.int32]
    touched: NDArray[np.int32]
    """The first count[N_TOUCHED]: workers to which something happened at this instant."""
    log_i: NDArray[np.int64]
    """(events, 4): kind, step, tokens, final, as `Reference`."""
    log_t: NDArray[np.float64]
    occupancy: NDArray[np.int32]
    """(samples, sessions) blocks held or cached, all workers."""
    occupancy_t: NDArray[np.float64]
    it_i: NDArray[np.int64]
    """(iterations, 2) if they are logged: worker, first of its rows in `it_part`."""
    it_f: NDArray[np.float64]
    """(iterations, 2) start, seconds."""
    it_part: NDArray[np.int64]
    """(rows, 2) step, tokens scheduled; -1 = preempted."""


class Work(NamedTuple):
    """Scratch rows."""

    evict: NDArray[np.float64]
    order: NDArray[np.float64]
    admit: NDArray[np.float64]
    place: NDArray[np.float64]
    """(W, len(PLACEMENT))"""
    scores: NDArray[np.float64]
    """By the pool's rows: of idle segments, as they were ranked last."""
    ranked: NDArray[np.float64]
    """(W, 2) when that was, and the pool's SEQ then."""
    aged: NDArray[np.float64]
    """By segment, see `tier.store`; empty without a CPU tier."""
    next_use: NDArray[np.float64]
    stamp: NDArray[np.int64]
    """By chain, and at the end the current tick."""
    residue: NDArray[np.int64]
    """(block,) decoding requests by computed tokens modulo the block."""
    were: NDArray[np.int64]
    """(segments, 3) segment, its blocks, its chain: see `demotion.note_idle`; empty unless the tier is lazy."""
    older: NDArray[np.float64]
    """(3,) see `features.add_expected_older`."""


# Limits: int64 vector that compiled code reads
(WORKERS, BLOCK, MAX_SEQS, BATCHED, END_HINT, POPULATION, LOGGING, SINGLE_STEPS, OLDEST_FIRST, EVICT_STEADY,
 ORDER_STEADY, ADMIT_STEADY, TIER, TIER_FIFO, WHOLE_PROMPT, TENANTS, FRESH, DRAWS, STEALING, TOOL_NAMES,
 CLAIRVOYANT, FLOORED, ASYNC, AS_VLLM, LAZY) = range(25)
# Real: float64 vector
(EXPIRY, HORIZON, POOL_TOKENS, PREFILL_RATE, PCIE_RATE, LINK_RATE, PREFETCH_TOKENS, STEADY_IDLE, GAP,
 AFS_PREEMPT, STARVE, TIER_BLOCKS) = range(12)


class World(NamedTuple):
    """Everything a run needs but the policies."""

    tree: Tree
    pool: Pool
    chains: NDArray[np.float64]
    tables: Tables
    g: NDArray[np.float64]
    plan: Plan
    run: Run
    heap: Heap
    work: Work
    limits: NDArray[np.int64]
    real: NDArray[np.float64]
    cost: NDArray[np.float64]
    """`CostProfile.vector`."""


def first_tick(steps: int, workers: int, sessions: int) -> int:
    """The event that looks for idle workers, beyond all others (`sim.engine.worker.first_landing` and its steps)."""
    return 4 * steps + workers + sessions


def make_plan(trace: Trace, forest: Forest) -> Plan:
    """The trace as compiled code reads it."""
    st, off = trace.steps, trace.session_offsets
    n = trace.n_steps
    n_parents = np.diff(st.parent_offsets)
    children = np.repeat(np.arange(n), n_parents)
    parents = st.parents + off[st.session[children]] if n else np.zeros(0, np.int64)
    order = np.argsort(parents, kind="stable")
    child_off = np.concatenate([[0], np.cumsum(np.bincount(parents, minlength=n))]).astype(np.int64)
    root = np.flatnonzero(n_parents == 0).astype(np.int32)
    root_off = np.concatenate([[0], np.cumsum(np.bincount(st.session[root], minlength=trace.n_sessions))])
    final = np.zeros(n, np.int8)
    last = np.full(len(forest.chain_session), -1, np.int64)
    np.maximum.at(last, forest.chain, np.arange(n))
    final[last[last >= 0]] = 1
    s = trace.sessions
    # copies: columns read from a file are read-only, which to numba is another type and another compilation
    return Plan(
        session=st.session.astype(np.int32), prompt=st.prompt_tokens.copy(), output=st.output_tokens.copy(),
        tool=st.tool.copy(), shared=_shared(forest), gap=st.tool_s + st.think_s, final=final, child_off=child_off,
        child=children[order].astype(np.int32), root_off=root_off.astype(np.int64), root=root, tenant=s.tenant,
        agent_type=s.agent_type, arrival=s.arrival_s, slack=s.deadline_s - s.arrival_s,
        first=np.searchsorted(forest.chain_session, np.arange(trace.n_sessions)))


def _shared(forest: Forest) -> NDArray[np.int8]:
    chain = np.repeat(forest.chain, np.diff(forest.path_offsets))
    first = np.full(len(forest.seg_parent), np.iinfo(np.int32).max, np.int32)
    last = np.full(len(forest.seg_parent), -1, np.int32)
    np.minimum.at(first, forest.path, chain)
    np.maximum.at(last, forest.path, chain)
    return (first < last).astype(np.int8)


def _vector(kind: type, size: int, values: dict[int, float]) -> NDArray[Any]:
    """Lay out `values` by column; every column has one."""
    assert sorted(values) == list(range(size))
    return np.array([values[k] for k in range(size)], kind)


def make_world(trace: Trace, config: SimConfig, policies: PolicySet, *, log: int = 0, samples: int = 0,
               iterations: int = 0, forest: Forest | None = None) -> World:
    """A fresh run: sessions on the heap, pools empty. log: events to keep; samples: rows of KV occupancy to keep;
    iterations: iterations to keep, each taken singly then."""
    forest = forest or build_forest(trace, config.block_tokens)
    plan = make_plan(trace, forest)
    w, n, segs, n_chains = config.workers, trace.n_steps, len(forest.seg_parent), len(forest.chain_session)
    pairs = len(forest.path) + 2 * n + segs + n_chains
    tiers = w if config.cpu_tokens else 0
    pool = make_pool(w + tiers, config.pool_blocks, segs, n_chains, pairs * (2 if tiers else 1),
                     config.cpu_tokens // config.block_tokens if tiers else 0, config.prefix_caching)
    pool.n[w:, POOL] = pool.n[w:, FREE] = config.cpu_tokens // config.block_tokens
    parents = np.repeat(np.arange(n), np.diff(plan.child_off))
    same = forest.chain[parents] == forest.chain[plan.child]
    lines = n - len(np.unique(parents[same]))  # steps that can wait at once: each chain's steps follow one another
    tenants = max(len(trace.tenants), 1)
    rules = config.constraints
    floors = rules.floors(trace.tenants, config.pool_blocks) if any(rules.kv_floors.values()) else np.zeros(0)
    ahead = w if config.async_scheduling else 0
    base, after, before = make_rings(
        w, forest.seg_blocks[:None if config.cpu_tokens and config.offloading != "ideal" else 0])
    run = Run(
        i=np.zeros((n, STEP_COUNTS), np.int64), f=np.full((n, STEP_TIMES), np.nan),
        w=np.zeros((w, WORKER_COUNTS), np.int64), wf=np.zeros((w, WORKER_TIMES)),
        running=np.zeros((w, config.max_num_seqs), np.int32), queue=np.zeros((w, lines + 1), np.int32),
        inbox=np.zeros((ahead, lines + 1), np.int32), loaded=np.zeros((ahead, lines + 1), np.int32), tier_base=base,
        tier_after=after, tier_before=before, told_s=np.full((ahead, trace.n_sessions), np.nan),
        told_late_s=np.full((ahead, trace.n_sessions), np.nan), home=np.full(n_chains, -1, np.int32),
        left=np.diff(trace.session_offsets).astype(np.int64), done_s=np.full(trace.n_sessions, np.nan),
        begin_s=np.full(trace.n_sessions, np.nan), count=np.zeros(COUNTS, np.int64), total=np.zeros(TOTALS),
        afs=np.zeros((w, tenants)), live=np.zeros(n_chains + 1, np.int32), live_at=np.zeros(n_chains, np.int32),
        counted=np.full((n_chains, 2), -1, np.int32), quiet=np.zeros(n, np.int32), service=make_service(w, tenants),
        floors=floors, held=np.zeros(tenants), moved=np.zeros(n_chains, np.int8),
        source=np.full(n_chains, -1, np.int32), last_step=np.full(n_chains, -1, np.int32), landing=np.zeros(n_chains),
        landing_at=np.zeros(n_chains, np.int32), touched=np.zeros(w, np.int32), log_i=np.zeros((log, 4), np.int64),
        log_t=np.zeros(log), occupancy=np.zeros((samples, trace.n_sessions), np.int32), occupancy_t=np.zeros(samples),
        it_i=np.zeros((iterations, 2), np.int64), it_f=np.zeros((iterations, 2)),
        it_part=np.zeros((iterations * min(config.max_num_seqs, 64), 2), np.int64))
    run.i[:, PENDING] = np.diff(trace.steps.parent_offsets)
    run.f[:, READY_AT] = 0.0
    run.wf[:, EPOCH_S] = run.wf[:, YIELDED_AT] = -np.inf
    run.wf[:, IDLE_SINCE] = np.nan
    run.w[:, PLACED_AT] = -1
    run.total[SAMPLE_EVERY] = 1.0
    run.count[LIVE_STEPS] = n
    work = Work(
        evict=np.zeros(len(ft.EVICTION)), order=np.zeros(len(ft.ORDERING)), admit=np.zeros(len(ft.ADMISSION)),
        place=np.zeros((w, len(ft.PLACEMENT))), scores=np.zeros(len(pool.res)), ranked=np.full((w, 2), np.nan),
        aged=np.zeros(segs if tiers else 0), next_use=np.full(segs, np.nan), stamp=np.zeros(n_chains + 1, np.int64),
        residue=np.zeros(config.block_tokens, np.int64),
        were=np.zeros((segs if tiers and config.offloading == "lazy" else 0, 3), np.int64), older=np.zeros(3))
    ordering = policies.ordering
    order_steady = ordering.steady or (ordering.steady_one_tenant and len(trace.tenants) < 2)
    # what is remembered of a chain that moved depends on the order of events on several workers
    shared_memory = policies.eviction.memory and w > 1
    single = config.single_steps or iterations > 0 or rules.active or shared_memory or config.async_scheduling
    limits = _vector(np.int64, 25, {
        WORKERS: w, BLOCK: config.block_tokens, MAX_SEQS: config.max_num_seqs, BATCHED: config.batched_tokens,
        END_HINT: config.end_hint, POPULATION: config.population, LOGGING: log > 0, SINGLE_STEPS: single,
        OLDEST_FIRST: policies.eviction.oldest_first, EVICT_STEADY: policies.eviction.steady,
        ORDER_STEADY: order_steady, ADMIT_STEADY: policies.admission.steady, TIER: config.cpu_tokens > 0,
        TIER_FIFO: config.cpu_eviction == "fifo", WHOLE_PROMPT: config.reserve_full_prompt,
        TENANTS: len(trace.tenants) if len(trace.tenants) > 1 else 0, FRESH: ordering.fresh,
        DRAWS: policies.placement.draws, STEALING: policies.placement.steals and w > 1, TOOL_NAMES: config.tool_names,
        CLAIRVOYANT: policies.eviction.oracle, FLOORED: len(floors) > 0, ASYNC: config.async_scheduling,
        AS_VLLM: config.offloading != "ideal",
        LAZY: config.offloading == "lazy"})
    real = _vector(np.float64, 12, {
        EXPIRY: config.expiry_s, HORIZON: config.horizon_s, POOL_TOKENS: config.kv_tokens,
        PREFILL_RATE: config.profile.prefill_tokens_per_s, PCIE_RATE: config.pcie_tokens_per_s,
        LINK_RATE: config.link_tokens_per_s, PREFETCH_TOKENS: config.prefetch_tokens,
        STEADY_IDLE: policies.eviction.steady_idle_s, GAP: rules.service_gap_tokens, AFS_PREEMPT: rules.afs_preempt_s,
        STARVE: config.starve_s, TIER_BLOCKS: config.cpu_tokens // config.block_tokens})
    # an entry for each session and worker and at most two a step (it, its copy, its prefetch); as much again, and more,
    # for the ends of runs that were cut short
    heap = make_heap(4 * n + 2 * trace.n_sessions + 8 * w + 256)
    if policies.placement.steals and w > 1:
        push(heap, 0.0, first_tick(n, w, trace.n_sessions))
    first = min(config.population or trace.n_sessions, trace.n_sessions)
    for s in range(first):
        # A closed population starts at once; a microsecond apart, so that its order is defined.
        push(heap, s * 1e-6 if config.population else float(plan.arrival[s]), n + w + s)
    run.count[NEXT_SESSION] = first
    return World(
        tree=make_tree(forest), pool=pool, chains=make_chains(n_chains),
        tables=make_tables(w, len(trace.tools), len(trace.agent_types)),
        g=ft.make_g(w, config.block_tokens, config.pool_blocks, policies.eviction, policies.admission,
                    config.cpu_tokens > 0), plan=plan,
        run=run, heap=heap, work=work, limits=limits, real=real, cost=config.profile.vector())
