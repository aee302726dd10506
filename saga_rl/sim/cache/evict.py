"""Room in a worker's pool: whose idle blocks go, by an eviction policy's score. `cache` keeps the books.

A policy sees one row for each candidate, an idle segment without resident children, and tail blocks go first. Floors
(`policies.constraints`) stand outside the score: what lies within one is no candidate while there is another.
"""

from __future__ import annotations

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.features import EV, EVICT, G_LIVE, G_MEMORY, G_SIZE_MAX, G_TAU_MAX, G_USED, eviction_row, remember
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb
from saga_rl.sim.cache import pool as kv


@njit(cache=True)
def refresh(p, chains, tables, g, w, now):
    """Bring the worker's G columns up to date before rows are made."""
    pool = float(p.n[w, kv.POOL])
    live = p.n[w, kv.PINNED] + p.n[w, kv.PRIVATE]
    largest = 0
    oldest = g[w, G_TAU_MAX]
    used = (p.n[w, kv.RESIDENT] + p.n[w, kv.PRIVATE]) / pool
    pressure = min(max((used - 0.7) / 0.2, 0.0), 1.0)
    for k in range(p.n[w, kv.IDLE]):
        r = kv.row(p, w, p.idle[w, k])
        c = p.owner[r]
        largest = max(largest, p.owned[kv.owned_row(p, w, c)])
        idle = now - p.last[r]
        oldest = max(oldest, idle)
        if ch.waits(chains, c, w) or (
                chains[c, ch.ENDED] == 0 and idle <= tb.ttl(tables, w, int(chains[c, ch.TOOL]), pressure)):
            live += p.res[r]
    g[w, G_USED] = used
    g[w, G_LIVE] = live / pool
    g[w, G_SIZE_MAX] = largest
    g[w, G_TAU_MAX] = oldest  # before any row is made, so that rows do not depend on the order they are made in


@njit(cache=True)
def row_of(p, chains, tables, g, w, seg, now, next_use, out):
    """The eviction feature row of idle segment `seg`."""
    r = kv.row(p, w, seg)
    c = p.owner[r]
    shared = 1.0 if p.user[r] == -2 else 0.0
    eviction_row(chains, tables, g, w, c, now, p.last[r], p.owned[kv.owned_row(p, w, c)], shared, next_use[seg], out)


@njit(cache=True)
def rank(p, chains, tables, g, w, now, next_use, score, params, scratch, features, scores):
    """Bring the worker's columns up to date and score every candidate: idle segments without resident children.
    scores: by the pool's rows."""
    refresh(p, chains, tables, g, w, now)
    for k in range(p.n[w, kv.IDLE]):
        seg = p.idle[w, k]
        r = kv.row(p, w, seg)
        if p.kids[r] == 0:
            row_of(p, chains, tables, g, w, seg, now, next_use, features)
            scores[r] = score(features, params, scratch)


@njit(cache=True)
def notify(p, chains, tables, g, w, c, last_s, event, blocks, total, victim_score, now, score, params, scratch,
           features):
    """Notify a policy with memory of what happened to chain c on worker w, see `features.remember`."""
    eviction_row(chains, tables, g, w, c, now, last_s, p.owned[kv.owned_row(p, w, c)], 0.0, np.nan, features)
    remember(chains, g, w, c, features, event, blocks, total, victim_score, score, params, scratch)


@njit(cache=True)
def _evict_and_notify(t, p, chains, tables, g, w, seg, blocks, victim_score, now, score, params, scratch, features):
    """`cache.evict_blocks`, and notify a policy with memory."""
    r = kv.row(p, w, seg)
    c, last_s = p.owner[r], p.last[r]
    kv.evict_blocks(t, p, w, seg, blocks)
    if g[w, G_MEMORY] > 0:
        notify(p, chains, tables, g, w, c, last_s, EVICT, float(blocks), float(p.owned[kv.owned_row(p, w, c)]),
               victim_score, now, score, params, scratch, features)


@njit(cache=True)
def same_run(p, child, shared, parent):
    """Whether one release made both rows idle, the child (which was `shared`) first, and nothing known by now tells
    them apart: then they go as one, as in vLLM's queue, which cannot know where a later context will branch off."""
    return p.owner[parent] == p.owner[child] and p.seq[parent] == p.seq[child] + 1 and (
        (p.user[parent] == -2) == shared)


@njit(cache=True)
def make_room(t, p, chains, tables, g, w, need, now, next_use, score, params, scratch, whole, features, scores):
    """Evict until `need` blocks are free, highest score first (ties: released earliest). The caller checked that
    FREE + `evictable` suffices, and called `rank`. What becomes a candidate later is scored then."""
    while p.n[w, kv.FREE] < need:
        best, best_row = -1, np.int64(-1)
        for k in range(p.n[w, kv.IDLE]):
            seg = p.idle[w, k]
            r = kv.row(p, w, seg)
            if p.kids[r] == 0 and (best < 0 or scores[r] > scores[best_row] or (
                    scores[r] == scores[best_row] and p.seq[r] < p.seq[best_row])):
                best, best_row = seg, r
        owner, victim_score, taken, last_s = p.owner[best_row], scores[best_row], 0, p.last[best_row]
        while True:
            shared = p.user[best_row] == -2
            n = p.res[best_row] if whole else min(p.res[best_row], need - p.n[w, kv.FREE])
            kv.evict_blocks(t, p, w, best, n)
            taken += n
            up = freed_parent(t, p, w, best)
            up_row = kv.row(p, w, up) if up >= 0 else np.int64(-1)
            same = up >= 0 and np.isnan(next_use[up]) and same_run(p, best_row, shared, up_row)  # an oracle tells apart
            if same:
                scores[up_row] = victim_score
            if not (same and p.n[w, kv.FREE] < need) and not (up >= 0 and whole and p.owner[up_row] == owner):
                break
            best, best_row = up, up_row
        if g[w, G_MEMORY] > 0:
            owned = float(p.owned[kv.owned_row(p, w, owner)])
            notify(p, chains, tables, g, w, owner, last_s, EVICT, float(taken), owned, victim_score, now, score, params,
                   scratch, features)
        if up >= 0 and not same:
            row_of(p, chains, tables, g, w, up, now, next_use, features)
            scores[up_row] = score(features, params, scratch)


@njit(cache=True)
def make_room_floored(t, p, chains, tables, g, w, need, now, next_use, score, params, scratch, features, scores, floors,
                      held, tenant):
    """`make_room` for a request of `tenant` that leaves other tenants at least `floors` blocks each, of the `held` ones
    (by tenant, in use or idle; brought up to date). Returns how many blocks had to be taken nevertheless."""
    broken = 0
    while p.n[w, kv.FREE] < need:
        best, best_row, best_kept = -1, np.int64(-1), True
        for k in range(p.n[w, kv.IDLE]):
            seg = p.idle[w, k]
            r = kv.row(p, w, seg)
            if p.kids[r] > 0:
                continue
            other = int(chains[p.owner[r], ch.TENANT])
            kept = other != tenant and held[other] <= floors[other]
            if best < 0 or (best_kept and not kept) or (best_kept == kept and (scores[r] > scores[best_row] or (
                    scores[r] == scores[best_row] and p.seq[r] < p.seq[best_row]))):
                best, best_row, best_kept = seg, r, kept
        other = int(chains[p.owner[best_row], ch.TENANT])
        n = min(np.int64(p.res[best_row]), need - p.n[w, kv.FREE])
        if best_kept:
            broken += n
        elif other != tenant:
            n = min(n, int(np.ceil(held[other] - floors[other])))
        held[other] -= n
        shared = p.user[best_row] == -2
        _evict_and_notify(t, p, chains, tables, g, w, best, n, scores[best_row], now, score, params, scratch, features)
        up = freed_parent(t, p, w, best)
        up_row = kv.row(p, w, up) if up >= 0 else np.int64(-1)
        if up >= 0 and np.isnan(next_use[up]) and same_run(p, best_row, shared, up_row):
            scores[up_row] = scores[best_row]
        elif up >= 0:
            row_of(p, chains, tables, g, w, up, now, next_use, features)
            scores[up_row] = score(features, params, scratch)
    return broken


@njit(cache=True)
def make_room_oldest_first(t, p, w, need):
    """`make_room` for a policy that always takes what was released earliest, without looking at features."""
    idle, kids, seq, n = p.idle, p.kids, p.seq, p.n
    while n[w, kv.FREE] < need:
        best, best_row = -1, np.int64(-1)
        for k in range(n[w, kv.IDLE]):
            seg = idle[w, k]
            r = kv.row(p, w, seg)
            if kids[r] == 0 and (best < 0 or seq[r] < seq[best_row]):
                best, best_row = seg, r
        kv.evict_blocks(t, p, w, best, min(p.res[best_row], need - p.n[w, kv.FREE]))


@njit(cache=True)
def freed_parent(t, p, w, seg):
    """The parent of `seg` if it is a candidate now that `seg` holds nothing, else -1."""
    up = t.parent[seg]
    if up >= 0:
        r = kv.row(p, w, up)
        if p.res[kv.row(p, w, seg)] > 0 or p.slot[r] < 0 or p.kids[r] > 0:
            up = np.int32(-1)  # of the type of segments everywhere else, so that callees are compiled once
    return up


@njit(cache=True)
def drop_expired(t, p, chains, tables, g, w, now, next_use, features):
    """Literal TTL: free every idle chain whose TTL has run out and which does not wait. To act as a timer would, call
    it before each event, above all before a request that comes back is marked as waiting."""
    if p.n[w, kv.IDLE] == 0:
        return
    refresh(p, chains, tables, g, w, now)
    k = 0
    while k < p.n[w, kv.IDLE]:
        seg = p.idle[w, k]
        dropped = False
        while seg >= 0 and p.kids[kv.row(p, w, seg)] == 0 and not ch.waits(chains, p.owner[kv.row(p, w, seg)], w):
            row_of(p, chains, tables, g, w, seg, now, next_use, features)
            if features[EV.ttl_left] >= 0.0:
                break
            kv.evict_blocks(t, p, w, seg, p.res[kv.row(p, w, seg)])
            dropped = True
            seg = freed_parent(t, p, w, seg)
        if not dropped:
            k += 1  # else another segment has moved to place k
