"""vLLM's queue of free KV blocks, ordered by an eviction policy instead of by time.

Blocks that hold nothing go first, exactly as in the stock queue. Cached blocks are kept in *runs*: what one request
released at one moment, tail first, as vLLM releases it. A run belongs to the chain that released it and is the unit
that is scored; within it blocks go in order. A block goes only after every evictable block that was built on it, so a
prefix that others share goes after all of them. With the policy `lru` this is the stock order, block for block.

Tried with vLLM 0.28 - 0.32 (`BlockPool` calls: `popleft`, `popleft_n`, `remove`, `append`, `append_n`, `prepend_n`).
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, KVCacheBlock

from saga_rl.policies import chains as ch
from saga_rl.runtime.tracker import NOBODY
from saga_rl.runtime.victims import Victims

NO_USER, SEVERAL = -1, -2


class Run(FreeKVCacheBlockQueue):
    """Blocks that one request released at once, in the order in which they may go."""

    def __init__(self, chain: int, last_s: float, seq: int, shared: bool) -> None:
        super().__init__([])
        self.chain, self.last_s, self.seq, self.shared = chain, last_s, seq, shared
        self.key = 0.0
        """Minus its score, while it is parked."""
        self.parked = False
        """It was next but its first block was still built upon."""

    @property
    def first(self) -> KVCacheBlock:
        block = self.fake_free_list_head.next_free_block
        assert block is not None
        return block


class PolicyBlockQueue:
    """A `FreeKVCacheBlockQueue` by interface. `stock` is the queue it replaces and keeps as the list of empty blocks.

    forget: takes a cached block's hash away (`BlockPool._maybe_evict_cached_block`).
    """

    def __init__(self, stock: FreeKVCacheBlockQueue, n_blocks: int, victims: Victims,
                 forget: Callable[[KVCacheBlock], object]) -> None:
        self.empty, self.victims, self.forget = stock, victims, forget
        self.num_free_blocks = stock.num_free_blocks
        self.evicted: Counter[str] = Counter()
        """Cached blocks taken, by what their chain was doing."""
        self.now = 0.0
        self._runs: dict[int, Run] = {}
        self._run_of: list[Run | None] = [None] * n_blocks
        self._user = np.full(n_blocks, NO_USER, np.int64)
        self._on: dict[int, set[int]] = {}  # block -> evictable blocks of other runs that were built on it
        self._base: dict[int, int] = {}  # the same, the other way round
        self._seq = 0
        self._owner = NOBODY
        self._heap: list[tuple[float, int, Run]] = []
        self._parked: list[Run] = []
        self._mark: tuple[float, int, int] | None = None

    # ------------------------------------------------------------------ who releases
    def begin_release(self, chain: int) -> int:
        """Blocks that come from now on belong to `chain`. Returns what `end_release` wants to know."""
        self._owner = chain
        return self.num_free_blocks

    def end_release(self, before: int, tables: Sequence[Sequence[KVCacheBlock]]) -> None:
        """The request whose block tables were `tables` has let go of them."""
        self._owner = NOBODY
        pinned = 0
        for table in tables:
            i = 0
            while i < len(table) and (table[i].ref_cnt > 0 or table[i].is_null):
                self._user[table[i].block_id] = SEVERAL
                i += 1
            pinned += i
            if 0 < i < len(table):
                self._build(table[i - 1], table[i])
        if self.num_free_blocks - before != sum(map(len, tables)) - pinned:  # others hold blocks in the middle, too
            for table in tables:
                for base, block in itertools.pairwise(table):
                    if base.ref_cnt > 0:
                        self._build(base, block)

    # ------------------------------------------------------------------ vLLM's interface
    def popleft(self) -> KVCacheBlock:
        if self.num_free_blocks == 0:
            raise ValueError("No free blocks available")
        return self.popleft_n(1)[0]

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        assert self.num_free_blocks >= n
        out: list[KVCacheBlock] = []
        while len(out) < n:
            ready = min(n - len(out), self.empty.num_free_blocks)
            if ready:
                out += self.empty.popleft_n(ready)
            else:
                self._evict(n - len(out), out)
        self.num_free_blocks -= n
        return out

    def remove(self, block: KVCacheBlock) -> None:
        run = self._run_of[block.block_id]
        if run is None:
            self.empty.remove(block)
        else:
            above = block.prev_free_block
            self._unbase(block.block_id)
            if run.parked:
                self._mark = None  # another block comes first in it now
            run.remove(block)
            self._run_of[block.block_id] = None
            if run.num_free_blocks == 0:
                del self._runs[run.seq]
            elif above is not None and above is not run.fake_free_list_head:
                self._build(block, above)
        self.num_free_blocks -= 1

    def append(self, block: KVCacheBlock) -> None:
        self.append_n([block])

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        if not blocks:
            return
        ids = np.fromiter((b.block_id for b in blocks), np.int64, len(blocks))
        users = self._user[ids]
        if self._owner == NOBODY:
            shared = users == SEVERAL
        else:
            shared = (users != NO_USER) & (users != self._owner)
            self._user[ids] = np.where(shared, SEVERAL, self._owner)
        cuts = [0, *(np.flatnonzero(shared[1:] != shared[:-1]) + 1).tolist(), len(blocks)]
        for a, b in itertools.pairwise(cuts):
            run = Run(self._owner, self.now, self._seq, bool(shared[a]))
            run.append_n(blocks[a:b])
            for block in blocks[a:b]:
                self._run_of[block.block_id] = run
            self._runs[self._seq] = run
            self._seq += 1
            if a:
                self._build(blocks[a], blocks[a - 1])
        self.num_free_blocks += len(blocks)

    def prepend_n(self, blocks: list[KVCacheBlock]) -> None:
        for block in blocks if self._on else ():
            self._clear(block.block_id)
        self.empty.prepend_n(blocks)
        self.num_free_blocks += len(blocks)

    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        """In the order in which they would go if nothing changed."""
        return list(self._in_order())

    def iter_blocks_after(self, cursor: KVCacheBlock | None) -> Iterator[KVCacheBlock]:
        """Free blocks in that order after `cursor` (None, or a block that is no longer free: from the start)."""
        order = self.get_all_free_blocks()
        at = next((i for i, b in enumerate(order) if b is cursor), -1)
        yield from order[at + 1:]

    # ------------------------------------------------------------------ eviction
    @property
    def n_empty(self) -> int:
        """Blocks that hold nothing."""
        return self.empty.num_free_blocks

    def owners(self) -> set[int]:
        """Chains that hold evictable blocks."""
        return {run.chain for run in self._runs.values()}

    def held(self) -> list[tuple[int, float, int, float]]:
        """(chain, last use s, blocks, shared) of every run, oldest release first."""
        return [(r.chain, r.last_s, r.num_free_blocks, float(r.shared)) for r in self._runs.values()]

    def drop_past_ttl(self) -> int:
        """Forget what lies past its TTL, for policies that say so. Returns blocks."""
        dropped = 0
        while self._runs:
            runs = list(self._runs.values())
            late = self.victims.past_ttl(self.held(), self.n_empty, self.now)
            free = [r for r, past in zip(runs, late, strict=True) if past and not self._blocked(r)]
            if not free:
                break
            for run in free:
                taken: list[KVCacheBlock] = []
                self._take(run, run.num_free_blocks, taken)
                self._empty(taken)
                dropped += len(taken)
        self.evicted["past ttl"] += dropped
        return dropped

    def _evict(self, need: int, out: list[KVCacheBlock]) -> None:
        """Take up to `need` cached blocks, at least one, from the run whose score is highest."""
        self._rank()
        while self._heap and (not self._heap[0][2].num_free_blocks or self._blocked(self._heap[0][2])):
            self._park()
        if self._heap:
            run = self._heap[0][2]
        else:  # only if vLLM freed blocks in an order that contradicts what was built on what
            run = next(iter(self._runs.values()))
            self._clear(run.first.block_id)
        row = self.victims.tracker.chains[run.chain]
        cause = "ended" if row[ch.ENDED] > 0 else "waiting" if row[ch.WAITING] == 1 else "idle"
        base = self._base_run(run)
        self.evicted["shared" if run.shared else cause] += self._take(run, need, out)
        if self.victims.policy.whole_chain:
            rest: list[KVCacheBlock] = []
            self._take(run, run.num_free_blocks, rest)
            while base is not None and base.chain == run.chain and not run.num_free_blocks and not self._blocked(base):
                run, base = base, self._base_run(base)
                self._take(run, run.num_free_blocks, rest)
            self._empty(rest)
            self.evicted["whole"] += len(rest)

    def _blocked(self, run: Run) -> bool:
        return run.first.block_id in self._on

    def _rank(self) -> None:
        """Score every run, unless nothing happened since the last time. Ties: released earlier goes first."""
        mark = (self.now, self._seq, self.victims.tracker.version)
        if mark == self._mark:
            return
        self._mark = mark
        runs = list(self._runs.values())
        keys = -self.victims.scores(self.held(), self.n_empty, self.now)
        order = np.argsort(keys, kind="stable")
        runs = [runs[i] for i in order.tolist()]
        self._heap = list(zip(keys[order].tolist(), [r.seq for r in runs], runs, strict=True))  # sorted: a heap already
        for run in self._parked:
            run.parked = False
        self._parked = []

    def _park(self) -> None:
        """The run at the top of the heap is empty, or somebody builds on its first block: it waits for that to go."""
        key, _, run = heapq.heappop(self._heap)
        if run.num_free_blocks:
            run.parked, run.key = True, key
            self._parked.append(run)

    def _take(self, run: Run, most: int, out: list[KVCacheBlock]) -> int:
        """Move up to `most` blocks from the front of `run` to `out`, stopping at one that others are built on."""
        start = len(out)
        if self._on or self._base:
            while len(out) - start < most and run.num_free_blocks and run.first.block_id not in self._on:
                block = run.popleft()
                out.append(block)
                self._unbase(block.block_id)
        else:
            out += run.popleft_n(min(most, run.num_free_blocks))
        for block in out[start:]:
            self._run_of[block.block_id] = None
            self._user[block.block_id] = NO_USER
        if run.num_free_blocks == 0:
            self._runs.pop(run.seq, None)
        return len(out) - start

    def _empty(self, blocks: list[KVCacheBlock]) -> None:
        for block in blocks:
            self.forget(block)
        self.empty.append_n(blocks)

    # ------------------------------------------------------------------ what is built on what
    def _build(self, base: KVCacheBlock, block: KVCacheBlock) -> None:
        """`block`, if it is evictable, was built on `base`, which lies elsewhere."""
        if self._run_of[block.block_id] is None:
            return
        self._unbase(block.block_id)
        self._on.setdefault(base.block_id, set()).add(block.block_id)
        self._base[block.block_id] = base.block_id

    def _clear(self, base: int) -> None:
        for built in self._on.pop(base, ()):
            del self._base[built]

    def _unbase(self, block_id: int) -> None:
        base = self._base.pop(block_id, None)
        if base is None:
            return
        built = self._on[base]
        built.discard(block_id)
        if not built:
            del self._on[base]
            run = self._run_of[base]
            if run is not None and run.parked:
                run.parked = False
                heapq.heappush(self._heap, (run.key, run.seq, run))

    def _base_run(self, run: Run) -> Run | None:
        """The run that holds what the last block of `run` was built on."""
        last = run.fake_free_list_tail.prev_free_block
        base = self._base.get(last.block_id) if last is not None else None
        return None if base is None else self._run_of[base]

    def _in_order(self) -> Iterator[KVCacheBlock]:
        yield from self.empty.get_all_free_blocks()
        if not self._runs:
            return
        runs = list(self._runs.values())
        scores = self.victims.scores(self.held(), self.n_empty, self.now)
        best = [runs[i] for i in np.argsort(-scores, kind="stable").tolist()]
        left = {run.seq: run.get_all_free_blocks()[::-1] for run in runs}
        gone: set[int] = set()
        while best:
            ready = (r for r in best if not self._on.get(left[r.seq][-1].block_id, set()) - gone)
            run = next(ready, best[0])
            blocks = left[run.seq]
            while blocks and not self._on.get(blocks[-1].block_id, set()) - gone:
                gone.add(blocks[-1].block_id)
                yield blocks.pop()
            if not blocks:
                best.remove(run)
