"""A worker's KV block pool with a block-exact prefix cache, as counts over the segments of a `Forest`.

Every block of worker w's pool is in exactly one state (invariant I1: free + private + resident = pool):

- free: holds nothing;
- private: held by a running request and not shareable: its partly filled last block, or a copy of a block that
  another request has published meanwhile;
- resident: a full block of some segment, found by later prompts. *Pinned* while a running request's path holds the
  segment (I4: never evicted), else *idle* and evictable.

A segment's resident blocks are its first `res` ones, and its parent is full while it has any (I5): eviction takes tail
blocks of segments without resident children. As in vLLM, full blocks are published when they are allocated, and blocks
are released tail first when a request ends. Where vLLM computes a block anew that is cached (the last one of a prompt
that is cached to its very end) and nobody holds it, the request takes the cached block over; if somebody does, it
computes a private copy, which is freed at release. vLLM keeps both cached. What agrees with vLLM exactly, and what does
not: docs/explanation/exactness.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.forest import Forest
from saga_rl.njit import njit

# columns of Pool.n
POOL, FREE, PRIVATE, RESIDENT, PINNED, EVICTED, SEQ, IDLE = range(8)
COUNTERS = 8
# Pool.meta
IDS, SEGMENTS, MASK, ROWS, CACHING = range(5)
DENSE_ROWS = 4_000_000
"""Up to here every (worker, segment or chain) has a row of its own; beyond, rows are handed out as they are used."""


class Tree(NamedTuple):
    """`Forest` as compiled code reads it."""

    parent: NDArray[np.int32]
    start: NDArray[np.int32]
    blocks: NDArray[np.int32]
    path_off: NDArray[np.int64]
    path: NDArray[np.int32]
    hit: NDArray[np.int32]
    chain: NDArray[np.int32]


class Pool(NamedTuple):
    """Cache state. One row for a (worker, segment) or (worker, chain), found by `row`; built by `make_pool`."""

    n: NDArray[np.int64]
    """(W, COUNTERS) blocks by state, blocks evicted so far, release sequence, length of `idle`."""
    meta: NDArray[np.int64]
    """Ids a worker (segments, then chains), segments, mask of `slots` (0: row = worker x ids + id), rows in use, 1 =
    prefix caching is on."""
    slots: NDArray[np.int32]
    """Open addressing, row + 1 or 0."""
    keys: NDArray[np.int64]
    """By row: worker x ids + id."""
    res: NDArray[np.int32]
    """By row, as all that follow but `idle` and `ever`."""
    ref: NDArray[np.int32]
    kids: NDArray[np.int32]
    """Child segments with resident blocks."""
    last: NDArray[np.float64]
    """When its last holder released it, s."""
    seq: NDArray[np.int64]
    owner: NDArray[np.int32]
    """Chain that released it last, -1 = none yet."""
    user: NDArray[np.int32]
    """First chain that held it, -1 = none yet; -2 = several have (a shared prefix)."""
    slot: NDArray[np.int32]
    """Its place in `idle`, -1 = not there."""
    owned: NDArray[np.int32]
    """By row of a chain: idle resident blocks that it released last."""
    idle: NDArray[np.int32]
    """(W, at most pool blocks) the first n[w, IDLE] entries: segments with resident blocks and no holder."""
    ever: NDArray[np.int32]
    """(segments,) blocks ever computed anywhere: what an infinite cache would hold."""


def make_tree(forest: Forest) -> Tree:
    return Tree(forest.seg_parent, forest.seg_start, forest.seg_blocks, forest.path_offsets, forest.path,
                forest.hit_blocks, forest.chain)


def make_pool(workers: int, pool_blocks: int, n_segments: int, n_chains: int, pairs: int = 0,
              largest_blocks: int = 0, caching: bool = True) -> Pool:
    """Empty pools. pairs: the most (worker, segment or chain) pairs that can come up, 0 = all. largest_blocks: if some
    of the pools will be made larger than `pool_blocks`. caching: False = no block is ever found again."""
    n = np.zeros((workers, COUNTERS), np.int64)
    n[:, POOL] = n[:, FREE] = pool_blocks
    ids = n_segments + n_chains
    dense = not pairs or workers * ids <= DENSE_ROWS
    rows = workers * ids if dense else pairs
    slots = 1 if dense else 1 << int(2 * rows).bit_length()

    def table(value: int) -> NDArray[np.int32]:
        # Zeros cost no memory until they are written; sparse rows are set up when they are handed out.
        return np.full(rows, value, np.int32) if dense and value else np.zeros(rows, np.int32)

    return Pool(n, np.array([ids, n_segments, slots - 1, 0, caching], np.int64), np.zeros(slots, np.int32),
                np.zeros(1 if dense else rows, np.int64), table(0), table(0), table(0), np.zeros(rows),
                np.zeros(rows, np.int64), table(-1), table(-1), table(-1), table(0),
                np.zeros((workers, min(n_segments, max(pool_blocks, largest_blocks))), np.int32),
                np.zeros(n_segments, np.int32))


def by_worker(pool: Pool, column: str) -> NDArray:
    """(W, segments) the values of one of the columns `res`, `ref`, `kids`, `last`, `seq`."""
    ids, segments = pool.meta[IDS], pool.meta[SEGMENTS]
    values = getattr(pool, column)
    if pool.meta[MASK] == 0:
        return values.reshape(len(pool.n), ids)[:, :segments]
    out = np.zeros((len(pool.n), segments), values.dtype)
    worker, ident = np.divmod(pool.keys[:pool.meta[ROWS]], ids)
    mine = ident < segments
    out[worker[mine], ident[mine]] = values[:pool.meta[ROWS]][mine]
    return out


@njit(cache=True)
def find(p, w, ident):
    """The row of segment `ident` (or chain `ident - SEGMENTS`) on worker w, -1 = never used there."""
    key = w * p.meta[IDS] + ident
    mask = p.meta[MASK]
    if mask == 0:
        return key
    at = (key * 7046029254386353131 >> 20) & mask
    while p.slots[at] > 0:
        if p.keys[p.slots[at] - 1] == key:
            return np.int64(p.slots[at] - 1)
        at = (at + 1) & mask
    return np.int64(-1)


@njit(cache=True)
def row(p, w, ident):
    """`find`, which hands out a row if there is none yet."""
    key = w * p.meta[IDS] + ident
    mask = p.meta[MASK]
    if mask == 0:
        return key
    at = (key * 7046029254386353131 >> 20) & mask
    while p.slots[at] > 0:
        if p.keys[p.slots[at] - 1] == key:
            return np.int64(p.slots[at] - 1)
        at = (at + 1) & mask
    new = p.meta[ROWS]
    p.meta[ROWS] = new + 1
    p.slots[at] = new + 1
    p.keys[new] = key
    p.owner[new] = -1
    p.user[new] = -1
    p.slot[new] = -1
    return new


@njit(cache=True)
def owned_row(p, w, chain):
    return row(p, w, p.meta[SEGMENTS] + chain)


@njit(cache=True)
def resident_prefix(t, p, w, step):
    """Leading blocks of the step's context that are resident on worker w."""
    total = 0
    for i in range(t.path_off[step], t.path_off[step + 1]):
        seg = t.path[i]
        res = p.res[row(p, w, seg)]
        total += res
        if res < t.blocks[seg]:
            break
    return total


@njit(cache=True)
def known_prefix(t, p, step):
    """Leading blocks of the step's context that an infinite cache would hold."""
    total = 0
    for i in range(t.path_off[step], t.path_off[step + 1]):
        seg = t.path[i]
        total += p.ever[seg]
        if p.ever[seg] < t.blocks[seg]:
            break
    return total


@njit(cache=True)
def idle_hit_blocks(t, p, w, step, cached):
    """Of the step's first `cached` blocks: those that are idle now, so that pinning them shrinks what is evictable.
    Counts whole resident segments, since a pin holds all of a segment."""
    total = 0
    for i in range(t.path_off[step], t.path_off[step + 1]):
        seg = t.path[i]
        if t.start[seg] >= cached:
            break
        r = row(p, w, seg)
        if p.ref[r] == 0:
            total += p.res[r]
    return total


@njit(cache=True)
def reusable(t, p, w, step, cached):
    """Resident blocks of the step's context beyond its first `cached` that nobody holds: it must compute them anew, and
    does so in place. Only a prompt that is cached to its very end has any, since its last token is always computed."""
    position, total = 0, 0
    for i in range(t.path_off[step], t.path_off[step + 1]):
        seg = t.path[i]
        r = row(p, w, seg)
        position += p.res[r]
        if p.ref[r] == 0 and position > cached:
            total += position - max(cached, t.start[seg])
        if p.res[r] < t.blocks[seg]:
            break
    return total


@njit(cache=True)
def evictable(p, w):
    """Idle resident blocks of worker w."""
    return p.n[w, RESIDENT] - p.n[w, PINNED]


@njit(cache=True)
def _leave_idle(p, w, r):
    at, n = p.slot[r], p.n[w, IDLE] - 1
    moved = p.idle[w, n]
    p.idle[w, at] = moved
    p.slot[row(p, w, moved)] = at
    p.slot[r] = -1
    p.n[w, IDLE] = n
    p.owned[owned_row(p, w, p.owner[r])] -= p.res[r]


@njit(cache=True)
def pin(t, p, w, step, first, blocks):
    """Hold the segments of the step's path that hold any of its first `blocks` blocks, from path index `first` on.
    Returns the path index after the last one held."""
    base = t.path_off[step]
    i = first
    while base + i < t.path_off[step + 1] and t.start[t.path[base + i]] < blocks:
        r = row(p, w, t.path[base + i])
        if p.ref[r] == 0:
            p.n[w, PINNED] += p.res[r]
            if p.slot[r] >= 0:
                _leave_idle(p, w, r)
        p.ref[r] += 1
        if p.user[r] == -1:
            p.user[r] = t.chain[step]
        elif p.user[r] != t.chain[step]:
            p.user[r] = -2
        i += 1
    return i


@njit(cache=True)
def _note_computed(t, p, step, blocks):
    """The step's first `blocks` blocks have been computed: an infinite cache would hold them."""
    for at in range(t.path_off[step], t.path_off[step + 1]):
        seg = t.path[at]
        if t.start[seg] >= blocks:
            break
        p.ever[seg] = max(p.ever[seg], min(blocks - t.start[seg], t.blocks[seg]))


@njit(cache=True)
def grow(t, p, w, step, held, have_tokens, want_tokens, block):
    """Allocate blocks for tokens have_tokens..want_tokens of the step on worker w; the caller made room first.

    held: path index from `pin`, which this extends. Returns (held, copies): copies = full blocks that stay private
    because another request published them and holds them. Fewer blocks are taken where there are `reusable` ones.
    """
    need = (want_tokens + block - 1) // block - (have_tokens + block - 1) // block
    full = want_tokens // block
    position = have_tokens // block
    if p.meta[CACHING] == 0:  # every block is its request's own, and is free when it lets go
        _note_computed(t, p, step, full)
        p.n[w, FREE] -= need
        p.n[w, PRIVATE] += need
        return held, full - position
    published = 0
    copies = 0
    reused = 0
    if full > position:
        held = pin(t, p, w, step, held, full)
        base = t.path_off[step]
        i = 0
        while position < full:
            seg = t.path[base + i]
            if position >= t.start[seg] + t.blocks[seg]:
                i += 1
                continue
            r = row(p, w, seg)
            offset = position - t.start[seg]
            stop = min(full - t.start[seg], t.blocks[seg])
            fresh = max(offset, p.res[r])
            if p.ref[r] == 1:  # held by this request alone
                reused += min(fresh, stop) - offset
            else:
                copies += min(fresh, stop) - offset
            if fresh < stop:
                if p.res[r] == 0 and t.parent[seg] >= 0:
                    p.kids[row(p, w, t.parent[seg])] += 1
                p.res[r] = stop
                published += stop - fresh
                p.ever[seg] = max(p.ever[seg], stop)
            position = t.start[seg] + stop
    p.n[w, FREE] -= need - reused
    p.n[w, PRIVATE] += need - reused - published
    p.n[w, RESIDENT] += published
    p.n[w, PINNED] += published
    return held, copies


@njit(cache=True)
def release(t, p, w, step, held, tokens, copies, now, block):
    """A request that held `tokens` tokens lets go: its path becomes idle, tail first, its private blocks free."""
    private = copies + (1 if tokens % block else 0)
    p.n[w, PRIVATE] -= private
    p.n[w, FREE] += private
    base = t.path_off[step]
    for i in range(held - 1, -1, -1):
        seg = t.path[base + i]
        r = row(p, w, seg)
        p.ref[r] -= 1
        if p.ref[r] == 0:
            p.n[w, PINNED] -= p.res[r]
            p.n[w, SEQ] += 1
            p.last[r] = now
            p.seq[r] = p.n[w, SEQ]
            p.owner[r] = t.chain[step]
            if p.res[r] > 0:
                p.slot[r] = p.n[w, IDLE]
                p.idle[w, p.n[w, IDLE]] = seg
                p.n[w, IDLE] += 1
                p.owned[owned_row(p, w, t.chain[step])] += p.res[r]


@njit(cache=True)
def evict_blocks(t, p, w, seg, blocks):
    """Evict `blocks` tail blocks of idle segment `seg`, which has no resident children."""
    r = row(p, w, seg)
    p.res[r] -= blocks
    p.owned[owned_row(p, w, p.owner[r])] -= blocks
    p.n[w, RESIDENT] -= blocks
    p.n[w, FREE] += blocks
    p.n[w, EVICTED] += blocks
    if p.res[r] == 0:
        _leave_idle(p, w, r)
        p.user[r] = -1  # what comes back is computed anew: nobody knows who else had it
        if t.parent[seg] >= 0:
            p.kids[row(p, w, t.parent[seg])] -= 1
