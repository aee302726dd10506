"""Admission: the row of the request at the head of a queue."""

from __future__ import annotations

import numpy as np
from numba import njit

from saga_rl.policies.features.pools import BEGIN, G_ADMIT, G_ADMIT_INFORMED, HERE, NO_EVENT
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb

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
    out[A_NEW] = 1.0 if ch.is_new(row) else 0.0
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
