"""The feature rows of the four seams: the one place where observations are made.

Simulator, environments and vLLM adapter call these functions, so a policy sees in service what it was trained on. The
hash of this file's code, `chains.py`'s and `tables.py`'s is written into every checkpoint (`feature_hash`).

All rows are float64. Seconds and tokens enter learned policies as log(1 + x); raw values stay beside them for the
heuristics. The ORACLE column is NaN for every policy that does not declare `oracle=True`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numba import njit

from saga_rl.policies import chains as ch
from saga_rl.policies import tables as tb
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
)
(E_IDLE_LOG, E_WAITING, E_QUEUE_LOG, E_RESIDUAL_LOG, E_P_RETURN, E_P_END, E_TTL_LEFT, E_P_REUSE, E_RECENCY, E_SIZE,
 E_USED, E_LIVE, E_CONTEXT_LOG, E_STEPS_LOG, E_AGE_LOG, E_ENDED, E_SHARED, E_IDLE_S, E_AGE_S, E_ORACLE) = range(20)
LEARNED_EVICTION = EVICTION[:E_IDLE_S]
"""What a learned eviction policy may read: the bounded columns, never the oracle."""

# state of a worker's pool that the caller refreshes before it scores: G[w, ...]
G_TAU_MAX, G_SIZE_MAX, G_USED, G_LIVE = range(4)
G_COLUMNS = 4


@njit(cache=True)
def eviction_row(chains, tables, g, w, c, now, last_use_s, blocks, shared, oracle, out):
    """Fill `out` (len(EVICTION),) for chain c on worker w.

    last_use_s: when the blocks in question were last released; blocks: how many of them are resident; oracle: next
    use, or NaN. Keeps G_TAU_MAX, the largest idle time seen (SAGA section 3).
    """
    row = chains[c]
    tool = int(row[ch.TOOL])
    idle = max(now - last_use_s, 0.0)
    g[w, G_TAU_MAX] = max(g[w, G_TAU_MAX], idle)
    waiting = ch.waits(chains, c, w)
    ended = row[ch.ENDED] > 0
    prior = tb.end_prior(tables, w, tool)
    stays = tb.survival(tables, w, tool, idle)
    p_end = 1.0 if ended else prior / (prior + (1.0 - prior) * stays)
    pressure = min(max((g[w, G_USED] - 0.7) / 0.2, 0.0), 1.0)
    ttl = tb.ttl(tables, w, tool, pressure)
    out[E_IDLE_LOG] = np.log1p(idle)
    out[E_WAITING] = 1.0 if waiting else 0.0
    out[E_QUEUE_LOG] = np.log1p(row[ch.QPOS]) if waiting else 0.0
    out[E_RESIDUAL_LOG] = 0.0 if waiting else np.log1p(tb.residual_s(tables, w, tool, idle))
    later = tb.survival(tables, w, tool, idle + 10.0)
    out[E_P_RETURN] = 1.0 if waiting else (1.0 - p_end) * (1.0 - min(later / stays, 1.0))
    out[E_P_END] = 0.0 if waiting else p_end
    out[E_TTL_LEFT] = min(max((ttl - idle) / ttl, -1.0), 1.0)
    n = max(row[ch.CONTEXT], 1.0)
    out[E_P_REUSE] = 1.0 if waiting else (1.0 - prior) * n / (n + tables.obs[w, tool + 1])
    out[E_RECENCY] = idle / g[w, G_TAU_MAX] if g[w, G_TAU_MAX] > 0 else 0.0
    out[E_SIZE] = min(blocks / max(g[w, G_SIZE_MAX], 1.0), 1.0)
    out[E_USED] = g[w, G_USED]
    out[E_LIVE] = g[w, G_LIVE]
    out[E_CONTEXT_LOG] = np.log1p(row[ch.CONTEXT])
    out[E_STEPS_LOG] = np.log1p(row[ch.STEPS])
    age = max(now - row[ch.SESSION_S], 0.0)
    out[E_AGE_LOG] = np.log1p(age)
    out[E_ENDED] = 1.0 if ended else 0.0
    out[E_SHARED] = shared
    out[E_IDLE_S] = idle
    out[E_AGE_S] = age
    out[E_ORACLE] = oracle


# ---------------------------------------------------------------- ordering: one waiting request
ORDERING = (
    "arrival_s",      # when the request was queued
    "session_s",      # when its session began
    "preempted",      # 1: it ran before and lost its blocks
    "attained_s",     # service that its chain has had
    "steps",          # finished steps of its chain
    "afs",            # its tenant's Agent Fair Share
    "wait_s",         # seconds in the queue so far
    "prompt_tokens",
)
O_ARRIVAL, O_SESSION, O_PREEMPTED, O_ATTAINED, O_STEPS, O_AFS, O_WAIT, O_PROMPT = range(8)


@njit(cache=True)
def ordering_row(chains, c, now, queued_s, prompt_tokens, preempted, afs, out):
    """Fill `out` (len(ORDERING),) for the request of chain c that was queued at `queued_s`."""
    row = chains[c]
    out[O_ARRIVAL] = queued_s
    out[O_SESSION] = row[ch.SESSION_S]
    out[O_PREEMPTED] = preempted
    out[O_ATTAINED] = row[ch.ATTAINED]
    out[O_STEPS] = row[ch.STEPS]
    out[O_AFS] = afs
    out[O_WAIT] = now - queued_s
    out[O_PROMPT] = prompt_tokens


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
)
P_LOAD, P_IN_FLIGHT, P_SLOTS, P_PINNED, P_QUEUED, P_HOME, P_HIT, P_PROMPT, P_NEW, P_IDLE, P_SESSIONS = range(11)


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
                  prefill_tokens_per_s, homed, out):
    """Fill `out` (len(PLACEMENT),) for one worker. Everything is known to a router without asking the worker: what it
    sent there (`in_flight`, `flight_tokens`, and `queued_tokens` = `uncached_tokens` of the requests without a first
    token) and where chains live (`home`, `homed`)."""
    row = chains[c]
    new = row[ch.STEPS] == 0
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


# ---------------------------------------------------------------- admission: the request at the head of a queue
ADMISSION = (
    "need",           # blocks that its prompt and expected output want beyond its cached prefix
    "free",           # blocks that hold nothing
    "evictable",      # blocks of idle chains
    "older_idle",     # of those: of unexpired chains whose session began before its own
    "growth",         # blocks that what runs will still take: prompts not computed yet + expected output
    "pool",           # blocks in all
    "pinned",         # blocks that running requests hold
    "new",            # 1: first request of its chain
    "live",           # blocks pinned or of idle chains that are not known or presumed to have ended
    "session_growth", # blocks by which live chains are expected to grow until they end
    "running",        # running requests
    "wait_s",         # seconds that it has waited
)
(A_NEED, A_FREE, A_EVICTABLE, A_OLDER_IDLE, A_GROWTH, A_POOL, A_PINNED, A_NEW, A_LIVE, A_SESSION_GROWTH, A_RUNNING,
 A_WAIT) = range(12)


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
def admission_row(need, free, evictable, older_idle, growth, pool, pinned, new, live, session_growth, running, wait_s,
                  out):
    """Fill `out` (len(ADMISSION),); all but `new` and `wait_s` in blocks or counts."""
    out[A_NEED] = need
    out[A_FREE] = free
    out[A_EVICTABLE] = evictable
    out[A_OLDER_IDLE] = older_idle
    out[A_GROWTH] = growth
    out[A_POOL] = pool
    out[A_PINNED] = pinned
    out[A_NEW] = new
    out[A_LIVE] = live
    out[A_SESSION_GROWTH] = session_growth
    out[A_RUNNING] = running
    out[A_WAIT] = wait_s


COLUMNS = {"eviction": len(EVICTION), "placement": len(PLACEMENT), "ordering": len(ORDERING),
           "admission": len(ADMISSION)}
"""Width of a row of each seam."""


@cache
def feature_hash() -> str:
    """SHA-256 over the code, comments and docstrings aside, of everything that makes a feature row; a checkpoint that
    was trained on other code is refused."""
    here = Path(__file__).parent
    return code_hash(*((here / name).read_text(encoding="utf-8") for name in ("features.py", "chains.py", "tables.py")))
