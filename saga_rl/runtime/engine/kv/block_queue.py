"""vLLM's queue of free KV blocks, ordered by an eviction policy instead of by time.

Blocks that hold nothing go first, exactly as in the stock queue. Cached blocks are kept in runs (`runs`), which the
policy ranks in each step that finds too few empty blocks, as the simulator does; within a run blocks go in order, and a
prefix that others share goes after all that was built on it. With the policy `lru` this is the stock order, block for
block.

Tried with vLLM 0.28 - 0.33 (`BlockPool` calls: `popleft`, `popleft_n`, `remove`, `append`, `append_n`, `prepend_n`).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, KVCacheBlock

from saga_rl.policies.features import EVICT, G_BLOCK
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.engine.kv.floors import Floors
from saga_rl.runtime.engine.kv.groups import Groups, one_group
from saga_rl.runtime.engine.kv.ranking import Line, going
from saga_rl.runtime.engine.kv.runs import CHAIN, LAST_S, Run, Runs
from saga_rl.runtime.engine.kv.victims import Victims
from saga_rl.runtime.sessions.tracker import NOBODY, W

NO_USER, SEVERAL = -1, -2
ALL = -2
"""The line of runs of all tenants."""


class PolicyBlockQueue:
    """A `FreeKVCacheBlockQueue` by interface. `stock` is the queue it replaces and keeps as the list of empty blocks.

    forget: takes a cached block's hash away (`BlockPool._maybe_evict_cached_block`).
    """

    def __init__(self, stock: FreeKVCacheBlockQueue, n_blocks: int, victims: Victims,
                 forget: Callable[[KVCacheBlock], object], groups: Groups | None = None) -> None:
        self.empty, self.victims, self.forget = stock, victims, forget
        self.evicted: Counter[str] = Counter()
        """Cached blocks taken, by what their chain was doing."""
        self.now = 0.0
        self.groups = groups or one_group(int(victims.g[W, G_BLOCK]))
        self._runs = Runs(victims.tracker, n_blocks, self.groups)
        self.floors: Floors | None = None
        self.tenant: int | None = None
        """Whose request is being allocated for: floors hold against it."""
        self.withhold, self.at_least = False, math.inf
        """Floors are to be kept, and so many blocks are what is asked about: see `FlooredBlockQueue`."""
        self.before_taking: Callable[[], None] | None = None
        """Called once, ahead of the next blocks that are taken."""
        self.taken = self.used_again = 0
        """Cached blocks taken so far, and asked for again."""
        self._free = self.num_free_blocks = stock.num_free_blocks
        """Empty or evictable. vLLM reads the second for each request in each step: it must not be a property."""
        self._user = np.full(n_blocks, NO_USER, np.int64)
        self._owner, self._stale = NOBODY, False
        self._lines: dict[int, Line] = {}
        """What is left of the last ranking: of all, or under floors by tenant."""
        self._freed: list[int] = []  # blocks on which nothing is built any more since the run at hand was touched
        self._mark: tuple | None = None
        """What the last ranking was made of; None: it does not hold any more."""
        self._fell_back = False
        self._touched: tuple[Run, KVCacheBlock] | None = None
        self._touched_since = False
        """Since the last ranking."""
        self._touches = 0
        self._copied = False
        """What is released now has a copy below."""

    @property
    def runs(self) -> Runs:
        """The evictable blocks. Complete whenever somebody looks: see `remove`."""
        if self._touched is not None:
            (run, block), n = self._touched, self._touches
            self._touched = None
            self._runs.fewer(run, n)
            if run.last is not None:
                self._runs.build(block, run.last)
        return self._runs

    def use(self, victims: Victims) -> None:
        """Another policy chooses from now on."""
        self.victims, self._mark = victims, None

    # ------------------------------------------------------------------ who releases
    def begin_release(self, chain: int, stale: bool = False) -> int:
        """Blocks that come from now on belong to `chain`, which `stale`: has left them behind and goes on. Returns what
        `end_release` wants to know."""
        self._owner, self._stale = chain, stale
        return self._free

    def end_release(self, before: int, tables: Sequence[Sequence[KVCacheBlock]]) -> None:
        """The request whose block tables were `tables` has let go of them."""
        self._owner, self._stale = NOBODY, False
        pinned = 0
        for table in tables:
            i = 0
            while i < len(table) and (table[i].ref_cnt > 0 or table[i].is_null):
                if not table[i].is_null:
                    self._user[table[i].block_id] = SEVERAL
                i += 1
            pinned += i
            if 0 < i < len(table) and not table[i - 1].is_null:
                self.runs.build(table[i - 1], table[i])
        if self._free - before != sum(map(len, tables)) - pinned:  # others hold blocks in the middle, too
            for table in tables:
                for base, block in itertools.pairwise(table):
                    if base.ref_cnt > 0 and not base.is_null:
                        self.runs.build(base, block)

    # ------------------------------------------------------------------ vLLM's interface
    def popleft(self) -> KVCacheBlock:
        if self._free == 0:
            raise ValueError("No free blocks available")
        return self.popleft_n(1)[0]

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        assert self._free >= n
        if self.before_taking is not None:
            call, self.before_taking = self.before_taking, None
            call()
        out: list[KVCacheBlock] = []
        if n <= self.empty.num_free_blocks:
            out = self.empty.popleft_n(n)
        else:
            self._make_room(n, out)
        self._free = self.num_free_blocks = self._free - n
        return out

    def remove(self, block: KVCacheBlock) -> None:
        """A session that returns takes its blocks one by one, prefix first, thousands of them: what runs have and what
        the rest is now built on is put down once, when somebody looks (`runs`)."""
        runs, number = self._runs, block.block_id
        run = runs.of[number]
        if run is None:
            self.empty.remove(block)
        else:
            self.used_again += 1
            above, at_end = block.prev_free_block, block is run.last
            if self._touched is None or self._touched[0] is not run or not at_end:
                runs, self._touches = self.runs, 0
                self._touched_since = True
            if number in runs.base:
                runs.unbase(number)
            run.remove(block)
            runs.of[number] = None
            if at_end:
                self._touches += 1
                self._touched = run, block
            else:
                runs.fewer(run, 1)
                if above is not None:
                    runs.build(block, above)
        self._free = self.num_free_blocks = self._free - 1

    def append(self, block: KVCacheBlock) -> None:
        self.append_n([block])

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        if self.floors is not None:
            self.floors.changed()
        if not blocks:
            return
        if self._copied:
            return self.handed_down(blocks)
        ids = np.fromiter((b.block_id for b in blocks), np.int64, len(blocks))
        users = self._user[ids]
        if self._owner != NOBODY and len(self.groups.tokens) == 1 and (
                (users == self._owner) | (users == NO_USER)).all():  # as most are: nobody else has used any of them
            self._user[ids] = self._owner
            self.runs.add(blocks, self._owner, self.now, False, 0, self._stale)
            self._free = self.num_free_blocks = self._free + len(blocks)
            return None
        if self._owner == NOBODY:
            shared = users == SEVERAL
        else:
            shared = (users != NO_USER) & (users != self._owner)
            self._user[ids] = np.where(shared, SEVERAL, self._owner)
        changes = shared[1:] != shared[:-1]
        of = np.zeros(len(blocks), np.int64)
        if len(self.groups.tokens) > 1:
            of = np.fromiter(map(self.groups.of, blocks), np.int64, len(blocks))
            changes |= of[1:] != of[:-1]
        cuts = [0, *(np.flatnonzero(changes) + 1).tolist(), len(blocks)]
        for a, b in itertools.pairwise(cuts):
            self.runs.add(blocks[a:b], self._owner, self.now, bool(shared[a]), int(of[a]),
                          self._stale and not shared[a])
            if a and of[a] == of[a - 1]:
                self.runs.build(blocks[a], blocks[a - 1])
        self._free = self.num_free_blocks = self._free + len(blocks)

    def prepend_n(self, blocks: list[KVCacheBlock]) -> None:
        for block in blocks if self.runs.on else ():
            self.runs.clear(block.block_id)
        self.empty.prepend_n(blocks)
        self._free = self.num_free_blocks = self._free + len(blocks)

    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        """In the order in which they would go if nothing changed."""
        return list(self.in_order())

    def iter_blocks_after(self, cursor: KVCacheBlock | None) -> Iterator[KVCacheBlock]:
        """Free blocks in that order after `cursor` (None, or a block that is no longer free: from the start)."""
        order = self.get_all_free_blocks()
        at = next((i for i, b in enumerate(order) if b is cursor), -1)
        yield from order[at + 1:]

    # ------------------------------------------------------------------ content that is gone
    def empties(self, block: KVCacheBlock) -> None:
        """Put a cached block that lost its content among the empty ones."""
        self.remove(block)
        self._user[block.block_id] = NO_USER
        self.empty.append(block)
        self._free = self.num_free_blocks = self._free + 1
        self._mark = None

    def empty_all(self) -> None:
        """Put all cached blocks among the empty ones, what was released first ahead."""
        runs = self.runs
        for run in runs.all():
            blocks = run.popleft_n(run.num_free_blocks)
            runs.left(run, blocks)
            self.empty.append_n(blocks)
        runs.on.clear()
        runs.base.clear()
        self._user[:] = NO_USER
        self._lines, self._mark = {}, None

    # ------------------------------------------------------------------ memory below
    def hand_down(self, most: int) -> list[KVCacheBlock]:
        """Take up to `most` cached blocks out that would go next, for a copy below the GPU: `handed_down` puts them
        back. What nobody will use again, by its client's word or for being left behind, goes among the empty blocks at
        once, and counts."""
        out: list[KVCacheBlock] = []
        if most > 0 and self.n_evictable:
            self._rank()
        while most > 0 and self.n_evictable:
            run, _ = self._best({})
            taken: list[KVCacheBlock] = []
            row, dead = self.victims.tracker.chains[run.chain], run.stale
            most -= self._pop(run, most, taken)
            if dead or (row[ch.ENDED] == 1 and not run.shared):
                self.evicted["left behind" if dead else "ended"] += len(taken)
                self.empty.append_n(taken)
            else:
                self.evicted["handed down"] += len(taken)
                out += taken
                self._free -= len(taken)
            if not self._let_in_freed():
                self._mark = None
                self._rank()
        self.num_free_blocks = self._free
        return out

    def handed_down(self, blocks: list[KVCacheBlock]) -> None:
        """Put blocks back of which there is a copy below: taken as if they were empty, and found until then."""
        self.empty.append_n(blocks)
        self._free = self.num_free_blocks = self._free + len(blocks)

    @contextmanager
    def copied(self) -> Iterator[None]:
        """What vLLM releases within was copied (`handed_down`)."""
        self._copied = True
        try:
            yield
        finally:
            self._copied = False

    # ------------------------------------------------------------------ eviction
    @property
    def n_empty(self) -> int:
        """Blocks that hold nothing."""
        return self.empty.num_free_blocks

    @property
    def n_evictable(self) -> int:
        return self._free - self.empty.num_free_blocks

    def drop_past_ttl(self) -> int:
        """Forget what lies past its TTL, for policies that say so. Returns blocks."""
        runs, dropped = self.runs, 0
        while len(slots := runs.slots()):
            self.victims.refresh(runs, slots, self.n_empty, self.now)
            late = slots[self.victims.past_ttl(runs, slots, self.now)]
            free = [r for slot in late.tolist() if (r := runs.at[slot]) is not None and not runs.blocked(r)]
            if not free:
                break
            for run in free:
                taken: list[KVCacheBlock] = []
                self._pop(run, run.num_free_blocks, taken)
                self._drop(taken)
                dropped += len(taken)
        self.evicted["past ttl"] += dropped
        return dropped

    def _make_room(self, n: int, out: list[KVCacheBlock]) -> None:
        """Add blocks to `out` until it has `n`: the empty ones, then cached ones."""
        spare = self.floors.spare(self.runs, self.tenant) if self.floors is not None and self.tenant is not None else {}
        self._rank()
        while len(out) < n:
            ready = min(n - len(out), self.empty.num_free_blocks)
            if ready:
                out += self.empty.popleft_n(ready)
                continue
            run, broken = self._best(spare)
            base = self.runs.below(run)
            most, v = n - len(out), self.victims
            if v.drift is not None and not self._fell_back and not run.stale:
                self._watch(run)
            taken = self._pop(run, most if broken else min(most, spare.get(run.tenant, most)), out)
            self.evicted[self._cause(run)] += taken
            if run.tenant in spare:
                spare[run.tenant] -= taken
            if broken and self.floors is not None:
                self.floors.breaks += taken
            if self.victims.policy.whole_chain and self.floors is None and not run.stale:
                self._take_whole(run, base)
            if not self._let_in_freed():
                self._mark = None
                self._rank()

    def _cause(self, run: Run) -> str:
        """What the chain of a run that is taken from was doing."""
        if run.stale or run.shared:
            return "left behind" if run.stale else "shared"
        row = self.victims.tracker.chains[run.chain]
        return "ended" if row[ch.ENDED] > 0 else "waiting" if row[ch.WAITING] == 1 else "idle"

    def _watch(self, victim: Run) -> None:
        """Compare whom the network chose with one that it ranks far behind."""
        v, owned = self.victims, self.runs.owned_by
        if v.watches(victim.chain, owned(victim.chain)):
            others = (r for r in self._line(victim).from_middle()
                      if r.chain != victim.chain and not r.stale and v.watches(r.chain, owned(r.chain)))
            v.chose(victim, next(others, None), self.runs, self.now)

    def _best(self, spare: dict[int, int]) -> tuple[Run, bool]:
        """The run that goes first, and whether a floor breaks by that. spare: how many blocks a tenant may lose."""
        run = self._first(t for t in self._lines if spare.get(t, 1) > 0)
        if run is not None:
            return run, False
        if self._touched_since:  # what was built on something may be in use by now
            self._mark = None
            self._rank()
            return self._best(spare)
        run = self._first(self._lines)  # nothing else is left, and the caller allowed it
        if run is not None:
            return run, True
        run = self.runs.all()[0]  # only if vLLM freed blocks in an order that contradicts what was built on what
        assert run.first is not None
        self.runs.clear(run.first.block_id)
        return run, spare.get(run.tenant, 1) <= 0

    def _first(self, tenants: Iterable[int]) -> Run | None:
        tops = [run for t in tenants if (run := self._lines[t].top()) is not None]
        return min(tops, key=lambda run: (run.key, run.seq)) if len(tops) > 1 else next(iter(tops), None)

    def _line(self, run: Run) -> Line:
        """The line in which the run stands, or would."""
        tenant = ALL if ALL in self._lines else run.tenant
        if tenant not in self._lines:
            self._lines[tenant] = Line(np.zeros(0), np.zeros(0, np.int64), self.runs)
        return self._lines[tenant]

    def _take_whole(self, run: Run, base: Run | None) -> None:
        """Empty what is left of `run`, and the runs of its chain that it was built on, beginning with `base`."""
        rest: list[KVCacheBlock] = []
        self._pop(run, run.num_free_blocks, rest)
        while base is not None and base.chain == run.chain and not run.num_free_blocks and not self.runs.blocked(base):
            run, base = base, self.runs.below(base)
            self._pop(run, run.num_free_blocks, rest)
        self._drop(rest)
        self.evicted["whole"] += len(rest)

    def _rank(self) -> None:
        """Score every run on which nothing is built; ties: released earlier goes first. Once a step, and anew where
        something was released within it. In a later step the order holds if the policy promises so and nothing has
        happened to a chain. A policy with memory, which is told of every victim, is asked at each allocation."""
        v, runs = self.victims, self.runs
        p = v.policy
        mark, last = (runs.seq, v.tracker.version, self.now), self._mark
        if self.floors is not None and ALL in self._lines:
            last = None
        if last is not None and last[0] == mark[0] and not p.memory:
            if last[2] == mark[2]:
                return
            if last[1] == mark[1] and p.steady and math.isinf(p.steady_idle_s):
                self._mark = mark
                return
        self._mark, self._touched_since = mark, False
        slots = runs.slots()
        if p.oldest_first:
            keys = np.zeros(len(slots))
        else:
            v.refresh(runs, slots, self.n_empty, self.now)
            slots = self._unblocked(slots)
            before = v.guard.fallbacks.total()
            keys = -v.scores(runs, slots, self.now)
            self._fell_back = v.guard.fallbacks.total() > before
        for line in self._lines.values():
            line.close()
        order = np.argsort(keys, kind="stable")
        keys, slots = keys[order], slots[order]
        if self.floors is None:
            self._lines = {ALL: Line(keys, slots, runs)}
        else:
            tenants = v.tracker.chains[runs.table[slots, CHAIN].astype(np.int64), ch.TENANT]
            self._lines = {int(t): Line(keys[tenants == t], slots[tenants == t], runs) for t in np.unique(tenants)}
        if p.memory:  # it is told the score of whatever goes
            for slot, key in zip(slots.tolist(), keys.tolist(), strict=True):
                if (ranked := runs.at[slot]) is not None:
                    ranked.key = key
        self._freed.clear()

    def _unblocked(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the runs in `slots` on which nothing is built."""
        runs = self.runs
        blocked = [r.slot for b in runs.on if (r := runs.of[b]) is not None and r.first is not None
                   and r.first.block_id == b]
        return slots[~np.isin(slots, blocked)] if blocked else slots

    def _let_in_freed(self) -> bool:
        """Runs on which nothing is built any more are candidates now. False if their scores are another policy's than
        those of the rest."""
        v, mixed = self.victims, False
        for block_id in self._freed:
            run = self.runs.of[block_id]
            if run is None or run.queued or self.runs.blocked(run) or self._line(run).holds(run):
                continue
            if not v.policy.oldest_first:
                before = v.guard.fallbacks.total()
                run.key = -float(v.scores(self.runs, np.array([run.slot]), self.now)[0])
                mixed |= (v.guard.fallbacks.total() > before) != self._fell_back
            self._line(run).push(run)
        self._freed.clear()
        return not mixed

    def _pop(self, run: Run, most: int, out: list[KVCacheBlock]) -> int:
        """Move up to `most` blocks from the front of `run` to `out`, stopping at one that others are built on."""
        start, runs, last_s = len(out), self.runs, self.runs.table[run.slot, LAST_S]
        if runs.on or runs.base:
            while len(out) - start < most and run.first is not None and run.first.block_id not in runs.on:
                out += run.popleft_n(1)
                self._unbase(out[-1].block_id)
        else:
            out += run.popleft_n(min(most, run.num_free_blocks))
        taken = out[start:]
        self.taken += len(taken)
        for block in taken:
            self._user[block.block_id] = NO_USER
        runs.left(run, taken)
        if self.victims.policy.memory and not run.stale:  # else it was not the policy that chose
            owned = runs.owned[run.chain]
            self.victims.notify(run.chain, self.now, last_s, owned, EVICT, len(taken), owned, -run.key)
        return len(taken)

    def _unbase(self, block_id: int) -> None:
        base = self.runs.unbase(block_id)
        if base >= 0:
            self._freed.append(base)

    def _drop(self, blocks: list[KVCacheBlock]) -> None:
        for block in blocks:
            self.forget(block)
        self.empty.append_n(blocks)

    def in_order(self) -> Iterator[KVCacheBlock]:
        """Yield free blocks in the order in which they would go if nothing changed."""
        yield from self.empty.get_all_free_blocks()
        runs, slots = self.runs, self.runs.slots()
        if not len(slots):
            return
        self.victims.refresh(runs, slots, self.n_empty, self.now)
        scores = self.victims.scores(runs, slots, self.now)
        yield from going(runs, slots[np.argsort(-scores, kind="stable")])
