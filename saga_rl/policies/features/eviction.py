"""Eviction: the row of one evictable chain on one worker."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.features.columns import number
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


class EvictionColumns(NamedTuple):
    """Where each column is in a row."""

    idle_log: int  # log1p seconds since its blocks were last released
    waiting: int  # its next request is queued
    queue_log: int  # log1p requests ahead of it, while waiting
    residual_log: int  # log1p expected seconds until its tool returns
    p_return_10s: int  # chance that it returns within 10 s
    p_end: int  # chance that it has ended
    ttl_left: int  # (ttl - idle) / ttl, clipped to [-1, 1]
    p_reuse: int  # (1 - end prior) * n / (n + n_obs), SAGA section 2
    recency: int  # idle / largest idle seen on the worker
    size: int  # its blocks / largest chain in the pool
    used: int  # share of the pool that holds anything
    live: int  # share of the pool pinned or within TTL
    context_log: int  # log1p context tokens
    steps_log: int  # log1p finished steps
    age_log: int  # log1p seconds since its session began
    ended: int  # the client said that it ended
    shared: int  # 1: a prefix that several chains share
    until_log: int  # log1p seconds until its next use by Bayes' rule, see `until_s`
    young_log: int  # log1p chains that it may wait for, see `chains.younger`
    young_busy: int  # of those: share with a request that waits or runs,
    young_steps_log: int  # log1p fewest finished steps,
    young_idle_log: int  # log1p seconds since one was heard of; its own idle time if there are none
    pause_log: int  # moving average of log1p seconds between its own steps
    longest_log: int  # log1p of the longest of them so far
    idle_s: int  # raw, for LRU
    age_s: int  # raw, for age order
    oracle: int  # when it is next used, s or events (inf = never); NaN unless the policy is an oracle
    tokens: int  # raw, its evictable tokens here
    context: int  # raw, tokens
    obs_tokens: int  # expected of its tool's answer
    residual_s: int  # raw
    step_s: int  # service seconds of a step of its agent type
    steps_left: int  # steps that a chain of its agent type is expected to have left, at least 1
    tasks: int  # ended chains of its agent type (cold start)
    event: int  # NO_EVENT: score this row; else what happened, for a policy with memory
    event_blocks: int  # BEGIN: cached blocks found; RELEASE: evictable blocks; EVICT: blocks taken
    event_total: int  # BEGIN: blocks of all its tokens; RELEASE, EVICT: evictable blocks that it has left
    event_score: int  # EVICT: the victim's score
    pool_blocks: int  # blocks of the pool
    useful: int  # of its tokens here at most so many can be used again (`chains.useful_tokens`)
    mine: int  # what the policy remembers of the chain,
    here: int  # and of the worker


EV, EVICTION = number(EvictionColumns, mine=ch.REMEMBERED, here=HERE)
UNTIL_HORIZON_S = 300.0
LEARNED_EVICTION = EVICTION[:EV.idle_s]
"""What a learned eviction policy may read: the bounded columns, never the oracle."""


@njit(cache=True)
def eviction_row(chains, tables, g, w, c, now, last_use_s, blocks, shared, oracle, out):
    """Fill `out` (len(EVICTION),) for chain c on worker w.

    last_use_s: when the blocks in question were last released; blocks: how many of them are resident; oracle: next
    use, or NaN. Keeps G_TAU_MAX, the largest idle time seen (SAGA section 3). What the tables say, and what is scaled
    for networks, is left as it was in `out` where the policy does not read it (G_INFORMED).
    """
    row = chains[c]
    idle = max(now - last_use_s, 0.0)
    g[w, G_TAU_MAX] = max(g[w, G_TAU_MAX], idle)
    waiting = ch.waits(chains, c, w)
    ended = row[ch.ENDED] > 0
    age = max(now - row[ch.SESSION_S], 0.0)
    out[EV.waiting] = 1.0 if waiting else 0.0
    out[EV.queue_log] = np.log1p(row[ch.QPOS]) if waiting else 0.0
    out[EV.recency] = idle / g[w, G_TAU_MAX] if g[w, G_TAU_MAX] > 0 else 0.0
    out[EV.size] = min(blocks / max(g[w, G_SIZE_MAX], 1.0), 1.0)
    out[EV.used] = g[w, G_USED]
    out[EV.live] = g[w, G_LIVE]
    out[EV.ended] = 1.0 if ended else 0.0
    out[EV.shared] = shared
    out[EV.idle_s] = idle
    out[EV.age_s] = age
    out[EV.oracle] = oracle
    out[EV.tokens] = blocks * g[w, G_BLOCK]
    out[EV.context] = row[ch.CONTEXT]
    out[EV.event] = NO_EVENT
    out[EV.event_blocks] = out[EV.event_total] = out[EV.event_score] = 0.0
    out[EV.pool_blocks] = g[w, G_POOL]
    out[EV.useful] = ch.useful_tokens(row)
    for k in range(ch.REMEMBERED):
        out[EV.mine + k] = row[ch.MINE + k]
    for k in range(HERE):
        out[EV.here + k] = g[w, G_HERE + k]
    if g[w, G_INFORMED] > 0:
        _informed(chains, tables, g, w, c, idle, waiting, ended, out)
    if g[w, G_INFORMED] > 1:
        _scaled(chains, tables, w, c, now, idle, age, waiting, out)


@njit(cache=True)
def until_s(residual_s, idle_s, p_end, idle_weight, horizon_s):
    """Seconds until an idle chain's next use: by the tables + `idle_weight` x idle; `horizon_s` if it has ended."""
    until = residual_s + idle_weight * idle_s
    return until + p_end * max(horizon_s - until, 0.0)


@njit(cache=True)
def _informed(chains, tables, g, w, c, idle, waiting, ended, out):
    """The columns of an eviction row that cost a look into the tables."""
    row = chains[c]
    tool, agent_type = int(row[ch.TOOL]), int(row[ch.TYPE])
    prior = tb.end_prior(tables, w, agent_type, tool)
    p_end = 1.0
    if not ended:
        unsaid = prior * (1.0 - tables.types[w, agent_type, tb.ANNOUNCED])
        p_end = unsaid / (unsaid + (1.0 - unsaid) * tb.survival(tables, w, tool, idle))
    pressure = min(max((g[w, G_USED] - 0.7) / 0.2, 0.0), 1.0)
    ttl = tb.ttl(tables, w, tool, pressure)
    n = max(row[ch.CONTEXT], 1.0)
    obs = tables.obs[w, tool + 1]
    out[EV.p_end] = 0.0 if waiting else p_end
    out[EV.ttl_left] = min(max((ttl - idle) / ttl, -1.0), 1.0)
    out[EV.p_reuse] = 1.0 if waiting else (1.0 - prior) * n / (n + obs)
    out[EV.obs_tokens] = obs
    out[EV.residual_s] = 0.0 if waiting else tb.residual_s(tables, w, tool, idle)
    out[EV.step_s] = tables.types[w, agent_type, tb.STEP_S]
    out[EV.steps_left] = max(tables.types[w, agent_type, tb.STEPS] - row[ch.STEPS], 1.0)
    out[EV.tasks] = tables.types[w, agent_type, tb.DONE]


@njit(cache=True)
def _scaled(chains, tables, w, c, now, idle, age, waiting, out):
    """The columns of an eviction row that are for networks: logarithms, a chain's kin and its pauses. Follows
    `_informed`."""
    row = chains[c]
    tool, residual, p_end = int(row[ch.TOOL]), out[EV.residual_s], out[EV.p_end]
    stays, later = tb.survival(tables, w, tool, idle), tb.survival(tables, w, tool, idle + 10.0)
    out[EV.idle_log] = np.log1p(idle)
    out[EV.residual_log] = np.log1p(residual)
    out[EV.p_return_10s] = 1.0 if waiting else (1.0 - p_end) * (1.0 - min(later / stays, 1.0))
    out[EV.context_log] = np.log1p(row[ch.CONTEXT])
    out[EV.steps_log] = np.log1p(row[ch.STEPS])
    out[EV.age_log] = np.log1p(age)
    out[EV.until_log] = np.log1p(until_s(residual, idle, p_end, 1.0, UNTIL_HORIZON_S))
    young, busy, steps, heard_s = ch.younger(chains, w, c, now)
    out[EV.young_log] = np.log1p(young)
    out[EV.young_busy] = busy / max(young, 1)
    out[EV.young_steps_log] = np.log1p(steps)
    out[EV.young_idle_log] = np.log1p(heard_s) if young > 0 else out[EV.idle_log]
    out[EV.pause_log] = row[ch.PAUSE]
    out[EV.longest_log] = row[ch.LONGEST]


@njit(cache=True)
def remember(chains, g, w, c, row, event, blocks, total, victim_score, score, params, scratch):
    """Tell an eviction policy with memory what happened to chain c; `row` is its `eviction_row` of that moment. The
    policy leaves what it wants to remember in scratch: of the chain (`ch.REMEMBERED`), then of the worker (`HERE`)."""
    row[EV.event], row[EV.event_blocks], row[EV.event_total], row[EV.event_score] = event, blocks, total, victim_score
    score(row, params, scratch)
    for k in range(ch.REMEMBERED):
        chains[c, ch.MINE + k] = scratch[k]
    for k in range(HERE):
        g[w, G_HERE + k] = scratch[ch.REMEMBERED + k]
