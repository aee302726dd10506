"""From a `Reference` to a script that every eviction policy can play on equal terms, block for block.

What the requests in flight hold together does not depend on the eviction policy. So all that is not the policy's choice
is settled here, before any policy plays:

- **What a run holds.** A run (START to END) holds what it computed: the tokens of its START, or of its END when it was
  preempted during prefill, from its START on; what it generates, from its END on. The recorded engine took a prefill's
  blocks chunk by chunk; where taking them at once does not fit, the run holds what fits (`Script.clipped_blocks`).
- **Segments of one fate.** Wherever a run's blocks, or the blocks that its lookup may hit, end inside a segment whose
  further blocks exist, the segment is cut, so that the blocks of a segment always share their holders and next use.
- **The next use** of every segment as seen from each END: the event at which its presence would save computation. If
  the next run that holds it takes it without a lookup (a prompt's last block is always computed anew), its presence
  saves nothing: infinity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.forest import Forest
from saga_rl.errors import UserError
from saga_rl.njit import njit
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cache.pool import Pool, Tree, make_pool, make_tree
from saga_rl.sim.reference import END, READY, START, Reference

I64 = NDArray[np.int64]


# columns of Script.event
KIND, STEP, FINAL, HOLD, COMPUTED, LIMIT, AFTER, DONE = range(8)
COLUMNS = 8
# columns of Script.info
PROMPT, OUTPUT, TOOL, LAST, SESSION = range(5)
# columns of Script.who
TENANT, TYPE, FIRST = range(3)


class Script(NamedTuple):
    """Few arrays, since compiled code pays for each at every call."""

    event: I64
    """(events, COLUMNS). HOLD (START, END): tokens that the run holds from then on. COMPUTED: tokens that it has then
    computed or found cached; HOLD unless clipped. LIMIT (START): leading blocks that the lookup may hit. AFTER (END):
    where in `after` its entries begin. DONE: sessions that have ended, this event counted."""
    time: NDArray[np.float64]
    """(events,) s"""
    after: NDArray[np.float64]
    """By END and segment of the step's path: next use, event index, infinity = never."""
    info: I64
    """(steps, 5). LAST: 1 = the last step of its chain."""
    who: I64
    """(sessions, 3). FIRST: its first chain."""
    slack: NDArray[np.float64]
    """(sessions,) deadline minus arrival, s; NaN = none."""
    block: int
    """Tokens."""


@dataclass(frozen=True)
class Prepared:
    """A reference made ready for pools of `pool_blocks` blocks."""

    script: Script
    tree: Tree
    pool_blocks: int
    n_chains: int
    n_tools: int
    n_types: int
    clipped_blocks: int
    """Blocks that runs computed but could not hold at once, over all events."""
    capped_lookups: int
    """Lookups that had to stop one block short of what was known (a prompt that is known to its end, where a block ends
    too): the only case in which Bélády may miss the optimum, by at most about one block each
    (docs/explanation/bound.md)."""
    smallest_pool_blocks: int
    """The smallest pool in which nothing is clipped."""

    def pool(self) -> Pool:
        return make_pool(1, self.pool_blocks, len(self.tree.parent), self.n_chains)


def prepare(reference: Reference, kv_tokens: int) -> Prepared:
    """Settle what `reference` asks of a pool of `kv_tokens` tokens.

    Raises `UserError` if the pool is smaller than the recorded one and too small for what runs at once, naming the
    smallest that will do; `ValueError` if the events do not form a reference string.
    """
    forest, block = reference.forest, reference.forest.block_tokens
    _check_events(reference)
    pool_blocks = kv_tokens // block
    computed = _computed(reference)
    need = (reference.trace.steps.prompt_tokens + reference.trace.steps.output_tokens - 1 + block - 1) // block
    roomy = int(need.sum()) + 1
    forest, _, _, peak, _ = _cut_to_fates(reference, forest, computed, roomy)
    if pool_blocks < min(peak, reference.kv_tokens // block):
        smallest = min(peak * block, reference.kv_tokens // block * block)
        raise UserError("--kv-tokens", f"is {kv_tokens}, less than the requests of this reference string hold at once",
                        f"give at least {smallest}")
    forest, hold, clipped, _, capped = _cut_to_fates(reference, forest, computed, min(pool_blocks, roomy))
    tree = make_tree(forest)
    limit = _limit(reference, computed)
    after_off, after = _future(reference, forest, hold, np.minimum(limit, hold // block))
    t, st, s = reference.trace, reference.trace.steps, reference.trace.sessions
    last = np.zeros(t.n_steps, np.int8)
    at = np.full(len(forest.chain_session), -1, np.int64)
    np.maximum.at(at, forest.chain, np.arange(t.n_steps))
    last[at[at >= 0]] = 1
    first = np.searchsorted(forest.chain_session, np.arange(t.n_sessions))
    event = np.stack([reference.kind, reference.step, reference.final, hold, computed, limit, after_off[:-1],
                      _done(reference)], 1)
    info = np.stack([st.prompt_tokens, st.output_tokens, st.tool, last, st.session], 1)
    script = Script(event.astype(np.int64), reference.time_s.astype(np.float64), after, info.astype(np.int64),
                    np.stack([s.tenant, s.agent_type, first], 1).astype(np.int64), s.deadline_s - s.arrival_s, block)
    return Prepared(script, tree, pool_blocks, len(forest.chain_session), len(t.tools), len(t.agent_types),
                    clipped, capped, peak)


def _done(r: Reference) -> I64:
    """(events,) sessions that have ended with each event: all of their steps have."""
    ends = (r.kind == END) & (r.final == 1)
    session = r.trace.steps.session[r.step]
    left = np.diff(r.trace.session_offsets)
    order = np.lexsort((np.arange(len(session)), session))  # by session, then by time
    counted = np.cumsum(ends[order])
    first = np.concatenate([[True], np.diff(session[order]) != 0]) if len(order) else np.zeros(0, bool)
    before = np.maximum.accumulate(np.where(first, counted - ends[order], 0))
    last = np.zeros(len(session), bool)
    last[order] = ends[order] & (counted - before == left[session[order]])
    return np.cumsum(last)


def _check_events(r: Reference) -> None:
    """Per step: READY, then START and END in turn, no END longer than the context; times in order."""
    n = len(r.kind)
    lengths = {len(r.step), len(r.time_s), len(r.tokens), len(r.final)}
    if lengths != {n} or (n and (np.diff(r.time_s) < 0).any()):
        raise ValueError("reference: columns differ in length, or times go backwards")
    if n and (r.step.min() < 0 or r.step.max() >= r.trace.n_steps or not np.isin(r.kind, (READY, START, END)).all()):
        raise ValueError("reference: an event names a step or kind that does not exist")
    context = r.trace.steps.prompt_tokens + r.trace.steps.output_tokens - 1
    if (r.tokens > context[r.step]).any() or (r.tokens < 0).any():
        raise ValueError("reference: an event holds more tokens than its step's prompt + output - 1")
    order = np.lexsort((np.arange(n), r.step))
    kind, step = r.kind[order], r.step[order]
    new = np.concatenate([[True], step[1:] != step[:-1]]) if n else np.zeros(0, bool)
    before = np.concatenate([[END], kind[:-1]]) if n else kind
    good = np.where(new, kind == READY, np.where(kind == START, before != START, (kind == END) & (before == START)))
    if not good.all():
        raise ValueError(f"reference: events of step {step[np.argmin(good)]} are out of order")


def _computed(r: Reference) -> I64:
    """Tokens computed by each run: a preempted one may not have come to the end of its prompt."""
    out = r.tokens.astype(np.int64).copy()
    n = len(r.kind)
    order = np.lexsort((np.arange(n), r.step))
    kind, step = r.kind[order], r.step[order]
    pair = np.flatnonzero((kind[:-1] == START) & (kind[1:] == END) & (step[:-1] == step[1:])) if n else np.zeros(0, int)
    a, b = order[pair], order[pair + 1]
    out[a] = np.minimum(out[a], out[b])
    return out


def _limit(r: Reference, computed: I64) -> I64:
    """Leading blocks that the lookup at a START may hit: the last token is always computed, as vLLM does."""
    return np.where(r.kind == START, np.minimum(np.maximum(r.tokens - 1, 0), computed), 0) // r.forest.block_tokens


def _cut_to_fates(r: Reference, forest: Forest, computed: I64, pool_blocks: int) -> tuple[Forest, I64, int, int, int]:
    """(forest cut where fates part, tokens held, blocks clipped, most blocks in use at once, lookups capped)."""
    block = forest.block_tokens
    limit = _limit(r, computed)
    while True:
        tree = make_tree(forest)
        hold = computed.copy()
        pool = make_pool(1, pool_blocks, len(tree.parent), len(forest.chain_session))
        cuts = np.zeros((4 * len(r.kind) + 16, 2), np.int64)
        result = np.zeros(4, np.int64)
        _occupy(tree, pool, r.kind, r.step, computed, limit, hold, block, cuts, result)
        n_cuts = int(result[0])
        if n_cuts == 0:
            return forest, hold, int(result[1]), int(result[2]), int(result[3])
        forest = refine(forest, cuts[:min(n_cuts, len(cuts))])


@njit(cache=True)
def _note_cut(cuts, result, seg, offset):
    if result[0] < len(cuts):
        cuts[result[0], 0] = seg
        cuts[result[0], 1] = offset
    result[0] += 1


@njit(cache=True)
def _cut_at(t, counts, step, depth, cuts, result):
    """Ask for a cut where `depth` lies inside a segment of which `counts` says that it goes on."""
    for i in range(t.path_off[step], t.path_off[step + 1]):
        seg = t.path[i]
        offset = depth - t.start[seg]
        if 0 < offset < t.blocks[seg] and counts[seg] > offset:
            _note_cut(cuts, result, seg, offset)


@njit(cache=True)
def _occupy(t, p, kind, step_of, computed, limit, hold, block, cuts, result):
    """Play the string without a cache: blocks vanish when nobody holds them. Fills hold, cuts, and result with (cuts,
    blocks clipped, most blocks in use, lookups capped)."""
    n_steps = len(t.chain)
    held = np.zeros(n_steps, np.int64)
    have = np.zeros(n_steps, np.int64)
    running = np.zeros(n_steps, np.int64)
    n_running = 0
    for k in range(len(kind)):
        if kind[k] == READY:
            continue
        step = np.int64(step_of[k])
        if kind[k] == START:
            running[n_running] = step
            n_running += 1
            held[step] = 0
            have[step] = 0
            _cut_at(t, p.ever, step, limit[k], cuts, result)
            if limit[k] < min(kv.known_prefix(t, p, step), computed[k] // block):
                result[3] += 1
        held[step], have[step], need = join(t, p, 0, step, held[step], have[step], computed[k], block)
        room = p.n[0, kv.FREE]
        hold[k] = computed[k]
        if need > room:
            result[1] += need - room
            hold[k] = ((have[step] + block - 1) // block + room) * block
        held[step], _ = kv.grow(t, p, 0, step, held[step], have[step], hold[k], block)
        have[step] = hold[k]
        result[2] = max(result[2], p.n[0, kv.RESIDENT] + p.n[0, kv.PRIVATE])
        _cut_at(t, p.ever, step, hold[k] // block, cuts, result)
        _cut_at(t, p.ever, step, computed[k] // block, cuts, result)
        for i in range(t.path_off[step], t.path_off[step] + held[step]):
            if p.ref[t.path[i]] > 1:
                for m in range(n_running):
                    _cut_at(t, p.ever, running[m], have[running[m]] // block, cuts, result)
                break
        learn(t, p, step, computed[k] // block)
        if kind[k] == END:
            for m in range(n_running):
                if running[m] == step:
                    n_running -= 1
                    running[m] = running[n_running]
                    break
            kv.release(t, p, 0, step, held[step], have[step], 0, 0.0, block)
            for i in range(t.path_off[step] + held[step] - 1, t.path_off[step] - 1, -1):
                if p.slot[t.path[i]] >= 0:
                    kv.evict_blocks(t, p, 0, t.path[i], p.res[t.path[i]])
        if result[0] >= len(cuts) - 8:
            return


@njit(cache=True)
def join(t, p, w, step, held, have, want, block):
    """Hold what is resident of the step's first want // block blocks beyond `have` tokens.

    Returns (held, have, need): path index, tokens held, and blocks still to be allocated for `want` tokens. A block
    that the lookup may not hit but that is there is not kept twice.
    """
    found = min(kv.resident_prefix(t, p, w, step), want // block)
    if found * block > have:
        if have % block:
            p.n[w, kv.PRIVATE] -= 1
            p.n[w, kv.FREE] += 1
        held = kv.pin(t, p, w, step, held, found)
        have = found * block
    return held, have, max((want + block - 1) // block - (have + block - 1) // block, 0)


@njit(cache=True)
def learn(t, p, step, blocks):
    """An infinite cache would hold the step's first `blocks` blocks from now on."""
    for i in range(t.path_off[step], t.path_off[step + 1]):
        seg = t.path[i]
        more = min(blocks - t.start[seg], t.blocks[seg])
        if more <= 0:
            break
        p.ever[seg] = max(p.ever[seg], more)


def refine(forest: Forest, cuts: I64) -> Forest:
    """`forest` with segments cut. cuts: (n, 2) rows (segment, blocks from its start), repeats allowed."""
    if len(cuts) == 0:
        return forest
    old_n = len(forest.seg_parent)
    bounds = np.unique(np.concatenate([cuts, np.stack([np.arange(old_n), np.zeros(old_n, np.int64)], 1)]), axis=0)
    old, offset = bounds[:, 0], bounds[:, 1]
    first = np.searchsorted(old, np.arange(old_n))
    count = np.bincount(old, minlength=old_n)
    stop = np.append(offset[1:], 0)
    tail = np.append(old[1:] != old[:-1], True)
    stop[tail] = forest.seg_blocks[old[tail]]
    parent = np.arange(len(old)) - 1
    up = forest.seg_parent
    parent[first] = np.where(up >= 0, first[up] + count[up] - 1, -1)
    start = forest.seg_start[old] + offset
    lengths = count[forest.path]
    at = np.repeat(first[forest.path], lengths) + np.arange(lengths.sum()) - np.repeat(
        np.cumsum(lengths) - lengths, lengths)
    step = np.repeat(np.repeat(np.arange(len(forest.chain)), np.diff(forest.path_offsets)), lengths)
    keep = start[at] < forest.context_blocks[step]
    path_offsets = np.concatenate([[0], np.cumsum(np.bincount(step[keep], minlength=len(forest.chain)))])
    return replace(forest, seg_parent=parent.astype(np.int32), seg_start=start.astype(np.int32),
                   seg_blocks=(stop - offset).astype(np.int32), path_offsets=path_offsets.astype(np.int64),
                   path=at[keep].astype(np.int32))


def _future(r: Reference, forest: Forest, hold: I64, limit: I64) -> tuple[I64, NDArray[np.float64]]:
    size = np.where(r.kind == END, np.diff(forest.path_offsets)[r.step], 0)
    off = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
    after = np.full(int(off[-1]), np.inf)
    _next_uses(make_tree(forest), r.kind, r.step, hold // forest.block_tokens, limit, off, after)
    return off, after


@njit(cache=True)
def _next_uses(t, kind, step_of, held, limit, off, after):
    nxt = np.full(len(t.parent), np.inf)
    for k in range(len(kind) - 1, -1, -1):
        if kind[k] == READY:
            continue
        base = t.path_off[step_of[k]]
        for j in range(t.path_off[step_of[k] + 1] - base):
            seg = t.path[base + j]
            if kind[k] == END:
                after[off[k] + j] = nxt[seg]
            if t.start[seg] < held[k]:
                nxt[seg] = k if kind[k] == START and t.start[seg] < limit[k] else np.inf
