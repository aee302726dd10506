"""Replay of unit blocks without prefix structure: LRU and Bélády, miss for miss what libCacheSim counts.

Every request asks for one block, every miss takes the block in, a full cache evicts one. Both policies need one array
only, each request's next use (`next_uses`), and look no block up by name:

- **LRU.** Blocks in order of their last use are the string itself, less the requests whose block was asked for again.
  So the victim is found by a pointer that walks the string once: no list is kept.
- **Bélády.** (MIN; Belady, IBM Systems Journal 5(2), 1966.) Next uses are distinct places in the string, so the cached
  blocks are a set of bits over it and the victim is the highest bit. A tree of 64-bit words finds it in log64(n) steps.
  Blocks that are not used again are all alike: they are counted, and go first.

`block_string` is the string of blocks that a trace or a recorded reference asks for; `docs/explanation/bound.md` says
how these counts relate to those of the prefix cache.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saga_rl.aeg.forest import build_forest
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError, unknown_name
from saga_rl.njit import njit
from saga_rl.sim.compiled.jit import compiled
from saga_rl.sim.reference import END, READY, START, Reference

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: spreads keys over the high bits
_LEVELS = 8  # 64**6 > 2**31 requests


def lru_misses(blocks: ArrayLike, capacity: int) -> int:
    """Misses of LRU. blocks: (n,) integers, a block's name a request. capacity: blocks. Raises `UserError`."""
    return misses(blocks, capacity, "lru")


def belady_misses(blocks: ArrayLike, capacity: int) -> int:
    """The least misses of any policy that takes in every block it misses; arguments as for `lru_misses`."""
    return misses(blocks, capacity, "belady")


def misses(blocks: ArrayLike, capacity: int, policy: str) -> int:
    """Misses of `policy`, "lru" or "belady", on a cache of `capacity` blocks that begins empty."""
    return play_uses(next_uses(blocks), capacity, policy)[0]


def hits(blocks: ArrayLike, capacity: int, policy: str) -> NDArray[np.bool_]:
    """(n,) whether each request finds its block."""
    return play_uses(next_uses(blocks), capacity, policy)[1]


def next_uses(blocks: ArrayLike) -> I32:
    """(n,) the place in the string of the next request for the same block, n = none.

    blocks: any integers; they are names and no memory is spent on gaps between them. Raises `UserError` for what is
    not a flat array of integers or too long for 31-bit places.
    """
    array = np.asarray(blocks)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise UserError("blocks", f"is an array of {array.dtype} with {array.ndim} dimensions",
                        "give a flat array of integers")
    if array.size >= 2**31 - 1:
        raise UserError("blocks", f"has {array.size} requests", f"give at most {2**31 - 2}")
    names = np.ascontiguousarray(array).astype(np.int64, copy=False)
    uses = np.empty(len(names), np.int32)
    if len(names):
        low, high = int(names.min()), int(names.max())
        if high - low < 4 * len(names):
            _run(_link_near, names, low, high - low + 1, uses)
        else:
            _run(_link_any, names, uses)
    return uses


def play_uses(uses: I32, capacity: int, policy: str) -> tuple[int, NDArray[np.bool_]]:
    """(misses, hits) of a string given by its `next_uses`, which are found once for many capacities."""
    if policy not in _POLICIES:
        raise unknown_name("unit-block policy", policy, _POLICIES)
    try:
        room = operator.index(capacity)
    except TypeError:
        raise UserError("capacity", f"is {capacity!r}", "give a whole number of blocks") from None
    if room < 1:
        raise UserError("capacity", f"is {room}", "give at least 1 block")
    hit = np.zeros(len(uses) + 1, np.bool_)
    missed = _run(_POLICIES[policy], uses, min(room, len(uses) + 1), hit)
    return int(missed), hit[:-1]


def _run(function: Any, *args: Any) -> Any:
    return compiled(function, args)(*args)


def _link_near(names, low, span, uses):
    """`uses` of names that are low..low + span - 1."""
    seen = np.full(span, len(names), np.int32)
    for t in range(len(names) - 1, -1, -1):
        uses[t] = seen[names[t] - low]
        seen[names[t] - low] = t


def _link_any(names, uses):
    """`uses` of any names: a hash table with open addressing, at most two thirds full. A slot is a name and, beside it
    for the sake of one cache line, its last place seen plus 1 (0 = free)."""
    bits, used = 12, 0
    table = np.zeros(2 << bits, np.int64)
    for t in range(len(names) - 1, -1, -1):
        at = _slot(names[t], bits)
        while table[at + 1] and table[at] != names[t]:
            at = (at + 2) & (len(table) - 1)
        if table[at + 1]:
            uses[t] = table[at + 1] - 1
            table[at + 1] = t + 1
            continue
        uses[t] = len(names)
        table[at], table[at + 1] = names[t], t + 1
        used += 1
        if 3 * used > 2 << bits:
            bits += 2
            table = _larger(table, bits)


@njit(cache=True)
def _slot(name, bits):
    mixed = np.uint64(name)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * _MIX
    return np.int64(mixed >> np.uint64(64 - bits)) << 1


@njit(cache=True)
def _larger(old, bits):
    table = np.zeros(2 << bits, np.int64)
    for i in range(0, len(old), 2):
        if old[i + 1]:
            at = _slot(old[i], bits)
            while table[at + 1]:
                at = (at + 2) & (len(table) - 1)
            table[at], table[at + 1] = old[i], old[i + 1]
    return table


def _lru(uses, capacity, hit):
    """hit[k] means, before request k is played: the block that it will ask for is in the cache."""
    missed, oldest = 0, 0
    for t in range(len(uses)):
        if not hit[t]:
            missed += 1
            if missed > capacity:
                while uses[oldest] <= t:  # asked for again since
                    oldest += 1
                hit[uses[oldest]] = False
                oldest += 1
        hit[uses[t]] = True
    return missed


def _belady(uses, capacity, hit):
    """hit as in `_lru`. Bits of the past stay set: a bit of the future, if there is one, is higher."""
    start = np.zeros(_LEVELS + 1, np.int64)
    width, levels = len(uses), 0
    while width > 1 or levels == 0:
        width = (width + 63) >> 6
        levels += 1
        start[levels] = start[levels - 1] + width
    word = np.zeros(start[levels], np.uint64)
    missed, unused = 0, 0
    for t in range(len(uses)):
        if not hit[t]:
            missed += 1
            if missed > capacity:
                if unused > 0:
                    unused -= 1
                else:
                    hit[_take_highest(word, start, levels)] = False
        if uses[t] == len(uses):
            unused += 1
        else:
            hit[uses[t]] = True
            _add(word, start, levels, np.int64(uses[t]))
    return missed


@njit(cache=True)
def _add(word, start, levels, place):
    for level in range(levels):
        at = start[level] + (place >> 6)
        before = word[at]
        word[at] = before | (np.uint64(1) << np.uint64(place & 63))
        if before:
            break
        place >>= 6


@njit(cache=True)
def _take_highest(word, start, levels):
    place = 0
    for level in range(levels - 1, -1, -1):
        place = (place << 6) | _highest_bit(word[start[level] + place])
    left = place
    for level in range(levels):
        at = start[level] + (left >> 6)
        word[at] &= ~(np.uint64(1) << np.uint64(left & 63))
        if word[at]:
            break
        left >>= 6
    return place


@njit(cache=True)
def _highest_bit(word):
    bit = 0
    for half in (32, 16, 8, 4, 2, 1):
        if word >> np.uint64(half):
            word >>= np.uint64(half)
            bit += half
    return bit


_POLICIES = {"lru": _lru, "belady": _belady}


def block_string(asked: Trace | Reference, block_tokens: int | None = None) -> I64:
    """The blocks that `asked` asks for, in order: names 0.., equal exactly where two contexts are equal up to there.

    A `Reference` asks at a request's START for the full blocks of what must be present (a run preempted during its
    prefill: of what it came to), at its END for those that it filled since, root first. A `Trace` asks for a step's
    whole context when the step was sent (`start_s`; ties in the trace's order). block_tokens: by default a reference's
    own, 16 for a trace. Raises `UserError` for a trace without recorded times, whose order only a run decides.
    """
    trace = asked.trace if isinstance(asked, Reference) else asked
    if block_tokens is not None and block_tokens < 1:
        raise UserError("block_tokens", f"is {block_tokens}", "give at least 1")
    if isinstance(asked, Reference) and block_tokens in (None, asked.forest.block_tokens):
        forest = asked.forest
    else:
        forest = build_forest(trace, block_tokens or 16)
    if isinstance(asked, Reference):
        spans = _run(_spans, asked.kind, asked.step, asked.tokens, forest.block_tokens, trace.n_steps)
    else:
        if not np.isfinite(trace.steps.start_s).all():
            raise UserError(trace.meta.name, "does not say when its steps were sent",
                            "record a reference string of it (saga_rl.sim.openloop.record)")
        order = np.argsort(trace.steps.start_s, kind="stable")
        spans = np.stack([order, np.zeros_like(order), forest.context_blocks[order]], 1)
    first_name = np.concatenate([[0], np.cumsum(forest.seg_blocks, dtype=np.int64)])[:-1]
    out = np.empty(int((spans[:, 2] - spans[:, 1]).sum()), np.int64)
    _run(_spell, spans, forest.path_offsets, forest.path, forest.seg_start, forest.seg_blocks, first_name, out)
    return out


def _spans(kind, step_of, tokens, block, n_steps):
    """(requests, 3) rows (step, blocks from, blocks to) of a reference's events."""
    out = np.zeros((len(kind), 3), np.int64)
    started = np.zeros(n_steps, np.int64)
    for k in range(len(kind)):
        step, full = step_of[k], tokens[k] // block
        out[k, 0] = step
        if kind[k] == START:
            out[k, 2] = full
            started[step] = k
        elif kind[k] == END:
            out[started[step], 2] = min(out[started[step], 2], full)
            out[k, 1], out[k, 2] = out[started[step], 2], full
    return out[kind != READY]


def _spell(spans, path_off, path, seg_start, seg_blocks, first_name, out):
    n = 0
    for r in range(len(spans)):
        step, low, high = spans[r]
        for i in range(path_off[step], path_off[step + 1]):
            seg = path[i]
            for b in range(max(low, seg_start[seg]), min(high, seg_start[seg] + seg_blocks[seg])):
                out[n] = first_name[seg] + b - seg_start[seg]
                n += 1
