"""The feature rows of the four seams: the one place where observations are made.

Simulator, environments and vLLM adapter call these functions, so a policy sees in service what it was trained on. The
hash of this file's code, `chains.py`'s and `tables.py`'s is in every checkpoint (`feature_hash`). Rows are float64;
learned policies read log(1 + x) of seconds and tokens. ORACLE is NaN for every policy without `oracle=True`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from saga_rl.policies import chains as ch
from saga_rl.policies import tables as tb
from saga_rl.policies.base import Policy
from saga_rl.policies.source import code_hash

# ---------------------------------------------------------------- eviction: one evictable chain on one worker
EVICTION = (
    "idle_log",       # log1p seconds since its blocks were last released
    "waiting",        # its next request is queued
    "queue_log",      # log1p requests ahead of it, while waiting
    "residual_log",   # log1p expected seconds until its tool returns
    "p_return_10s",   # chance that it returns within 10 s
    "p_end",          # chance that it has ended
    "ttl_left",       # (ttl - idle) / ttl, clipped to [-1, 1]
    "p_reuse",        # (1 - end prior) * n / (n + n_obs), SAGA section 2
    "recency",        # idle / largest idle seen on the worker
    "size",           # its blocks / largest chain in the pool
    "used",           # share of the pool that holds anything
    "live",           # share of the pool pinned or within TTL
    "context_log",    # log1p context tokens
    "steps_log",      # log1p finished steps
    "age_log",        # log1p seconds since its session began
    "ended",          # the client said that it ended
    "shared",         # 1: a prefix that several chains share
    "idle_s",         # raw, for LRU
    "age_s",          # raw, for age order
    "oracle",         # when it is next used, s or events (inf = never); NaN unless the policy is an oracle
    "tokens",         # raw, its evictable tokens here
    "context",        # raw, tokens
    "obs_tokens",     # expected of its tool's answer
    "residual_s",     # raw
    "step_s",         # service seconds of a step of its agent type
    "steps_left",     # steps that a chain of its agent type is expected to have left, at least 1
    "tasks",          # ended chains of its agent type (cold start)
    "event",          # NO_EVENT: score this row; else what happened, for a policy with memory
    "event_blocks",   # BEGIN: cached blocks found; RELEASE: evictable blocks; EVICT: blocks taken
    "event_total",    # BEGIN: blocks of all its tokens; RELEASE, EVICT: evictable blocks that it has left
    "event_score",    # EVICT: the victim's score
    "pool_blocks",    # blocks of the pool
    "useful",         # of its tokens here at most so many can be used again (`chains.useful_tokens`)
    *(f"mine_{k}" for k in range(4)),   # what the policy remembers of the chain,
    *(f"here_{k}" for k in range(8)),   # and of the worker
)
(E_IDLE_LOG, E_WAITING, E_QUEUE_LOG, E_RESIDUAL_LOG, E_P_RETURN, E_P_END, E_TTL_LEFT, E_P_REUSE, E_RECENCY, E_SIZE,
 E_USED, E_LIVE, E_CONTEXT_LOG, E_STEPS_LOG, E_AGE_LOG, E_ENDED, E_SHARED, E_IDLE_S, E_AGE_S, E_ORACLE, E_TOKENS,
 E_CONTEXT, E_OBS, E_RESIDUAL_S, E_STEP_S, E_STEPS_LEFT, E_TASKS, E_EVENT, E_EVENT_BLOCKS, E_EVENT_TOTAL, E_EVENT_SCORE,
 E_POOL_BLOCKS, E_USEFUL, E_MINE) = range(34)
E_HERE = E_MINE + ch.REMEMBERED
NO_EVENT, BEGIN, RELEASE, EVICT = range(4)
"""A request of the chain got its first blocks; the chain's blocks became evictable; some of them were taken."""
LEARNED_EVICTION = EVICTION[:E_IDLE_S]
"""What a learned eviction policy may read: the bounded columns, never the oracle."""

# state of a worker's pool that the caller refreshes before it scores: G[w, ...]
(G_TAU_MAX, G_SIZE_MAX, G_USED, G_LIVE, G_MEMORY, G_ADMIT_MEMORY, G_BLOCK, G_POOL, G_INFORMED, G_ADMIT_INFORMED,
 G_HERE) = range(11)
HERE = 8
G_ADMIT = G_HERE + HERE
G_COLUMNS = G_ADMIT + HERE
"""G_MEMORY, G_ADMIT_MEMORY: 1 = the eviction, admission policy has memory; G_INFORMED, G_ADMIT_INFORMED: 1 = it reads
what the tables say (`Policy.informed`); G_BLOCK: tokens of a block; G_POOL: blocks; from G_HERE and from G_ADMIT on
`HERE` columns that the eviction and the admission policy remember of the worker."""


def make_g(workers: int, block_tokens: int, pool_blocks: int, eviction: Policy, admission: Policy | None = None,
           ) -> NDArray[np.float64]:
    """(workers, G_COLUMNS) of empty pools."""
    g = np.zeros((workers, G_COLUMNS))
    g[:, G_MEMORY] = eviction.memory
    g[:, G_ADMIT_MEMORY] = admission is not None and admission.memory
    g[:, G_INFORMED] = eviction.informed
    g[:, G_ADMIT_INFORMED] = admission is None or admission.informed
    g[:, G_BLOCK], g[:, G_POOL] = block_tokens, pool_blocks
    return g


@njit(cache=True)
def eviction_row(chains, tables, g, w, c, now, last_use_s, blocks, shared, oracle, out):
    """Fill `out` (len(EVICTION),) for chain c on worker w.

    last_use_s: when the blocks in question were last released; blocks: how many of them are resident; oracle: next
    use, or NaN. Keeps G_TAU_MAX, the largest idle time seen (SAGA section 3). What the tables say is left as it was in
    `out` where the policy does not read it (G_INFORMED).
    """
    row = chains[c]
    idle = max(now - last_use_s, 0.0)
    g[w, G_TAU_MAX] = max(g[w, G_TAU_MAX], idle)
    waiting = ch.waits(chains, c, w)
    ended = row[ch.ENDED] > 0
    age = max(now - row[ch.SESSION_S], 0.0)
    out[E_WAITING] = 1.0 if waiting else 0.0
    out[E_QUEUE_LOG] = np.log1p(row[ch.QPOS]) if waiting else 0.0
    out[E_RECENCY] = idle / g[w, G_TAU_MAX] if g[w, G_TAU_MAX] > 0 else 0.0
    out[E_SIZE] = min(blocks / max(g[w, G_SIZE_MAX], 1.0), 1.0)
    out[E_USED] = g[w, G_USED]
    out[E_LIVE] = g[w, G_LIVE]
    out[E_ENDED] = 1.0 if ended else 0.0
    out[E_SHARED] = shared
    out[E_IDLE_S] = idle
    out[E_AGE_S] = age
    out[E_ORACLE] = oracle
    out[E_TOKENS] = blocks * g[w, G_BLOCK]
    out[E_CONTEXT] = row[ch.CONTEXT]
    out[E_EVENT] = NO_EVENT
    out[E_EVENT_BLOCKS] = out[E_EVENT_TOTAL] = out[E_EVENT_SCORE] = 0.0
    out[E_POOL_BLOCKS] = g[w, G_POOL]
    out[E_USEFUL] = ch.useful_tokens(row)
    for k in range(ch.REMEMBERED):
        out[E_MINE + k] = row[ch.MINE + k]
    for k in range(HERE):
        out[E_HERE + k] = g[w, G_HERE + k]
    if g[w, G_INFORMED] > 0:
        _informed(tables, g, w, row, idle, age, waiting, ended, out)


@njit(cache=True)
def _informed(tables, g, w, row, idle, age, waiting, ended, out):
    """The columns of an eviction row that cost a look into the tables, or a logarithm."""
    tool, agent_type = int(row[ch.TOOL]), int(row[ch.TYPE])
    prior = tb.end_prior(tables, w, agent_type, tool)
    stays = tb.survival(tables, w, tool, idle)
    unsaid = tb.unsaid_prior(tables, w, agent_type, tool)
    p_end = 1.0 if ended else unsaid / (unsaid + (1.0 - unsaid) * stays)
    pressure = min(max((g[w, G_USED] - 0.7) / 0.2, 0.0), 1.0)
    ttl = tb.ttl(tables, w, tool, pressure)
    residual = 0.0 if waiting else tb.residual_s(tables, w, tool, idle)
    later = tb.survival(tables, w, tool, idle + 10.0)
    n = max(row[ch.CONTEXT], 1.0)
    obs = tables.obs[w, tool + 1]
    out[E_IDLE_LOG] = np.log1p(idle)
    out[E_RESIDUAL_LOG] = np.log1p(residual)
    out[E_P_RETURN] = 1.0 if waiting else (1.0 - p_end) * (1.0 - min(later / stays, 1.0))
    out[E_P_END] = 0.0 if waiting else p_end
    out[E_TTL_LEFT] = min(max((ttl - idle) / ttl, -1.0), 1.0)
    out[E_P_REUSE] = 1.0 if waiting else (1.0 - prior) * n / (n + obs)
    out[E_CONTEXT_LOG] = np.log1p(row[ch.CONTEXT])
    out[E_STEPS_LOG] = np.log1p(row[ch.STEPS])
    out[E_AGE_LOG] = np.log1p(age)
    out[E_OBS] = obs
    out[E_RESIDUAL_S] = residual
    out[E_STEP_S] = tables.types[w, agent_type, tb.STEP_S]
    out[E_STEPS_LEFT] = max(tables.types[w, agent_type, tb.STEPS] - row[ch.STEPS], 1.0)
    out[E_TASKS] = tables.types[w, agent_type, tb.DONE]


@njit(cache=True)
def remember(chains, g, w, c, row, event, blocks, total, victim_score, score, params, scratch):
    """Tell an eviction policy with memory what happened to chain c; `row` is its `eviction_row` of that moment. The
    policy leaves what it wants to remember in scratch: of the chain (`ch.REMEMBERED`), then of the worker (`HERE`)."""
    row[E_EVENT], row[E_EVENT_BLOCKS], row[E_EVENT_TOTAL], row[E_EVENT_SCORE] = event, blocks, total, victim_score
    score(row, params, scratch)
    for k in range(ch.REMEMBERED):
        chains[c, ch.MINE + k] = scratch[k]
    for k in range(HERE):
        g[w, G_HERE + k] = scratch[ch.REMEMBERED + k]


# ---------------------------------------------------------------- ordering: one waiting request
ORDERING = (
    "wait_log",       # log1p seconds in the queue so far
    "age_log",        # log1p seconds since its session began
    "attained_log",   # log1p seconds of service that its chain has had
    "steps_log",      # log1p finished steps of its chain
    "prompt_log",     # log1p tokens
    "remain_log",     # log1p `remain_s`
    "uncached_log",   # log1p prompt tokens beyond `cached_tokens`
    "begun",          # 1: its chain has been served before
    "preempted",      # 1: it ran before and lost its blocks
    "arrival_s",      # when the request was queued
    "session_s",      # when its session began
    "attained_s",     # service that its chain has had
    "steps",          # finished steps of its chain
    "afs",            # its tenant's Agent Fair Share
    "wait_s",         # seconds in the queue so far
    "prompt_tokens",
    "remain_s",       # service that its chain is expected to need until it ends, by its agent type
    "cached_tokens",  # of its chain's KV, evictable here
    "service",        # its tenant's service counter (`policies.service`), tokens
    "least_service",  # the smallest counter of a tenant that waits here
)
(O_WAIT_LOG, O_AGE_LOG, O_ATTAINED_LOG, O_STEPS_LOG, O_PROMPT_LOG, O_REMAIN_LOG, O_UNCACHED_LOG, O_BEGUN, O_PREEMPTED,
 O_ARRIVAL, O_SESSION, O_ATTAINED, O_STEPS, O_AFS, O_WAIT, O_PROMPT, O_REMAIN, O_CACHED, O_SERVICE, O_LEAST) = range(20)
LEARNED_ORDERING = ORDERING[:O_ARRIVAL]
"""What a learned ordering policy may read: bounded columns, none of which says who the tenant is."""


@njit(cache=True)
def ordering_row(chains, tables, w, c, now, queued_s, prompt_tokens, preempted, afs, cached_tokens, service,
                 least_service, out):
    """Fill `out` (len(ORDERING),) for the request of chain c that was queued at worker w at `queued_s`."""
    row = chains[c]
    out[O_ARRIVAL] = queued_s
    out[O_SESSION] = row[ch.SESSION_S]
    out[O_PREEMPTED] = preempted
    out[O_ATTAINED] = row[ch.ATTAINED]
    out[O_STEPS] = row[ch.STEPS]
    out[O_AFS] = afs
    out[O_WAIT] = now - queued_s
    out[O_PROMPT] = prompt_tokens
    a = tables.types[w, int(row[ch.TYPE])]
    out[O_REMAIN] = max(a[tb.STEPS] - row[ch.STEPS], 1.0) * a[tb.STEP_S]
    out[O_CACHED] = cached_tokens
    out[O_SERVICE] = service
    out[O_LEAST] = least_service
    out[O_WAIT_LOG] = np.log1p(max(now - queued_s, 0.0))
    out[O_AGE_LOG] = np.log1p(max(now - row[ch.SESSION_S], 0.0))
    out[O_ATTAINED_LOG] = np.log1p(row[ch.ATTAINED])
    out[O_STEPS_LOG] = np.log1p(row[ch.STEPS])
    out[O_PROMPT_LOG] = np.log1p(prompt_tokens)
    out[O_REMAIN_LOG] = np.log1p(out[O_REMAIN])
    out[O_UNCACHED_LOG] = np.log1p(max(prompt_tokens - cached_tokens, 0.0))
    out[O_BEGUN] = 0.0 if is_new(row) else 1.0


# ---------------------------------------------------------------- placement: one worker, for one request
PLACEMENT = (
    "load",           # max(running-slot share, pinned KV share) + queued prefill seconds / 1 s, SAGA section 6
    "in_flight",      # requests sent there and not finished
    "slots",          # in_flight / running slots
    "pinned",         # KV tokens of its requests in flight / its pool, at most 1
    "queued_s",       # prefill seconds of what is queued there
    "home",           # 1: the chain's last step ran there
    "hit",            # believed cached share of the prompt: context / prompt at home, 0 elsewhere
    "prompt_log",     # log1p prompt tokens
    "new",            # 1: first request of its chain
    "idle_log",       # log1p seconds since the chain's last step
    "sessions",       # chains whose home it is / running slots
    "turn",           # placements since one went here; before the first one, more than any
    "uncached_s",     # prefill seconds of what the request has to compute there
    "mean_in_flight", # over all workers
    "draw",           # the worker's place in an order drawn for this request, 0 first; 0 unless `Policy.draws`
    "ring",           # the same, drawn for its chain: what a consistent hash gives
)
(P_LOAD, P_IN_FLIGHT, P_SLOTS, P_PINNED, P_QUEUED, P_HOME, P_HIT, P_PROMPT, P_NEW, P_IDLE, P_SESSIONS, P_TURN,
 P_UNCACHED, P_MEAN, P_DRAW, P_RING) = range(16)
LEARNED_PLACEMENT = PLACEMENT[:P_TURN]
"""What a learned placement policy may read: bounded, and the same whatever the size of the cluster."""


@njit(cache=True)
def draw(a, b, c):
    """A number in [0, 1) that depends on three integers only (a hash after SplitMix64)."""
    z = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(c)
    for _ in range(2):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) + np.uint64(0x9E3779B97F4A7C15)
    return (z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True)
def draw_places(key, request, column, rows):
    """Fill `column` of every worker's placement row with the worker's place in an order of the workers that depends on
    `key` and `request` alone. Taking workers away leaves the order of the others as it is (rendezvous hashing)."""
    n = len(rows)
    drawn = np.empty(n)
    for w in range(n):
        drawn[w] = draw(key, request, w)
    order = np.argsort(drawn)
    for place in range(n):
        rows[order[place], column] = place


@njit(cache=True)
def load(slots, pinned, queued_s):
    """SAGA section 6: the larger share in use, plus the seconds of prefill that wait."""
    return max(slots, pinned) + queued_s


@njit(cache=True)
def uncached_tokens(chains, c, prompt_tokens, home):
    """Prompt tokens that a worker will have to compute, as a router believes: all, or at home what is new."""
    return max(prompt_tokens - chains[c, ch.CONTEXT], 0.0) if home else prompt_tokens


@njit(cache=True)
def placement_row(chains, c, now, prompt_tokens, home, in_flight, max_seqs, flight_tokens, kv_tokens, queued_tokens,
                  prefill_tokens_per_s, homed, turn, mean_in_flight, out):
    """Fill `out` (len(PLACEMENT),) for one worker. Everything is known to a router without asking the worker: what it
    sent there (`in_flight`, `flight_tokens`, and `queued_tokens` = `uncached_tokens` of the requests without a first
    token), how many placements ago (`turn`), and where chains live (`home`, `homed`). The columns "draw" and "ring" are
    left 0, see `draw_places`."""
    row = chains[c]
    new = row[ch.STEPS] == 0
    uncached = uncached_tokens(chains, c, prompt_tokens, home)
    slots = in_flight / max_seqs
    pinned = min(flight_tokens / kv_tokens, 1.0)
    queued_s = queued_tokens / prefill_tokens_per_s
    out[P_LOAD] = load(slots, pinned, queued_s)
    out[P_IN_FLIGHT] = in_flight
    out[P_SLOTS] = slots
    out[P_PINNED] = pinned
    out[P_QUEUED] = queued_s
    out[P_HOME] = 1.0 if home else 0.0
    out[P_HIT] = min(row[ch.CONTEXT] / max(prompt_tokens, 1.0), 1.0) if home else 0.0
    out[P_PROMPT] = np.log1p(prompt_tokens)
    out[P_NEW] = 1.0 if new else 0.0
    out[P_IDLE] = 0.0 if new else np.log1p(max(now - row[ch.LAST], 0.0))
    out[P_SESSIONS] = homed / max_seqs
    out[P_TURN] = turn
    out[P_UNCACHED] = uncached / prefill_tokens_per_s
    out[P_MEAN] = mean_in_flight
    out[P_DRAW] = out[P_RING] = 0.0


# ---------------------------------------------------------------- admission: the request at the head of a queue
ADMISSION = (
    "need_share",     # these as shares of the pool, see below
    "free_share",
    "evictable_share",
    "older_share",    # `older_idle`, and the next three with each chain weighed by
    "likely_share",   # the chance that it has not ended,
    "soon_share",     # that it comes back within 10 s,
    "later_share",    # within 60 s
    "growth_share",
    "pinned_share",
    "live_share",
    "lost_share",
    "growing_log",    # log1p of `session_growth` as a share of the pool
    "running_log",
    "active_log",
    "wait_log",
    "age_log",        # log1p seconds since its session began
    "left_log",       # log1p steps that its chain is expected to have left, at least 1
    "new",            # 1: first request of its chain, and it has not run yet
    "need",           # blocks that its prompt and expected output want beyond its cached prefix
    "free",           # blocks that hold nothing
    "evictable",      # blocks of idle chains
    "older_idle",     # of those: what unexpired chains whose session began before its own can use again
    "growth",         # blocks that what runs will still take: prompts not computed yet + expected output
    "pool",           # blocks in all
    "pinned",         # blocks that running requests hold
    "live",           # blocks pinned, or that idle chains which have not ended, as far as is known, can use again
    "session_growth", # blocks by which live chains are expected to grow until they end
    "running",        # running requests
    "wait_s",         # seconds that it has waited
    "active",         # chains of this worker that have been served and have not, as far as is known, ended
    "older_likely",   # `older_idle`, each chain weighed by the chance that it has not ended
    "lost",           # blocks of its context that are not cached here any more
    "older_returns",  # of `older_idle`: what is used again within 60 s; NaN unless the policy is an oracle
    "event",          # NO_EVENT: score this row; BEGIN: it was let in, for a policy with memory
    "event_blocks",   # BEGIN: cached blocks that it found
    "event_total",    # BEGIN: blocks of all its tokens
    *(f"here_{k}" for k in range(8)),   # what the policy remembers of the worker
)
(A_NEED_SHARE, A_FREE_SHARE, A_EVICTABLE_SHARE, A_OLDER_SHARE, A_LIKELY_SHARE, A_SOON_SHARE, A_LATER_SHARE,
 A_GROWTH_SHARE, A_PINNED_SHARE, A_LIVE_SHARE, A_LOST_SHARE, A_GROWING_LOG, A_RUNNING_LOG, A_ACTIVE_LOG, A_WAIT_LOG,
 A_AGE_LOG, A_LEFT_LOG, A_NEW, A_NEED, A_FREE, A_EVICTABLE, A_OLDER_IDLE, A_GROWTH, A_POOL, A_PINNED, A_LIVE,
 A_SESSION_GROWTH, A_RUNNING, A_WAIT, A_ACTIVE, A_OLDER_LIKELY, A_LOST, A_ORACLE, A_EVENT, A_EVENT_BLOCKS,
 A_EVENT_TOTAL, A_HERE) = range(37)
LEARNED_ADMISSION = ADMISSION[:A_NEED]
"""What a learned admission policy may read: bounded columns, never the oracle."""
SOON_S, LATER_S = 10.0, 60.0


@njit(cache=True)
def expected_output(tables, w, agent_type, max_tokens):
    """Output tokens to expect of a request: the EMA of its agent type, at most what it asked for (0 = no limit)."""
    e = tables.types[w, agent_type, tb.OUT]
    return min(e, max_tokens) if max_tokens > 0 else e


@njit(cache=True)
def expected_growth(chains, tables, w, c):
    """Tokens by which chain c is expected to grow until it ends: remaining steps x growth a step of its agent type."""
    a = tables.types[w, int(chains[c, ch.TYPE])]
    return max(a[tb.STEPS] - chains[c, ch.STEPS], 1.0) * a[tb.GROW]


@njit(cache=True)
def alive(chains, tables, w, c, now, last_use_s):
    """Chance that idle chain c has not ended: its tool's prior of unsaid ends, weighed by how many return so late."""
    row = chains[c]
    if row[ch.ENDED] > 0:
        return 0.0
    if ch.waits(chains, c, w):
        return 1.0
    tool = int(row[ch.TOOL])
    prior = tb.unsaid_prior(tables, w, int(row[ch.TYPE]), tool)
    stays = tb.survival(tables, w, tool, max(now - last_use_s, 0.0))
    return (1.0 - prior) * stays / (prior + (1.0 - prior) * stays)


@njit(cache=True)
def useful_share(row, owned, block):
    """Share of the `owned` blocks that a chain left in a pool which it can use again, at most."""
    return min(ch.useful_tokens(row) / max(owned * block, 1.0), 1.0)


@njit(cache=True)
def weigh_older(chains, tables, w, c, now, last_use_s, blocks, older):
    """Add an idle chain's `blocks` to `older` (3,) by the chances that it lives, returns in `SOON_S`, `LATER_S`."""
    lives = alive(chains, tables, w, c, now, last_use_s)
    older[0] += blocks * lives
    if ch.waits(chains, c, w):
        older[1] += blocks
        older[2] += blocks
    elif lives > 0:
        tool, idle = int(chains[c, ch.TOOL]), max(now - last_use_s, 0.0)
        stays = tb.survival(tables, w, tool, idle)
        older[1] += blocks * lives * max(1.0 - tb.survival(tables, w, tool, idle + SOON_S) / stays, 0.0)
        older[2] += blocks * lives * max(1.0 - tb.survival(tables, w, tool, idle + LATER_S) / stays, 0.0)


@njit(cache=True)
def is_new(row):
    """Whether nothing of the chain was served yet; one that was preempted in its first step is under way."""
    return row[ch.STEPS] == 0 and row[ch.ATTAINED] == 0


@njit(cache=True)
def lost_blocks(chains, c, known_tokens, cached_blocks, block):
    """Blocks of what chain c had computed, as far as its request of `known_tokens` can use it, that are not cached."""
    return max(min(chains[c, ch.CONTEXT], known_tokens - 1.0) // block - cached_blocks, 0.0)


@njit(cache=True)
def admission_row(chains, tables, g, w, c, now, queued_s, need, free, evictable, older_idle, growth, pool, pinned, live,
                  session_growth, running, active, weighed, lost, older_returns, out):
    """Fill `out` (len(ADMISSION),) for the request of chain c, queued at `queued_s`. need .. live, session_growth,
    lost, older_returns in blocks; running, active: counts; weighed: see `weigh_older`, zeros where the policy does not
    read it (G_ADMIT_INFORMED)."""
    row = chains[c]
    out[A_NEW] = 1.0 if is_new(row) else 0.0
    out[A_NEED] = need
    out[A_FREE] = free
    out[A_EVICTABLE] = evictable
    out[A_OLDER_IDLE] = older_idle
    out[A_GROWTH] = growth
    out[A_POOL] = pool
    out[A_PINNED] = pinned
    out[A_LIVE] = live
    out[A_SESSION_GROWTH] = session_growth
    out[A_RUNNING] = running
    out[A_WAIT] = now - queued_s
    out[A_ACTIVE] = active
    out[A_OLDER_LIKELY] = weighed[0]
    out[A_LOST] = lost
    out[A_ORACLE] = older_returns
    out[A_EVENT] = NO_EVENT
    out[A_EVENT_BLOCKS] = out[A_EVENT_TOTAL] = 0.0
    for k in range(HERE):
        out[A_HERE + k] = g[w, G_ADMIT + k]
    if g[w, G_ADMIT_INFORMED] == 0:
        return
    out[A_NEED_SHARE] = need / pool
    out[A_FREE_SHARE] = free / pool
    out[A_EVICTABLE_SHARE] = evictable / pool
    out[A_OLDER_SHARE] = older_idle / pool
    out[A_LIKELY_SHARE] = weighed[0] / pool
    out[A_SOON_SHARE] = weighed[1] / pool
    out[A_LATER_SHARE] = weighed[2] / pool
    out[A_GROWTH_SHARE] = growth / pool
    out[A_PINNED_SHARE] = pinned / pool
    out[A_LIVE_SHARE] = live / pool
    out[A_LOST_SHARE] = lost / pool
    out[A_GROWING_LOG] = np.log1p(session_growth / pool)
    out[A_RUNNING_LOG] = np.log1p(running)
    out[A_ACTIVE_LOG] = np.log1p(active)
    out[A_WAIT_LOG] = np.log1p(max(now - queued_s, 0.0))
    out[A_AGE_LOG] = np.log1p(max(now - row[ch.SESSION_S], 0.0))
    out[A_LEFT_LOG] = np.log1p(max(tables.types[w, int(row[ch.TYPE]), tb.STEPS] - row[ch.STEPS], 1.0))


@njit(cache=True)
def remember_admission(g, w, row, found, total, score, params, scratch):
    """Tell an admission policy with memory that the request of `row`, its `admission_row`, was let in and found `found`
    of its `total` blocks cached. It leaves what it wants to remember of the worker in scratch (`HERE`)."""
    row[A_EVENT], row[A_EVENT_BLOCKS], row[A_EVENT_TOTAL] = BEGIN, found, total
    score(row, params, scratch)
    for k in range(HERE):
        g[w, G_ADMIT + k] = scratch[k]


COLUMNS = {"eviction": len(EVICTION), "placement": len(PLACEMENT), "ordering": len(ORDERING),
           "admission": len(ADMISSION)}
"""Width of a row of each seam."""


@cache
def feature_hash() -> str:
    """SHA-256 over the code, less comments and docstrings, that makes feature rows; other checkpoints are refused."""
    here = Path(__file__).parent
    return code_hash(*((here / name).read_text(encoding="utf-8") for name in ("features.py", "chains.py", "tables.py")))
