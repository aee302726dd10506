"""The evictable KV blocks of an engine, in runs: what one request released at one moment of one KV group, tail first,
as vLLM does.

A run belongs to the chain that released it and is what an eviction policy scores. Here it is kept as a list of vLLM's
(its order), as a row that compiled code reads, and in sums by chain and by tenant. What was built on what is kept, too:
a block goes only after every evictable block that was built on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from vllm.v1.core.kv_cache_utils import KVCacheBlock

from saga_rl.policies.state import chains as ch
from saga_rl.runtime.engine.kv.groups import Groups
from saga_rl.runtime.sessions.tracker import Tracker, more_rows

# columns of Runs.table
CHAIN, LAST_S, BLOCKS, SHARED, SEQ, STALE = range(6)
COLUMNS = 6


class Run:
    """Blocks that one request released at once, in the order in which they may go: a list linked through vLLM's own
    block objects, as its free queue is, without the two made-up blocks at the ends (a thousand idle sessions are two
    thousand runs)."""

    __slots__ = ("chain", "first", "group", "key", "last", "num_free_blocks", "queued", "seq", "shared", "slot",
                 "stale", "tenant")

    def __init__(self, blocks: list[KVCacheBlock], chain: int, tenant: int, seq: int, shared: bool, slot: int,
                 group: int = 0, stale: bool = False) -> None:
        self.chain, self.tenant, self.seq, self.shared, self.slot = chain, tenant, seq, shared, slot
        self.group, self.stale = group, stale
        self.num_free_blocks = len(blocks)
        self.first: KVCacheBlock | None = blocks[0]
        self.last: KVCacheBlock | None = blocks[-1]
        self.key = 0.0
        """Minus its score."""
        self.queued = False
        """It stands in the heap of candidates."""
        above = None
        for block in blocks:
            block.prev_free_block = above
            if above is not None:
                above.next_free_block = block
            above = block
        blocks[-1].next_free_block = None

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        """Take the first n, of which there are so many."""
        out: list[KVCacheBlock] = []
        block = self.first
        for _ in range(n):
            assert block is not None
            out.append(block)
            after = block.next_free_block
            block.prev_free_block = block.next_free_block = None
            block = after
        self.first = block
        if block is None:
            self.last = None
        else:
            block.prev_free_block = None
        self.num_free_blocks -= n
        return out

    def remove(self, block: KVCacheBlock) -> None:
        """Take one of its blocks out."""
        before, after = block.prev_free_block, block.next_free_block
        if before is None:
            self.first = after
        else:
            before.next_free_block = after
        if after is None:
            self.last = before
        else:
            after.prev_free_block = before
        block.prev_free_block = block.next_free_block = None
        self.num_free_blocks -= 1

    def __iter__(self) -> Iterator[KVCacheBlock]:
        block = self.first
        while block is not None:
            yield block
            block = block.next_free_block


class Runs:
    """All runs. `of[block id]` is the run that holds a block, None if it is in use or empty."""

    def __init__(self, tracker: Tracker, n_blocks: int, groups: Groups) -> None:
        self.tracker, self.groups = tracker, groups
        self.leaves = groups.skips
        """Some may be STALE."""
        self.of: list[Run | None] = [None] * n_blocks
        self.table = np.zeros((64, COLUMNS))
        """One row a run, by its slot; BLOCKS is 0 where there is none. STALE: 1 = its chain has left these behind (they
        are out of its window, or an earlier state), and nobody else is known to use them."""
        self.at: list[Run | None] = [None] * 64
        self.owned = np.zeros(len(tracker.chains))
        """Evictable blocks by chain; with several groups what the best of them holds, in the scheduler's blocks."""
        self._held = None if len(groups.tokens) == 1 else np.zeros((len(groups.tokens), len(tracker.chains)))
        """By group and chain, in the scheduler's blocks."""
        self._weights = groups.weights.tolist()
        self.idle: Counter[int] = Counter()
        """The same by tenant's code; -1 = of nobody known."""
        self.seq = 0
        self.on: dict[int, set[int]] = {}
        """By block: the evictable blocks of other runs that were built on it."""
        self.builds = 0
        """Changes whenever something is built on something."""
        self.base: dict[int, int] = {}
        """The same, the other way round."""
        self._free = list(range(63, -1, -1))
        self._slots: NDArray[np.int64] | None = None
        self._line = np.zeros((64, 2), np.int64)
        """(slot, SEQ) of runs as they came: those that are gone stay until the line is closed up."""
        self._came = 0

    # ------------------------------------------------------------------ runs
    def add(self, blocks: list[KVCacheBlock], chain: int, last_s: float, shared: bool, group: int = 0,
            stale: bool = False) -> Run:
        if not self._free:
            n, more = len(self.table), more_rows(len(self.table))
            self.table = np.concatenate([self.table, np.zeros((more, COLUMNS))])
            self.at += [None] * more
            self._free = list(range(n + more - 1, n - 1, -1))
        if len(self.owned) < len(self.tracker.chains):
            more = len(self.tracker.chains) - len(self.owned)
            self.owned = np.concatenate([self.owned, np.zeros(more)])
            if self._held is not None:
                self._held = np.concatenate([self._held, np.zeros((len(self._held), more))], axis=1)
        tenant = int(self.tracker.chains[chain, ch.TENANT])
        run = Run(blocks, chain, tenant, self.seq, shared, self._free.pop(), group, stale)
        self.seq += 1
        self.table[run.slot] = chain, last_s, 0.0, shared, run.seq, stale
        self._slots = None
        self._stand(run)
        self.at[run.slot] = run
        for block in blocks:
            self.of[block.block_id] = run
        self._count(run, len(blocks))
        return run

    def left(self, run: Run, blocks: Iterable[KVCacheBlock]) -> None:
        """`blocks` have been taken out of `run`'s list."""
        n = 0
        for block in blocks:
            self.of[block.block_id] = None
            n += 1
        self.fewer(run, n)

    def fewer(self, run: Run, n: int) -> None:
        """`run` has n blocks less than was counted; `of` says so already."""
        self._count(run, -n)
        if n and run.num_free_blocks == 0:
            self.at[run.slot] = None
            self._free.append(run.slot)
            self._slots = None

    def _count(self, run: Run, n: int) -> None:
        self.table[run.slot, BLOCKS] += n
        if self._held is None:
            self.owned[run.chain] += n
        else:
            self._held[run.group, run.chain] += n * self._weights[run.group]
            self.owned[run.chain] = self._held[:, run.chain].max()
        self.idle[run.tenant] += n

    def _stand(self, run: Run) -> None:
        """Put the run at the end of the line."""
        if self._came == len(self._line):
            self._close_up()
            if 2 * self._came > len(self._line):
                self._line = np.concatenate([self._line, np.zeros_like(self._line)])
        self._line[self._came] = run.slot, run.seq
        self._came += 1

    def _close_up(self) -> NDArray[np.int64]:
        """Forget those in the line that are gone. Returns the slots of the others."""
        line = self._line[:self._came]
        slots = line[:, 0]
        here = (self.table[slots, SEQ] == line[:, 1]) & (self.table[slots, BLOCKS] > 0)
        if not here.all():
            line = line[here]
            self._came = len(line)
            self._line[:self._came] = line
        return line[:, 0].copy()

    def slots(self) -> NDArray[np.int64]:
        """Rows of `table` that are runs, oldest release first. Not to be written to."""
        if self._slots is None:
            self._slots = self._close_up()
        return self._slots

    def all(self) -> list[Run]:
        """Oldest release first."""
        return [run for slot in self.slots().tolist() if (run := self.at[slot]) is not None]

    def owned_by(self, chain: int) -> float:
        """`owned` of the chain."""
        return float(self.owned[chain]) if chain < len(self.owned) else 0.0

    def owners(self) -> NDArray[np.int64]:
        """Chains that hold evictable blocks."""
        return np.flatnonzero(self.owned > 1e-6)  # sums of fractions may not end at 0 to the bit

    # ------------------------------------------------------------------ what is built on what
    def blocked(self, run: Run) -> bool:
        """Whether somebody builds on its first block."""
        assert run.first is not None
        return run.first.block_id in self.on

    def build(self, base: KVCacheBlock, block: KVCacheBlock) -> None:
        """`block`, if it is evictable, was built on `base`, which lies elsewhere."""
        if self.of[block.block_id] is None:
            return
        self.unbase(block.block_id)
        self.builds += 1
        self.on.setdefault(base.block_id, set()).add(block.block_id)
        self.base[block.block_id] = base.block_id

    def clear(self, base: int) -> None:
        """Forget what was built on block `base`."""
        for built in self.on.pop(base, ()):
            del self.base[built]

    def unbase(self, block_id: int) -> int:
        """The block is no longer evictable, or has another base. Returns the block on which nothing is built any more
        because of that, -1 = none."""
        base = self.base.pop(block_id, None)
        if base is None:
            return -1
        built = self.on[base]
        built.discard(block_id)
        if built:
            return -1
        del self.on[base]
        return base

    def below(self, run: Run) -> Run | None:
        """The run that holds what the last block of `run` was built on."""
        base = self.base.get(run.last.block_id) if run.last is not None else None
        return None if base is None else self.of[base]
