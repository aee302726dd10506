"""Admission: the row of the request at the head of a queue."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.features.columns import number
from saga_rl.policies.features.pools import BEGIN, G_ADMIT, G_ADMIT_INFORMED, G_BLOCK, HERE, NO_EVENT
from saga_rl.policies.features.tier import tier_found
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb


class AdmissionColumns(NamedTuple):
    """Where each column is in a row."""

    need_share: int  # these as shares of the pool, see below
    free_share: int
    evictable_share: int
    older_share: int  # `older_idle`, and the next three with each chain weighed by
    likely_share: int  # the chance that it has not ended,
    soon_share: int  # that it comes back within 10 s,
    later_share: int  # within 60 s
    growth_share: int
    pinned_share: int
    live_share: int
    lost_share: int
    growing_log: int  # log1p of `session_growth` as a share of the pool
    running_log: int
    active_log: int
    wait_log: int
    age_log: int  # log1p seconds since its session began
    left_log: int  # log1p steps that its chain is expected to have left, at least 1
    new: int  # 1: first request of its chain, and it has not run yet
    need: int  # blocks that its prompt and expected output want beyond its cached prefix
    free: int  # blocks that hold nothing
    evictable: int  # blocks of idle chains
    older_idle: int  # of those: what unexpired chains whose session began before its own can use again
    growth: int  # blocks that what runs will still take: prompts not computed yet + expected output
    pool: int  # blocks in all
    pinned: int  # blocks that running requests hold
    live: int  # blocks pinned, or that idle chains which have not ended, as far as is known, can use again
    session_growth: int  # blocks by which live chains are expected to grow until they end
    running: int  # running requests
    wait_s: int  # seconds that it has waited
    active: int  # chains of this worker that have been served and have not, as far as is known, ended
    older_likely: int  # `older_idle`, each chain weighed by the chance that it has not ended
    lost: int  # blocks of its context that are not cached here any more
    older_returns: int  # of `older_idle`: what is used again within 60 s; NaN unless the policy is an oracle
    tier_found: int  # share of lost blocks that memory below the pool is expected to have; 0: there is none
    block_tokens: int  # tokens of one of these blocks
    event: int  # NO_EVENT: score this row; BEGIN: it was let in, for a policy with memory
    event_blocks: int  # BEGIN: cached blocks that it found
    event_total: int  # BEGIN: blocks of all its tokens
    here: int  # what the policy remembers of the worker


AD, ADMISSION = number(AdmissionColumns, here=HERE)
LEARNED_ADMISSION = ADMISSION[:AD.need]
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
def add_expected_older(chains, tables, w, c, now, last_use_s, blocks, older):
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
                  session_growth, running, active, expected_older, lost, older_returns, out):
    """Fill `out` (len(ADMISSION),) for the request of chain c, queued at `queued_s`. need .. live, session_growth,
    lost, older_returns in blocks; running, active: counts; expected_older: see `add_expected_older`, zeros where
    the policy does not read it (G_ADMIT_INFORMED)."""
    row = chains[c]
    out[AD.new] = 1.0 if ch.is_new(row) else 0.0
    out[AD.need] = need
    out[AD.free] = free
    out[AD.evictable] = evictable
    out[AD.older_idle] = older_idle
    out[AD.growth] = growth
    out[AD.pool] = pool
    out[AD.pinned] = pinned
    out[AD.live] = live
    out[AD.session_growth] = session_growth
    out[AD.running] = running
    out[AD.wait_s] = now - queued_s
    out[AD.active] = active
    out[AD.older_likely] = expected_older[0]
    out[AD.lost] = lost
    out[AD.older_returns] = older_returns
    out[AD.tier_found] = tier_found(g, w, now)
    out[AD.block_tokens] = g[w, G_BLOCK]
    out[AD.event] = NO_EVENT
    out[AD.event_blocks] = out[AD.event_total] = 0.0
    for k in range(HERE):
        out[AD.here + k] = g[w, G_ADMIT + k]
    if g[w, G_ADMIT_INFORMED] == 0:
        return
    out[AD.need_share] = need / pool
    out[AD.free_share] = free / pool
    out[AD.evictable_share] = evictable / pool
    out[AD.older_share] = older_idle / pool
    out[AD.likely_share] = expected_older[0] / pool
    out[AD.soon_share] = expected_older[1] / pool
    out[AD.later_share] = expected_older[2] / pool
    out[AD.growth_share] = growth / pool
    out[AD.pinned_share] = pinned / pool
    out[AD.live_share] = live / pool
    out[AD.lost_share] = lost / pool
    out[AD.growing_log] = np.log1p(session_growth / pool)
    out[AD.running_log] = np.log1p(running)
    out[AD.active_log] = np.log1p(active)
    out[AD.wait_log] = np.log1p(max(now - queued_s, 0.0))
    out[AD.age_log] = np.log1p(max(now - row[ch.SESSION_S], 0.0))
    out[AD.left_log] = np.log1p(max(tables.types[w, int(row[ch.TYPE]), tb.STEPS] - row[ch.STEPS], 1.0))


@njit(cache=True)
def remember_admission(g, w, row, found, total, score, params, scratch):
    """Tell an admission policy with memory that the request of `row`, its `admission_row`, was let in and found `found`
    of its `total` blocks cached. It leaves what it wants to remember of the worker in scratch (`HERE`)."""
    row[AD.event], row[AD.event_blocks], row[AD.event_total] = BEGIN, found, total
    score(row, params, scratch)
    for k in range(HERE):
        g[w, G_ADMIT + k] = scratch[k]
