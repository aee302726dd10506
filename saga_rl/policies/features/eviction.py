"""Eviction: the row of one evictable chain on one worker."""

from __future__ import annotations

import numpy as np
from numba import njit

from saga_rl.policies.features.pools import (
    G_BLOCK,
    G_HERE,
    G_INFORMED,
    G_LIVE,
    G_POOL,
    G_SIZE_MAX,
    G_TAU_MAX,
    G_USED,
    HERE,
    NO_EVENT,
)
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb

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
    "until_log",      # log1p seconds until its next use by Bayes' rule, see `until_s`
    "young_log",      # log1p chains that it may wait for, see `chains.younger`
    "young_busy",     # of those: share with a request that waits or runs,
    "young_steps_log",  # log1p fewest finished steps,
    "young_idle_log",   # log1p seconds since one was heard of; its own idle time if there are none
    "pause_log",      # moving average of log1p seconds between its own steps
    "longest_log",    # log1p of the longest of them so far
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
 E_USED, E_LIVE, E_CONTEXT_LOG, E_STEPS_LOG, E_AGE_LOG, E_ENDED, E_SHARED, E_UNTIL_LOG, E_YOUNG_LOG,
 E_YOUNG_BUSY, E_YOUNG_STEPS, E_YOUNG_IDLE, E_PAUSE, E_LONGEST, E_IDLE_S, E_AGE_S, E_ORACLE,
 E_TOKENS, E_CONTEXT, E_OBS, E_RESIDUAL_S, E_STEP_S, E_STEPS_LEFT, E_TASKS, E_EVENT, E_EVENT_BLOCKS, E_EVENT_TOTAL,
 E_EVENT_SCORE, E_POOL_BLOCKS, E_USEFUL, E_MINE) = range(41)
E_HERE = E_MINE + ch.REMEMBERED
UNTIL_HORIZON_S = 300.0
LEARNED_EVICTION = EVICTION[:E_IDLE_S]
"""What a learned eviction policy may read: the bounded columns, never the oracle."""


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
        _informed(chains, tables, g, w, c, now, idle, age, waiting, ended, out)


@njit(cache=True)
def until_s(residual_s, idle_s, p_end, idle_weight, horizon_s):
    """Seconds until an idle chain's next use: by the tables + `idle_weight` x idle; `horizon_s` if it has ended."""
    until = residual_s + idle_weight * idle_s
    return until + p_end * max(horizon_s - until, 0.0)


@njit(cache=True)
def _informed(chains, tables, g, w, c, now, idle, age, waiting, ended, out):
    """The columns of an eviction row that cost a look into the tables or at other chains, or a logarithm."""
    row = chains[c]
    tool, agent_type = int(row[ch.TOOL]), int(row[ch.TYPE])
    prior = tb.end_prior(tables, w, agent_type, tool)
    stays = tb.survival(tables, w, tool, idle)
    unsaid = prior * (1.0 - tables.types[w, agent_type, tb.TOLD])
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
    out[E_UNTIL_LOG] = np.log1p(until_s(residual, idle, out[E_P_END], 1.0, UNTIL_HORIZON_S))
    young, busy, steps, heard_s = ch.younger(chains, w, c, now)
    out[E_YOUNG_LOG] = np.log1p(young)
    out[E_YOUNG_BUSY] = busy / max(young, 1)
    out[E_YOUNG_STEPS] = np.log1p(steps)
    out[E_YOUNG_IDLE] = np.log1p(heard_s) if young > 0 else out[E_IDLE_LOG]
    out[E_PAUSE] = row[ch.PAUSE]
    out[E_LONGEST] = row[ch.LONGEST]
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
