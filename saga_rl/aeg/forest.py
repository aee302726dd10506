"""The static prefix forest of a trace: which KV blocks each step's context consists of, and who shares them.

A context is a path from a root. Blocks that are always used together form one *segment*: a run of blocks cut wherever
some step's context branches off or ends short of what an earlier step had. A worker's cache of a segment is therefore
one number, how many of its leading blocks are resident, and still exact block for block.

Block arithmetic is vLLM's: a context of n tokens holds (n - 1) // block full blocks once its last token is sampled
(that token's KV is never computed), and a prompt of n tokens can find at most (n - 1) // block blocks in the cache
(its last token is always computed).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from saga_rl.aeg.trace import I32, I64, Trace


@dataclass(frozen=True)
class Forest:
    """Segments in order of first use (a parent before its children), and each step's path through them."""

    block_tokens: int
    seg_parent: I32
    """-1 = a root."""
    seg_start: I32
    """Blocks above it on its path."""
    seg_blocks: I32
    path_offsets: I64
    path: I32
    """`path[path_offsets[i]:path_offsets[i + 1]]`: segments of step i's context, root first; only the last may be
    covered in part."""
    hit_blocks: I32
    """Most blocks that step i's prompt can find cached."""
    context_blocks: I32
    """Full blocks of prompt + output."""
    chain: I32
    """Chain (session, agent) of step i."""
    chain_session: I32


class _Raw:
    """Runs of blocks before they are cut: parallel lists, one entry a run."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.attach: list[int] = []  # offset within the parent where it branches off
        self.start: list[int] = []
        self.length: list[int] = []
        self.chain: list[int] = []
        self.cuts: list[set[int]] = []

    def add(self, parent: int, depth: int, length: int, chain: int) -> int:
        attach = depth - self.start[parent] if parent >= 0 else 0
        if parent >= 0:
            self.cuts[parent].add(attach)
        for column, value in ((self.parent, parent), (self.attach, attach), (self.start, depth),
                              (self.length, length), (self.chain, chain)):
            column.append(value)
        self.cuts.append(set())
        return len(self.parent) - 1

    def at(self, run: int, depth: int) -> int:
        """The run on the path to `run` that holds block number `depth` (counted from 1); -1 for depth 0."""
        while run >= 0 and depth <= self.start[run]:
            run = self.parent[run]
        return run


class _Hashes:
    """Content known by hash: a trie of units of `unit` blocks, each with the run that holds it.

    A unit is the least number of tokens that is both whole hash blocks and whole KV blocks. What has no hash (outputs,
    text outside whole hash blocks) is a node that no lookup finds, so that depths stay true.
    """

    def __init__(self, hash_tokens: int, block_tokens: int) -> None:
        self.tokens = math.lcm(hash_tokens, block_tokens)
        self.unit, self.group = self.tokens // block_tokens, self.tokens // hash_tokens
        self.child: dict[tuple[int, tuple[int, ...]], int] = {}
        self.up, self.depth, self.run = [-1], [0], [-1]  # node 0: the root

    def above(self, node: int, depth: int) -> int:
        """The ancestor of `node` (or itself) at no more than `depth` units."""
        while self.depth[node] > depth:
            node = self.up[node]
        return node

    def add(self, node: int, run: int, key: tuple[int, ...] | None = None) -> int:
        self.up.append(node)
        self.depth.append(self.depth[node] + 1)
        self.run.append(run)
        if key is not None:
            self.child[node, key] = len(self.up) - 1
        return len(self.up) - 1

    def keys(self, prefix_tokens: int, prompt_tokens: int, hashes: list[int]) -> list[tuple[int, ...]]:
        """Of a prompt's hashes those of whole units; none if the prefix ends inside a unit."""
        if prefix_tokens % self.tokens:
            return []
        n = min(len(hashes) // self.group, (prompt_tokens - prefix_tokens) // self.tokens)
        return [tuple(hashes[k * self.group:(k + 1) * self.group]) for k in range(n)]


def build_forest(trace: Trace, block_tokens: int = 16) -> Forest:
    """The forest of `trace` in blocks of `block_tokens` tokens."""
    st, off = trace.steps, trace.session_offsets
    n = trace.n_steps
    chain, chain_session = _chains(trace)
    context = ((st.prompt_tokens + st.output_tokens - 1) // block_tokens).astype(np.int64)
    raw = _Raw()
    hashes = _Hashes(trace.meta.hash_block_tokens, block_tokens) if trace.meta.hash_block_tokens > 0 else None
    shared: dict[int, int] = {}
    shared_node: dict[int, int] = {}
    beyond_node: dict[int, int] = {}
    beyond: dict[int, int] = {}  # step -> run with the block that its last token completes but that it never computed
    end_run = np.zeros(n, np.int64)
    end_node = [0] * n if hashes else []
    prefix_step, prefix_tokens, prompt, shared_prefix = (
        x.tolist() for x in (st.prefix_step, st.prefix_tokens, st.prompt_tokens, st.shared_prefix))
    ctx, chains, first_step = context.tolist(), chain.tolist(), off[st.session].tolist()
    h_off = st.hash_offsets.tolist()
    for i in range(n):
        want = prefix_tokens[i] // block_tokens
        depth, run, node, j = 0, -1, 0, -1
        if prefix_step[i] >= 0:
            j = first_step[i] + prefix_step[i]
            depth = min(want, ctx[j], ctx[i])
            run, node = int(end_run[j]), end_node[j] if hashes else 0
            if depth < min(want, ctx[i]) and j in beyond:
                depth, run = min(want, ctx[i]), beyond[j]
            run = raw.at(run, depth)
        elif shared_prefix[i] >= 0 and want > 0:
            depth, name = min(want, ctx[i]), shared_prefix[i]
            if name not in shared:
                shared[name], shared_node[name] = raw.add(-1, 0, depth, -1), 0
            raw.length[shared[name]] = max(raw.length[shared[name]], depth)
            raw.cuts[shared[name]].add(depth)
            run = raw.at(shared[name], depth)
            if hashes:
                node = shared_node[name]
                while (hashes.depth[node] + 1) * hashes.unit <= depth:
                    node = shared_node[name] = hashes.add(node, shared[name])
        keys: list[tuple[int, ...]] = []
        pad = 0  # 1: between the node and the hashes lies a block that the prefix's step completed but never computed
        if hashes:
            node = hashes.above(node, prefix_tokens[i] // hashes.tokens)
            if j >= 0 and ctx[j] < want <= ctx[i] and (hashes.depth[node] + 1) * hashes.tokens == prefix_tokens[i]:
                node, pad = (beyond_node[j], 0) if j in beyond_node else (node, 1)
            if h_off[i] < h_off[i + 1] and (hashes.depth[node] + pad) * hashes.tokens == prefix_tokens[i]:
                keys = hashes.keys(prefix_tokens[i], prompt[i], st.hashes[h_off[i]:h_off[i + 1]].tolist())
            found = 0
            while not pad and found < len(keys) and (node, keys[found]) in hashes.child:
                node = hashes.child[node, keys[found]]
                found += 1
            if found:
                depth = hashes.depth[node] * hashes.unit
                run = raw.at(hashes.run[node], depth)
            keys = keys[found:]
        if ctx[i] == depth:
            if run >= 0:
                raw.cuts[run].add(depth - raw.start[run])
        elif run >= 0 and raw.start[run] + raw.length[run] == depth and raw.chain[run] == chains[i]:
            raw.length[run] += ctx[i] - depth
        else:
            run = raw.add(run, depth, ctx[i] - depth, chains[i])
        end_run[i] = run
        if j >= 0 and ctx[j] < want <= ctx[i]:
            beyond.setdefault(j, run)
        if hashes:
            while (hashes.depth[node] + 1) * hashes.unit <= ctx[i]:
                holder = raw.at(run, (hashes.depth[node] + 1) * hashes.unit)
                if pad:
                    node, pad = hashes.add(node, holder), 0
                    beyond_node[j] = node
                else:
                    node = hashes.add(node, holder, keys.pop(0) if keys else None)
            end_node[i] = node
    hit = (st.prompt_tokens - 1) // block_tokens
    return _cut(raw, end_run, context, hit, chain, chain_session, block_tokens)


def _chains(trace: Trace) -> tuple[I32, I32]:
    """(chain of each step, session of each chain): chains numbered by session, then by agent."""
    key = trace.steps.session.astype(np.int64) << 32 | trace.steps.agent.astype(np.int64)
    values, chain = np.unique(key, return_inverse=True)
    return chain.astype(np.int32), (values >> 32).astype(np.int32)


def _cut(raw: _Raw, end_run: I64, context: I64, hit: I64, chain: I32, chain_session: I32,
         block_tokens: int) -> Forest:
    runs, most = len(raw.length), max(raw.length, default=0) + 2
    length, run_start = np.array(raw.length, np.int64), np.array(raw.start, np.int64)
    owner = np.repeat(np.arange(runs), [len(cuts) for cuts in raw.cuts])
    cut = np.fromiter(itertools.chain.from_iterable(raw.cuts), np.int64, len(owner))
    inside = (cut > 0) & (cut < length[owner])
    # A segment is known by run and end; all in one sorted array, so that a search in it finds the segment of any block.
    ends = np.unique(np.concatenate([owner[inside] * most + cut[inside], np.arange(runs) * most + length]))
    run, end = ends // most, ends % most
    first = np.searchsorted(run, np.arange(runs))
    begin = np.concatenate([[0], end[:-1]])[:len(ends)]
    begin[first] = 0
    parent = np.arange(len(ends)) - 1
    parent[first] = -1
    above, attach = np.array(raw.parent, np.int64), np.array(raw.attach, np.int64)
    forks = np.flatnonzero(above >= 0)
    parent[first[forks]] = np.searchsorted(ends, above[forks] * most + attach[forks])
    last = np.full(len(end_run), -1, np.int64)
    some = end_run >= 0
    last[some] = np.searchsorted(ends, end_run[some] * most + context[some] - run_start[end_run[some]])
    offsets, flat = _paths(last, parent)
    return Forest(block_tokens, parent.astype(np.int32), (run_start[run] + begin).astype(np.int32),
                  (end - begin).astype(np.int32), offsets, flat, hit.astype(np.int32), context.astype(np.int32), chain,
                  chain_session)


def _paths(last: I64, parent: I64) -> tuple[I64, I32]:
    """(offsets, segments) of the paths from the roots to the segments `last`; -1 = an empty path."""
    steps = np.flatnonzero(last >= 0)
    at, depth, levels = last[steps], np.zeros(len(last), np.int64), []
    while len(steps):
        levels.append((steps, at))
        depth[steps] += 1
        up = parent[at]
        steps, at = steps[up >= 0], up[up >= 0]
    offsets = np.concatenate([[0], np.cumsum(depth)]).astype(np.int64)
    flat = np.zeros(int(offsets[-1]), np.int32)
    for level, (steps, at) in enumerate(levels):
        flat[offsets[steps + 1] - 1 - level] = at
    return offsets, flat
