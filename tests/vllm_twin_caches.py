"""The two prefix caches, driven event by event: vLLM's `KVCacheManager` over its `BlockPool`, the simulator's pool."""

from __future__ import annotations

import numpy as np
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.request import Request, RequestStatus
from vllm_twin import Block, Places, Watch, contexts, kv_config, make_request, named, resident_blocks

from saga_rl.aeg.forest import build_forest
from saga_rl.aeg.trace import Trace
from saga_rl.sim.cache import evict as ev
from saga_rl.sim.cache import pool as kv


class VllmCache:
    """vLLM's `KVCacheManager` over its `BlockPool`, driven the way its scheduler drives it."""

    def __init__(self, trace: Trace, pool_blocks: int, block: int) -> None:
        self.trace, self.block, self.tokens = trace, block, contexts(trace, block)
        self.places = Places(trace, block)
        longest = max(len(t) for t in self.tokens)
        self.kv = KVCacheManager(kv_config(pool_blocks, block), max_model_len=longest + 1, scheduler_block_size=block,
                                 hash_block_size=block)
        self.watch = Watch(self.kv.block_pool, self.places)
        self.requests: dict[int, Request] = {}
        self.running: set[int] = set()

    @property
    def available(self) -> int:
        """Blocks that are empty or may be evicted."""
        return self.kv.block_pool.get_num_free_blocks()

    def start(self, step: int, chunk: int) -> int | None:
        """Admit the step with at most `chunk` tokens. Returns its cached blocks, None if it does not fit."""
        r = self.requests.get(step)
        if r is None:
            prompt = int(self.trace.steps.prompt_tokens[step])
            r = self.requests[step] = make_request(str(step), self.tokens[step], prompt, self.block)
        self.places.learn(step, r.block_hashes)
        found, hit, _ = self.kv.get_computed_blocks(r)
        n = min(r.num_tokens - hit, chunk)
        if self.kv.allocate_slots(r, n, hit, found) is None:
            return None
        r.status, r.num_computed_tokens = RequestStatus.RUNNING, hit + n
        self.running.add(step)
        return hit // self.block

    def grow(self, step: int, chunk: int) -> bool:
        """Go on by at most `chunk` tokens; False if that does not fit."""
        r = self.requests[step]
        n = min(r.num_tokens - r.num_computed_tokens, chunk)
        if self.kv.allocate_slots(r, n) is None:
            return False
        r.num_computed_tokens += n
        return True

    def sample(self, step: int, n: int) -> None:
        """The next `n` tokens of the answer are known (their KV is not computed)."""
        r = self.requests[step]
        r.append_output_token_ids(self.tokens[step][r.num_tokens:r.num_tokens + n].tolist())
        self.places.learn(step, r.block_hashes)

    def end(self, step: int, done: bool) -> None:
        """Release the step: it is done, or preempted."""
        r = self.requests[step]
        self.kv.free(r)
        r.num_computed_tokens, r.status = 0, RequestStatus.PREEMPTED
        self.running.discard(step)
        if done:
            del self.requests[step]


class SimCache:
    """The simulator's pool, with the calls that its engine makes. Room is made in steps that touch one segment each, so
    that the order of victims shows; `bulk` is a second pool that makes room in one call, as the engine does."""

    def __init__(self, trace: Trace, pool_blocks: int, block: int) -> None:
        forest = build_forest(trace, block)
        self.trace, self.block, self.tree = trace, block, kv.make_tree(forest)
        self.single, self.bulk = (kv.make_pool(1, pool_blocks, len(forest.seg_parent), len(forest.chain_session))
                                  for _ in range(2))
        self.state: dict[int, list[int]] = {}
        """step -> tokens computed and, for each pool, path index held and private copies"""
        self.known: dict[int, int] = {}
        self.victims: list[Block] = []
        self.copies = 0
        self.clock = 0.0

    @property
    def available(self) -> int:
        return int(self.single.n[0, kv.FREE] + kv.evictable(self.single, 0))

    def _room(self, need: int) -> None:
        while (short := need - int(self.single.n[0, kv.FREE])) > 0:
            left = self._take(1)
            if short > 1 and left > 0:
                self._take(min(short - 1, left))
        ev.make_room_oldest_first(self.tree, self.bulk, 0, need)

    def _take(self, blocks: int) -> int:
        """Evict so many. Returns what is left of the segment that they came from; its tail goes first."""
        before = resident_blocks(self.single).copy()
        ev.make_room_oldest_first(self.tree, self.single, 0, int(self.single.n[0, kv.FREE]) + blocks)
        (segment,) = np.flatnonzero(before != resident_blocks(self.single)).tolist()
        had, has = int(before[segment]), int(resident_blocks(self.single)[segment])
        self.victims += [(segment, k) for k in range(had - 1, has - 1, -1)]
        return has

    def cached(self, step: int) -> int:
        """Blocks that a lookup would find: at most all but the last token's."""
        found = kv.resident_prefix(self.tree, self.single, 0, step)
        return min(found, (self.known_tokens(step) - 1) // self.block)

    def resident_prefix(self, step: int) -> int:
        return int(kv.resident_prefix(self.tree, self.single, 0, step))

    def known_tokens(self, step: int) -> int:
        return self.known.get(step, int(self.trace.steps.prompt_tokens[step]))

    def start(self, step: int, chunk: int) -> int | None:
        cached = self.cached(step)
        have = cached * self.block
        want = have + min(self.known_tokens(step) - have, chunk)
        need = -(-want // self.block) - cached
        idle = kv.idle_hit_blocks(self.tree, self.single, 0, step, cached)
        if self.available - idle < need:
            return None
        held = [int(kv.pin(self.tree, pool, 0, step, 0, cached)) for pool in (self.single, self.bulk)]
        self.state[step] = [have, held[0], 0, held[1], 0]
        self._extend(step, want, need)
        return cached

    def grow(self, step: int, chunk: int) -> bool:
        have = self.state[step][0]
        want = have + min(self.known_tokens(step) - have, chunk)
        need = -(-want // self.block) - -(-have // self.block)
        if self.available < need:
            return False
        self._extend(step, want, need)
        return True

    def _extend(self, step: int, want: int, need: int) -> None:
        self._room(need)
        s = self.state[step]
        for at, pool in ((1, self.single), (3, self.bulk)):
            s[at], copies = kv.grow(self.tree, pool, 0, step, s[at], s[0], want, self.block)
            s[at + 1] += copies
        self.copies += copies
        s[0] = want

    def sample(self, step: int, n: int) -> None:
        self.known[step] = self.known_tokens(step) + n

    def end(self, step: int, done: bool) -> None:
        self.clock += 1.0
        have, *rest = self.state.pop(step)
        for pool, held, copies in ((self.single, *rest[:2]), (self.bulk, *rest[2:])):
            kv.release(self.tree, pool, 0, step, held, have, copies, self.clock, self.block)
        if done:
            self.known.pop(step, None)

    def resident(self) -> set[Block]:
        res = resident_blocks(self.single)
        np.testing.assert_array_equal(res, resident_blocks(self.bulk))
        return named(res)

    def take_victims(self) -> list[Block]:
        out, self.victims = self.victims, []
        return out
