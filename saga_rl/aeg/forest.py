"""The static prefix forest of a trace: which KV blocks each step's context consists of, and who shares them.

A context is a path from a root. Blocks that are always used together form one *segment*: a run of blocks cut wherever
some step's context branches off or ends short of what an earlier step had. A worker's cache of a segment is therefore
one number, how many of its leading blocks are resident, and still exact block for block (`architecture.md`: session as
a prefix, exactly).

Block arithmetic is vLLM's: a context of n tokens holds (n - 1) // block full blocks once its last token is sampled
(that token's KV is never computed), and a prompt of n tokens can find at most (n - 1) // block blocks in the cache
(its last token is always computed).
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """Content known by hash: nodes of a trie of hash blocks, each with the place in the forest that holds it."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.child: dict[tuple[int, int], int] = {}
        self.run: list[int] = []

    def walk(self, node: int, hashes: Sequence[int]) -> tuple[list[int], int]:
        """(nodes that exist along `hashes` from `node`, how many)."""
        found: list[int] = []
        for h in hashes:
            nxt = self.child.get((node, h))
            if nxt is None:
                break
            found.append(nxt)
            node = nxt
        return found, len(found)

    def put(self, node: int, h: int, run: int) -> int:
        self.run.append(run)
        self.child[node, h] = len(self.run) - 1
        return len(self.run) - 1


def build_forest(trace: Trace, block_tokens: int = 16) -> Forest:
    """The forest of `trace` in blocks of `block_tokens` tokens."""
    st, off = trace.steps, trace.session_offsets
    n = trace.n_steps
    chain, chain_session = _chains(trace)
    context = ((st.prompt_tokens + st.output_tokens - 1) // block_tokens).astype(np.int64)
    unit = max(trace.meta.hash_block_tokens // block_tokens, 1)
    raw, hashes = _Raw(), _Hashes(unit)
    shared: dict[int, int] = {}
    end_run = np.zeros(n, np.int64)
    nodes: list[list[int]] = [[] for _ in range(n)]
    prefix_step, prefix_tokens, shared_prefix = (x.tolist() for x in (st.prefix_step, st.prefix_tokens,
                                                                      st.shared_prefix))
    ctx, chains, sess = context.tolist(), chain.tolist(), st.session.tolist()
    h_off = st.hash_offsets.tolist()
    for i in range(n):
        want = prefix_tokens[i] // block_tokens
        prior: list[int] = []
        if prefix_step[i] >= 0:
            j = int(off[sess[i]]) + prefix_step[i]
            depth = min(want, ctx[j], ctx[i])
            run = raw.at(int(end_run[j]), depth)
            prior = nodes[j][: want // unit]
        elif shared_prefix[i] >= 0 and want > 0:
            depth = min(want, ctx[i])
            run = shared.get(shared_prefix[i], -1)
            if run < 0:
                run = shared[shared_prefix[i]] = raw.add(-1, 0, depth, -1)
            raw.length[run] = max(raw.length[run], depth)
            raw.cuts[run].add(depth)
            run = raw.at(run, depth)
        else:
            depth, run = 0, -1
        mine = [] if h_off[i] == h_off[i + 1] else st.hashes[h_off[i]:h_off[i + 1]].tolist()
        if mine:
            found, k = hashes.walk(prior[-1] if prior else -1, mine)
            prior = prior + found
            if k and min(len(prior) * unit, ctx[i]) > depth:
                depth = min(len(prior) * unit, ctx[i])
                run = raw.at(hashes.run[prior[-1]], depth)
        tip = run >= 0 and raw.start[run] + raw.length[run] == depth
        if ctx[i] == depth:
            if run >= 0:
                raw.cuts[run].add(depth - raw.start[run])
            end_run[i] = run
        elif tip and raw.chain[run] == chains[i]:
            raw.length[run] += ctx[i] - depth
            end_run[i] = run
        else:
            end_run[i] = raw.add(run, depth, ctx[i] - depth, chains[i])
        if mine:
            for u in range(len(prior), min(prefix_tokens[i] // block_tokens // unit + len(mine), ctx[i] // unit)):
                node = prior[-1] if prior else -1
                prior = [*prior, hashes.put(node, mine[u - (prefix_tokens[i] // block_tokens // unit)],
                                            raw.at(int(end_run[i]), (u + 1) * unit))]
        nodes[i] = prior
    hit = (st.prompt_tokens - 1) // block_tokens
    return _cut(raw, end_run, context, hit, chain, chain_session, block_tokens)


def _chains(trace: Trace) -> tuple[I32, I32]:
    """(chain of each step, session of each chain): chains numbered by session, then by agent."""
    key = trace.steps.session.astype(np.int64) << 32 | trace.steps.agent.astype(np.int64)
    values, chain = np.unique(key, return_inverse=True)
    return chain.astype(np.int32), (values >> 32).astype(np.int32)


def _cut(raw: _Raw, end_run: I64, context: I64, hit: I64, chain: I32, chain_session: I32,
         block_tokens: int) -> Forest:
    ends = [np.array(sorted({c for c in cuts if 0 < c < length} | {length}), np.int64)
            for cuts, length in zip(raw.cuts, raw.length, strict=True)]
    first = np.concatenate([[0], np.cumsum([len(e) for e in ends])]).astype(np.int64)
    parent = np.full(int(first[-1]), -1, np.int32)
    start, blocks = np.zeros(int(first[-1]), np.int32), np.zeros(int(first[-1]), np.int32)
    for r, e in enumerate(ends):
        a, b = int(first[r]), int(first[r + 1])
        starts = np.concatenate([[0], e[:-1]])
        start[a:b], blocks[a:b] = raw.start[r] + starts, e - starts
        parent[a + 1:b] = np.arange(a, b - 1)
        if raw.parent[r] >= 0:
            p = raw.parent[r]
            parent[a] = first[p] + np.searchsorted(ends[p], raw.attach[r])
    paths: list[list[int]] = []
    for i, r in enumerate(end_run.tolist()):
        path: list[int] = []
        seg = int(first[r] + np.searchsorted(ends[r], context[i] - raw.start[r])) if r >= 0 else -1
        while seg >= 0:
            path.append(seg)
            seg = int(parent[seg])
        paths.append(path[::-1])
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in paths])]).astype(np.int64)
    flat = np.array([s for p in paths for s in p], np.int32)
    return Forest(block_tokens, parent, start, blocks, offsets, flat, hit.astype(np.int32), context.astype(np.int32),
                  chain, chain_session)
